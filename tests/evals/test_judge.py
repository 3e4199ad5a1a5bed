"""Files of samples that are judged without a run."""

import pytest

from genjax.config import ConfigError
from genjax.evals.judge import judge_texts


def test_a_line_ends_with_a_newline_and_nothing_else(tmp_path):
    """As a terminal and sacrebleu have it; Python's splitlines() would find nine lines."""
    texts = ["one two\u2028three four", "five\x0csix\x85seven", "eight\x1cnine ten eleven twelve"]
    ours, right = tmp_path / "ours.txt", tmp_path / "right.txt"
    ours.write_bytes("\r\n".join(texts).encode())
    right.write_bytes("".join(f"{text}\n" for text in texts).encode())
    found = judge_texts(str(ours), str(right))
    assert found["texts"] == 3
    assert found["bleu"] == pytest.approx(100)
    right.write_bytes("\n".join(texts[:2]).encode())
    with pytest.raises(ConfigError, match="has 3 lines and"):
        judge_texts(str(ours), str(right))
