"""The prior's transformer: diffusers' with the same weights; what it sees, and what it refuses."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.networks import prior_transformer
from genjax.nn.functional import functional
from genjax.nn.heads import grouped

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "prior_transformer.npz")
E, S, WIDTH, HEADS, DEPTH = 6, 5, 16, 2, 2


def network(**options):
    sizes = {"length": S, "width": WIDTH, "depth": DEPTH, "heads": HEADS}
    sizes |= {"context_width": E, "vector_width": E, "activation": "gelu_exact"} | options

    def build(rngs):
        return prior_transformer.Network((1, 1, E), E, rngs=rngs, **sizes)

    return functional(build)


def weight(name, end="weight"):
    return GOLDEN[f"weights/{name}.{end}"]


def linear(name):
    return {"kernel": weight(name).T, "bias": weight(name, "bias")}


def norm(name):
    return {"scale": weight(name), "bias": weight(name, "bias")}


def block(i):
    """A block of the peer in our names."""
    attention = f"transformer_blocks.{i}.attn1"
    parts = [f"{attention}.to_{x}" for x in "qkv"]
    kernel = np.concatenate([weight(x).T for x in parts], axis=1)
    bias = np.concatenate([weight(x, "bias") for x in parts])
    return {
        "norm1": norm(f"transformer_blocks.{i}.norm1"),
        "norm2": norm(f"transformer_blocks.{i}.norm3"),
        "qkv": {"kernel": grouped(kernel, HEADS, WIDTH), "bias": grouped(bias, HEADS, WIDTH)},
        "merge": linear(f"{attention}.to_out.0"),
        "up": linear(f"transformer_blocks.{i}.ff.net.0.proj"),
        "down": linear(f"transformer_blocks.{i}.ff.net.2"),
    }


def peer():
    """All weights of the peer: its cosines come before its sines, and ours alternate."""
    time1 = linear("time_embedding.linear_1")
    half = WIDTH // 2
    order = np.stack([half + np.arange(half), np.arange(half)], axis=1).reshape(-1)
    return {
        "token": linear("encoder_hidden_states_proj"),
        "caption": linear("embedding_proj"),
        "noisy": linear("proj_in"),
        "time1": time1 | {"kernel": time1["kernel"][order]},
        "time2": linear("time_embedding.linear_2"),
        "query": GOLDEN["weights/prd_embedding"][0, 0],
        "positions": GOLDEN["weights/positional_embedding"][0],
        "body": {
            "blocks": jax.tree.map(lambda *x: np.stack(x), *map(block, range(DEPTH))),
            "norm": norm("norm_out"),
        },
        "out": linear("proj_to_clip_embeddings"),
    }


@pytest.fixture(scope="module")
def apply():
    net = network()
    expected = jax.eval_shape(net.init, jax.random.key(0))[0]
    assert jax.tree.map(jnp.shape, peer()) == jax.tree.map(jnp.shape, expected)

    def run(noisy, time, caption, tokens, mask):
        told = {"vector": caption, "context": tokens, "context_mask": mask}
        return net.apply(peer(), {}, noisy[:, None, None], time, None, **told)[0][:, 0, 0]

    return jax.jit(run)


def inputs():
    return {name: GOLDEN[name] for name in ("noisy", "time", "caption", "tokens", "mask")}


def test_predictions_are_the_peers(apply):
    np.testing.assert_allclose(apply(**inputs()), GOLDEN["predicted"], atol=1e-5)


def test_tokens_that_are_not_seen_change_nothing_and_all_others_do(apply):
    given = inputs()
    plain = np.asarray(apply(**given))
    hidden = given["tokens"] + 5 * ~given["mask"][..., None]
    np.testing.assert_allclose(apply(**given | {"tokens": hidden}), plain, atol=1e-5)
    for name in ("noisy", "time", "caption"):
        other = np.asarray(apply(**given | {name: given[name] + 1}))
        assert (np.abs(other - plain).max(1) > 1e-3).all(), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context_width": 0}, "needs a caption"),
        ({"vector_width": 0}, "caption's vector"),
        ({"num_classes": 3}, "no labels"),
    ],
)
def test_what_it_refuses(options, words):
    with pytest.raises(ConfigError, match=words):
        network(**options)
