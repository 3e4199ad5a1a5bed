"""The encoder and decoder: what they see, and the cache. The peers are in test_encoder_decoders."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.networks import encoder_decoder
from genjax.networks.transformer import unstacked
from genjax.nn.attention import attention
from genjax.nn.functional import functional
from genjax.parallel.rules import path_name

KEY = jax.random.key(0)
SIZES = {"width": 8, "depth": 2, "heads": 2, "hidden": 12}
POST = {"norm_first": False, "norm": "layer", "bias": True, "head_bias": True}
KINDS = {
    "t5": {"buckets": 6, "furthest": 9, "head_size": 6, "decoder_depth": 1, "head_scale": True},
    "bart": POST | {"positions": "learned", "activation": "gelu_exact", "embed_norm": True},
    "marian": POST | {"positions": "sinusoidal", "activation": "silu", "embed_scale": True},
}
V, S, T, B = 11, 7, 6, 3
RNG = np.random.default_rng(0)
SOURCE, TARGET = (jnp.asarray(RNG.integers(0, V, (B, n)), jnp.int32) for n in (S, T))
SEEN = jnp.arange(S) < jnp.array([[7], [4], [1]])


def make(**options):
    """The network, and parameters large enough that all matters."""
    built = functional(
        lambda rngs: encoder_decoder.Network(V, 8, S, **(SIZES | options), rngs=rngs)
    )
    rng = np.random.default_rng(1)

    def drawn(path, p):
        scale = path_name(path).endswith("scale")
        return jnp.asarray(0.5 * rng.normal(size=p.shape) + scale, p.dtype)

    return built, jax.tree.map_with_path(drawn, jax.eval_shape(built.init, KEY)[0])


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    """(function of target, source and what is seen, network, parameters), compiled once."""
    net, params = make(**KINDS[request.param])

    @jax.jit
    def logits(target, source, seen):
        return net.apply(params, {}, target, source=source, seen=seen)[0][0]

    return logits, net, params


def test_each_token_is_told_the_source_and_the_tokens_before(kind):
    logits, _, _ = kind
    plain = logits(TARGET, SOURCE, SEEN)
    assert plain.shape == (B, T, V)
    assert plain.dtype == jnp.float32
    hidden = logits(TARGET, jnp.where(SEEN, SOURCE, (SOURCE + 1) % V), SEEN)
    np.testing.assert_allclose(plain, hidden, atol=1e-5)
    other = logits(TARGET, SOURCE.at[:, 0].set((SOURCE[:, 0] + 1) % V), SEEN)
    assert (np.abs(plain - other).max((1, 2)) > 1e-3).all()
    later = logits(TARGET.at[:, 4].set((TARGET[:, 4] + 1) % V), SOURCE, SEEN)
    np.testing.assert_allclose(plain[:, :4], later[:, :4], atol=1e-5)
    assert np.abs(plain - later)[:, 4].max() > 1e-3


def test_token_by_token_with_the_cache_is_all_at_once(kind):
    logits, net, params = kind
    expected = logits(TARGET, SOURCE, SEEN)
    if "relative_source" not in params:
        params = unstacked(params)

    @jax.jit
    def begin(source):
        context = net.apply(params, {}, None, source=source, seen=SEEN)[0]
        given = {"context": context, "seen": SEEN, "capacity": 8}
        return net.apply(params, {}, TARGET[:, :2], **given)[0]

    @jax.jit
    def follow(token, cache):
        return net.apply(params, {}, token, cache=cache)[0]

    found, cache = begin(SOURCE)
    np.testing.assert_allclose(found[:, 0], expected[:, 1], atol=1e-4)
    memory = cache.memory
    for t in range(2, T):
        found, cache = follow(TARGET[:, t : t + 1], cache)
        np.testing.assert_allclose(found[:, 0], expected[:, t], atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, cache.memory, memory)
    shapes = {x.shape[1] for x in jax.tree.leaves(cache) if jnp.ndim(x) > 1}
    assert shapes == {B}  # so that a beam search can move rows


def test_padding_on_the_left_of_a_target_changes_nothing():
    net, params = make(**KINDS["t5"])
    given = {"source": SOURCE, "seen": SEEN}
    logits = jax.jit(lambda x, **named: net.apply(params, {}, x, **given, **named)[0][0])
    plain = logits(TARGET[:, :3])
    padded = jnp.pad(TARGET[:, :3], ((0, 0), (2, 0)))
    segment = jnp.pad(jnp.ones((B, 3), jnp.int32), ((0, 0), (2, 0)))
    moved = logits(padded, segment=segment)
    np.testing.assert_allclose(plain, moved[:, 2:], atol=1e-5)


def test_a_bias_is_added_before_the_softmax():
    rng = np.random.default_rng(0)
    T, N, D = 70, 4, 2  # causal attention has two blocks of queries
    q, k, v = (rng.normal(size=(2, n, h, D)) for n, h in ((T, N), (T, 2), (T, 2)))
    bias = rng.normal(size=(1, N, T, T))
    scores = np.einsum("btkgd,bskd->bkgts", q.reshape(2, T, 2, 2, D), k) / np.sqrt(D)
    weights = np.exp(scores + bias.reshape(1, 2, 2, T, T)) * np.tril(np.ones((T, T)))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bkgts,bskd->btkgd", weights, v).reshape(2, T, N, D)
    given = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    mask, bias = jnp.tril(jnp.ones((1, 1, T, T), bool)), jnp.asarray(bias, jnp.float32)
    for causal in (True, False):
        found = jax.jit(partial(attention, causal=causal))(*given, mask, bias=bias)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_parameter_has_a_rule():
    for options in KINDS.values():
        for path, _ in jax.tree_util.tree_leaves_with_path(make(**options)[1]):
            name = path_name(path)
            assert any(re.search(rule, name) for rule, _ in encoder_decoder.RULES), name


def test_options_that_do_not_fit():
    for options, match in (
        ({"positions": "sideways"}, "positions='sideways': expected one of relative"),
        ({"buckets": 32, "furthest": 20}, "furthest=20: expected more than buckets=32"),
    ):
        with pytest.raises(ConfigError, match=match):
            make(**options)
    net, params = make(**KINDS["bart"])
    with pytest.raises(ConfigError, match="positions=9: expected at most 8, as many as the"):
        shape_of(net, params, jnp.zeros((B, 9), jnp.int32), SOURCE)
    with pytest.raises(ConfigError, match="positions=8: expected at most 7"):
        shape_of(net, params, None, jnp.zeros((B, 8), jnp.int32))


def shape_of(net, params, target, source):
    return jax.eval_shape(lambda p: net.apply(p, {}, target, source=source, seen=SEEN), params)
