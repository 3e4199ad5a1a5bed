"""The encoder: what its positions see, its heads, and what it refuses.

That it computes what BERT computes is tested in `tests/interop/test_bert.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.networks.encoder import Network
from genjax.nn.functional import functional

KEY = jax.random.key(0)
V, T = 7, 6


def made(**options):
    options = {"width": 16, "depth": 2, "heads": 2} | options
    net = functional(lambda rngs: Network(V, T, rngs=rngs, **options))
    params, mutable = jax.jit(net.init)(KEY)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    noisy = [p + 0.3 * rng.normal(size=p.shape).astype(np.float32) for p in map(np.asarray, leaves)]
    apply = jax.jit(net.apply, static_argnames="train")
    return lambda *x, **named: apply(tree.unflatten(noisy), mutable, *x, **named)[0]


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(KEY, (2, T), 0, V)


@pytest.fixture(scope="module")
def bert():
    return made(token_types=2)


def test_every_position_sees_every_other_of_its_segment_and_no_other(tokens, bert):
    segment = jnp.tile(jnp.array([[1, 1, 2, 2, 2, 0]]), (2, 1))
    same = np.asarray(segment[0][:, None] == segment[0])
    for expected, named in ((np.ones((T, T), bool), {}), (same, {"segment": segment})):
        first, found = bert(tokens, **named).logits, []
        for at in range(T):
            other = bert(tokens.at[:, at].add(1) % V, **named).logits
            found.append(np.abs(np.asarray(other - first)).max((0, 2)) > 1e-5)
        np.testing.assert_array_equal(found, expected)
    alone = bert(tokens[:, 2:5]).hidden  # positions count from the segment's first
    np.testing.assert_allclose(bert(tokens, segment=segment).hidden[:, 2:5], alone, atol=1e-5)


def test_logits_are_of_the_positions_asked_for(tokens, bert):
    at = jnp.array([[4, 0, 4], [1, 2, 5]])
    whole, some = bert(tokens), bert(tokens, at=at)
    assert whole.logits.shape == (2, T, V)
    expected = np.take_along_axis(np.asarray(whole.logits), np.asarray(at)[..., None], 1)
    np.testing.assert_allclose(some.logits, expected, atol=1e-5)
    np.testing.assert_array_equal(some.hidden, whole.hidden)


def test_types_of_tokens_count_and_are_0_if_not_given(tokens, bert):
    zeros = bert(tokens, token_type=jnp.zeros_like(tokens)).hidden
    np.testing.assert_array_equal(bert(tokens).hidden, zeros)
    other = bert(tokens, token_type=jnp.ones_like(tokens)).hidden
    assert np.abs(np.asarray(other - zeros)).max() > 1e-2


def test_the_embedding_may_be_of_another_width_and_the_head_is_tied_to_it(tokens):
    net = functional(
        lambda rngs: Network(V, T, embedding_width=4, width=16, heads=2, depth=1, rngs=rngs)
    )
    params, mutable = jax.jit(net.init)(KEY)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes["embed"]["embedding"] == (V, 4)
    assert shapes["positions"] == (T, 4)
    assert shapes["widen"]["kernel"] == (4, 16)
    assert shapes["transform"]["kernel"] == (16, 4)
    assert shapes["head"] == {"bias": (V,)}
    doubled = jax.tree.map(lambda p: p, params) | {
        "widen": jax.tree.map(jnp.zeros_like, params["widen"])
    }
    apply = jax.jit(lambda params: net.apply(params, mutable, tokens)[0])
    first = apply(doubled)
    doubled["embed"] = {"embedding": 2 * params["embed"]["embedding"]}
    second = apply(doubled)  # the input is cut off: only the head is left
    np.testing.assert_allclose(second.logits, 2 * first.logits, atol=1e-5)


def test_other_heads_and_positions(tokens):
    replaced = made(head="replaced", depth=1, positions="rotary", norm_first=True)(tokens)
    assert replaced.logits.shape == (2, T)
    assert replaced.logits.dtype == jnp.float32
    assert made(head="none", depth=1, positions="none", activation="geglu")(tokens).logits is None


def test_what_is_refused(tokens, bert):
    for option in ({"positions": "sinusoidal"}, {"head": "pooled"}, {"heads": 3}):
        with pytest.raises(ConfigError, match=next(iter(option))):
            made(**option)
    with pytest.raises(ConfigError, match="at most 6"):
        bert(jnp.tile(tokens, (1, 2)))
