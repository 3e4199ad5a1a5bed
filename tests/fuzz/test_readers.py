"""Whatever a file holds, its reader gives one clear error or a right answer, in bounded memory.

GENJAX_FUZZ_SECONDS says how long each reader is fuzzed, and GENJAX_FUZZ_SEED with what. A file that
failed is put into `corpus/READER`, which is read first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS = os.environ.get("GENJAX_FUZZ_SECONDS", "1")
READERS = (
    *("npz", "torch", "safetensors", "flax", "tokenizer", "picture"),
    *("archive", "lines", "text", "rolls", "json", "config", "gguf", "gguf_model"),
)


def child(*arguments, tmp_path):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "GENJAX_DATA": str(tmp_path / "cache"),
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",  # each arena takes 64 MB of addresses, used or not
        "TOKENIZERS_PARALLELISM": "false",
    }
    ran = subprocess.run(
        [sys.executable, str(HERE / "child.py"), *arguments, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=float(SECONDS) + 240,
    )
    assert ran.returncode == 0, (
        f"exit {ran.returncode}, {arguments}\n{ran.stdout}\n{ran.stderr[-2000:]}"
    )
    print(ran.stdout)
    return ran.stdout


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_one_clear_error_or_a_right_answer(reader, tmp_path, fuzz_seed):
    child(reader, str(fuzz_seed), SECONDS, tmp_path=tmp_path)


def test_every_file_of_the_corpus_is_read_by_somebody():
    assert {path.name for path in (HERE / "corpus").iterdir()} <= set(READERS)
