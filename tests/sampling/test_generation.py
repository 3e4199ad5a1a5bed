"""Tokens and scores of GPT-2 and Llama as transformers has them (tests/golden/make_generation.py).

Tokens are equal; scores are sums of float32 numbers in another order.
"""

import json
import pathlib
from functools import cache
from tempfile import TemporaryDirectory

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from genjax.interop import huggingface
from genjax.networks import decoder
from genjax.networks.transformer import unstacked
from genjax.nn.functional import functional
from genjax.sampling import logits as lg
from genjax.sampling.beam import beam_search
from genjax.sampling.decode import generate

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "generation.npz")
PROMPT, CASES, EOS = GOLDEN["prompt"], *(json.loads(str(GOLDEN[k])) for k in ("cases", "eos"))
NEW = GOLDEN["gpt2/greedy/tokens"].shape[-1] - PROMPT.shape[1]
CONTEXT = 24


@cache
def network(name):
    """The peer's model as ours, with its parameters bound; those of llama block by block."""
    with TemporaryDirectory() as folder:
        for file in ("config.json", "model.safetensors"):
            (pathlib.Path(folder) / file).write_bytes(GOLDEN[f"{name}/files/{file}"].tobytes())
        model = huggingface.read(folder)
        params = jax.tree.map(np.array, model.params)
    net = functional(
        lambda rngs: decoder.Network(
            model.vocabulary_size, model.length, **model.options, rngs=rngs
        )
    )

    def apply(params, x, **named):
        return net.apply(params, {}, x, **named)[0]

    return Partial(apply, unstacked(params) if name == "llama" else params)


def ours(name, case):
    """Tokens [B, K, S] and scores of a case."""
    given = dict(CASES[case])
    options = lg.Options(
        temperature=0,
        repetition_penalty=given.pop("repetition_penalty", 1.0),
        no_repeat_ngram=given.pop("no_repeat_ngram_size", 0),
        banned=given.pop("bad_words_ids", ()),
        min_new_tokens=given.pop("min_new_tokens", 0),
    )
    named = {
        "max_new_tokens": NEW,
        "context": CONTEXT,
        "eos": EOS[name],
        "processors": lg.chain(options, eos=EOS[name], prompt=PROMPT.shape[1]),
    }
    beams = given.pop("num_beams", 0)
    given.pop("num_return_sequences", None)
    if not beams:
        assert not given
        return generate(network(name), PROMPT, **named)[:, None], np.zeros(0)
    return beam_search(network(name), PROMPT, beams=beams, **named, **given)


@pytest.mark.parametrize("which", sorted(key[:-7] for key in GOLDEN if key.endswith("/tokens")))
def test_tokens_are_those_of_transformers(which):
    name, case = which.split("/")
    tokens, scores = ours(name, case)
    np.testing.assert_array_equal(tokens, GOLDEN[f"{which}/tokens"])
    np.testing.assert_allclose(scores, GOLDEN[f"{which}/scores"], rtol=1e-4)
