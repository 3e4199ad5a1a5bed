"""The temporal convolutional network is torch's, sees as far as it says, and no other segment."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from genjax.config import ConfigError, construct
from genjax.networks import tcn

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "sequence_networks.npz")
WEIGHTS = ("parametrizations.weight.original0", "parametrizations.weight.original1")


def test_levels_are_torchs():
    x = jnp.asarray(GOLDEN["tcn/x"])
    for i in range(2):
        level = tcn.Level(x.shape[-1], 6, 3, 2**i, 0.0, jnp.float32, nnx.Rngs(0))
        for j, conv in enumerate((level.conv1, level.conv2)):
            golden = {name: GOLDEN[f"tcn/{i}/{j}/{name}"] for name in ("bias", *WEIGHTS)}
            conv.kernel[...] = golden[WEIGHTS[1]].transpose(2, 1, 0)
            conv.scale[...] = golden[WEIGHTS[0]][:, 0, 0]
            conv.bias[...] = golden["bias"]
        assert (level.shortcut is None) == (i == 1)
        if level.shortcut is not None:
            level.shortcut.kernel[...] = GOLDEN["tcn/0/shortcut/weight"][:, :, 0].T
            level.shortcut.bias[...] = GOLDEN["tcn/0/shortcut/bias"]
        x, _ = level(x, None, None, None, False)
    np.testing.assert_allclose(x, GOLDEN["tcn/y"], atol=1e-5)


def test_it_sees_as_many_positions_as_it_says_of_its_own_segment():
    T, V = 12, 3
    network = tcn.Network(V, T, frames=True, width=8, depth=2, kernel_size=2, rngs=nnx.Rngs(0))
    for level in network.levels.values():
        for conv in (level.conv1, level.conv2):  # all positive: no ReLU hides anything
            conv.kernel[...] = jnp.abs(conv.kernel[...]) + 0.1
        if level.shortcut is not None:
            level.shortcut.kernel[...] = jnp.abs(level.shortcut.kernel[...])
    network.head.kernel[...] = jnp.abs(network.head.kernel[...])
    x = jax.random.uniform(jax.random.key(0), (1, T, V))

    def reach(segment):
        slopes = jax.jacrev(lambda x: network(x, segment=segment)[0][0].sum(-1))
        return np.abs(np.asarray(jax.jit(slopes)(x)[:, 0])).sum(-1) > 0

    distance = np.arange(T)[:, None] - np.arange(T)
    seen = (distance >= 0) & (distance < 1 + 2 * (2 - 1) * (2**2 - 1))
    np.testing.assert_array_equal(reach(None), seen)
    segment = np.array([0] * 3 + [1] * 5 + [2] * 4)
    own = segment[:, None] == segment
    np.testing.assert_array_equal(reach(jnp.asarray(segment[None])), seen & own)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 0}, "depth=0: expected at least 1"),
        ({"width": -4}, "width=-4: expected at least 1"),
        ({"dropout": 1.0}, "dropout=1.0: expected at least 0 and below 1"),
        ({"kernel_size": 0}, "kernel_size=0: expected at least 1"),
        ({"tied": True, "frames": True}, "False with frames"),
    ],
)
def test_options_that_cannot_be(options, words):
    given = {"vocabulary_size": 4, "length": 4, "rngs": nnx.Rngs(0)}
    with pytest.raises(ConfigError, match=words):
        construct(tcn.Network, ConfigDict(options), "model", **given)
