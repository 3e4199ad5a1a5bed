"""Prompts as tokens, and what stands before them."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import tokenizers
from genjax.data.alphabets import Bytes
from genjax.method import DataSpec
from genjax.sampling import prompts


def start(tokenizer, documents):
    special = tokenizers.special_tokens(tokenizer)
    spec = DataSpec("made", "text", {}, {}, special_tokens=special)
    dataset = ConfigDict({"text": {"documents": documents}})
    return prompts.start_token(dataset, spec, tokenizer)


def test_each_prompt_is_its_own_tokens():
    found = prompts.encode_prompts(["abc", "a"], Bytes({}), None)
    assert [row.tolist() for row in found] == [[97, 98, 99], [97]]
    assert {row.dtype for row in found} == {np.dtype(np.int32)}
    found = prompts.encode_prompts(["abc", "a"], Bytes({"eos": 256}), 256)
    assert [row.tolist() for row in found] == [[256, 97, 98, 99], [256, 97]]
    with pytest.raises(ConfigError, match="at least one character"):
        prompts.encode_prompts(["abc", ""], Bytes({}), None)


def test_what_stands_before_a_prompt(foreign):
    """Llama's <s> always; the end of a document where each example of the data begins with it."""
    ended = Bytes({"eos": 256})
    assert start(ended, "stream") is None
    assert start(ended, "packed") == start(ended, "padded") == 256
    llama = tokenizers.read(foreign)
    for documents in ("stream", "packed", "padded"):
        assert start(llama, documents) == llama.special["bos"] == 1
    found = prompts.encode_prompts(["the hot"], llama, start(llama, "stream"))
    assert llama.inner.decode(found[0].tolist(), skip_special_tokens=False) == "<s> the hot"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfab\n", "ab"),
        (b"ab\r\n", "ab"),
        (b"ab\n\n", "ab\n"),
        ("\u5e8a".encode(), "\u5e8a"),
    ],
)
def test_a_prompt_file_is_read_without_mark_and_last_line_end(content, expected, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    assert prompts.read_prompts([], str(path)) == [expected]
