"""The transformer of masked tokens: what it sees, what it is told, what it never predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.networks.masked_transformer import Network
from genjax.nn.functional import functional

KEY = jax.random.key(0)
K, S = 5, 6


def made(**options):
    options = {"width": 16, "depth": 2, "heads": 2} | options
    net = functional(lambda rngs: Network(K, S, rngs=rngs, **options))
    params, mutable = jax.jit(net.init)(KEY)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    noisy = [p + 0.3 * rng.normal(size=p.shape).astype(np.float32) for p in map(np.asarray, leaves)]
    apply = jax.jit(net.apply, static_argnames="train")
    return lambda *x, **named: apply(tree.unflatten(noisy), mutable, *x, **named)[0]


@pytest.fixture
def tokens():
    return jax.random.randint(KEY, (2, S), 0, K + 1).at[0, 0].set(K)


def changed(net, x, *rest, **named):
    """Which positions' logits change with the token at each position, [at, seen from]."""
    first = net(x, *rest, **named)
    found = []
    for at in range(x.shape[1]):
        other = net(x.at[:, at].add(1) % (K + 1), *rest, **named)
        found.append(np.abs(np.asarray(other - first)).max((0, 2)) > 1e-5)
    return np.array(found)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_every_position_sees_every_other_of_its_segment(tokens, positions):
    net = made(positions=positions)
    assert net(tokens).shape == (2, S, K)  # and so no mask is predicted
    assert net(tokens).dtype == jnp.float32
    assert changed(net, tokens).all()
    segment = jnp.tile(jnp.array([[1, 1, 2, 2, 2, 0]]), (2, 1))
    same = np.asarray(segment[0][:, None] == segment[0])
    np.testing.assert_array_equal(changed(net, tokens, segment=segment), same)
    # A segment is seen as if alone, from its first place on.
    alone = net(tokens[:, 2:5])
    np.testing.assert_allclose(net(tokens, segment=segment)[:, 2:5], alone, atol=1e-5)
    assert np.abs(np.asarray(net(jnp.roll(tokens, 1, 1))[:, 1:] - net(tokens)[:, :-1])).max() > 1e-3


def test_labels_and_times_are_told_only_to_networks_that_know_them(tokens):
    net = made(num_classes=3, time=True)
    label, time = jnp.array([0, 3]), jnp.array([0.2, 0.9])
    first = net(tokens, label, time)
    others = [net(tokens, jnp.array([1, 3]), time), net(tokens, label, jnp.array([0.3, 0.9]))]
    for other in others:
        gap = np.abs(np.asarray(other - first)).max((1, 2))
        assert gap[0] > 1e-3
        assert gap[1] == 0
    plain = made()
    np.testing.assert_array_equal(plain(tokens), plain(tokens, label, time))


def test_tokens_of_several_codebooks_have_vectors_and_logits_of_their_own():
    """At both places of a pair the same token, mask included: without codebooks the same vectors.

    Rotary positions and one segment a token take the place out of it.
    """
    x, segment = jnp.full((1, S), K), jnp.arange(1, S + 1)[None]
    one = made(positions="rotary")(x, segment=segment)
    np.testing.assert_allclose(one[0], jnp.broadcast_to(one[0, 0], (S, K)), atol=1e-5)
    two = made(positions="rotary", codebooks=2)(x, segment=segment)
    np.testing.assert_allclose(two[0, ::2], jnp.broadcast_to(two[0, 0], (3, K)), atol=1e-5)
    np.testing.assert_allclose(two[0, 1::2], jnp.broadcast_to(two[0, 1], (3, K)), atol=1e-5)
    assert np.abs(np.asarray(two[0, 0] - two[0, 1])).max() > 1e-2


def test_dropout_is_of_training_alone(tokens):
    net = made(dropout=0.5)
    np.testing.assert_array_equal(net(tokens), net(tokens, key=KEY))
    assert np.abs(np.asarray(net(tokens, key=KEY, train=True) - net(tokens))).max() > 1e-3


def test_what_is_refused(tokens):
    with pytest.raises(ConfigError, match="positions"):
        made(positions="none")
    with pytest.raises(ConfigError, match="at most 6"):
        made()(jnp.tile(tokens, (1, 2)))
