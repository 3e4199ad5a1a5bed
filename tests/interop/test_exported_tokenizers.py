"""Tokenizers that are trained here, exported, and loaded by transformers.

What transformers gave with these very files is in the golden file; how it is made anew stands in
`tests/golden/make_exported_tokenizers.py`.
"""

from __future__ import annotations

import pathlib
import sys

import jax
import numpy as np
import pytest

from genjax.data import subwords, tokenizers
from genjax.interop import huggingface
from genjax.networks import decoder
from genjax.nn.functional import functional

PATH = pathlib.Path(__file__).parents[1] / "golden" / "exported_tokenizers.npz"
CORPUS = (
    "It was a bright cold day in April, and the clocks were striking thirteen.",
    "The sky above the port was the colour of television, tuned to a dead channel.",
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money.",
    "naïve café Ærøskøbing Ελλάδα 床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "def area(width, height):\n    return width * height  # 3.14 * 2 == 6.28\n",
    "The quick brown fox jumps over the lazy dog; the lazy dog doesn't jump over the fox.",
) * 3
OPTIONS = {"width": 8, "depth": 1, "heads": 2}
KINDS = tokenizers.TRAINED


def export(kind: str, folder: pathlib.Path) -> tokenizers.Tokenizer:
    """Trains a tokenizer and exports a model that has it, as a run would."""
    made = subwords.train(kind, CORPUS, 420, end=True)
    size = made.vocabulary_size
    net = functional(lambda rngs: decoder.Network(size, 12, **OPTIONS, rngs=rngs))
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32),
        jax.eval_shape(net.init, jax.random.key(0))[0],
    )
    special = tokenizers.special_tokens(made)
    huggingface.write(folder, OPTIONS, size, 12, params, made.to_json(), special)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_tokens_that_we_do(kind, tmp_path):
    golden, made = np.load(PATH), export(kind, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        loaded = golden[f"{kind}/files/{name}"].tobytes().decode()
        assert (tmp_path / name).read_text("utf-8") == loaded
    assert made.special == {"eos": int(golden[f"{kind}/eos"])}
    assert golden[f"{kind}/length"] == 12
    again = tokenizers.read(tmp_path)
    for i, text in enumerate(golden["texts"]):
        ids = golden[f"{kind}/{i}/ids"]
        for tokenizer in (made, again):
            np.testing.assert_array_equal(tokenizer.encode(str(text)), ids)
            assert tokenizer.decode([*ids, made.special["eos"]]) == str(golden[f"{kind}/{i}/text"])
        if kind != "wordpiece":  # of bytes: nothing is lost
            assert str(golden[f"{kind}/{i}/text"]) == text


if __name__ == "__main__":
    for each in KINDS:
        export(each, pathlib.Path(sys.argv[1]) / each)
