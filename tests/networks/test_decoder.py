"""The decoder's parameters, its positions, and what its segments keep apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genjax.config import ConfigError
from genjax.networks import decoder
from genjax.networks.transformer import Transformer
from genjax.nn.functional import functional

KEY = jax.random.key(0)
SIZES = {"width": 8, "depth": 2, "heads": 2}
LLAMA = {
    "kv_heads": 1,
    "head_size": 6,
    "hidden": 20,
    "activation": "swiglu",
    "norm": "rms",
    "positions": "rotary",
    "bias": False,
    "tied": False,
}


def make(**options):
    """The network, and parameters large enough that all matters."""
    net = functional(lambda rngs: decoder.Network(7, 10, **(SIZES | options), rngs=rngs))
    rng = np.random.default_rng(0)
    return net, jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), jax.eval_shape(net.init, KEY)[0]
    )


def test_the_tree_of_parameters_of_gpt2():
    norms = {f"norm{i}": {"scale": (2, 8), "bias": (2, 8)} for i in (1, 2)}
    linear = {"qkv": (8, 2, 12), "merge": (8, 8), "up": (8, 32), "down": (32, 8)}
    blocks = {name: {"kernel": (2, *s), "bias": (2, *s[1:])} for name, s in linear.items()}
    expected = {
        "embed": {"embedding": (7, 8)},
        "positions": (10, 8),
        "body": {"blocks": blocks | norms, "norm": {"scale": (8,), "bias": (8,)}},
    }
    assert jax.tree.map(jnp.shape, make()[1]) == expected


def test_a_network_of_one_output_begins_at_zero():
    """Its head is its own, although others are tied."""
    net = functional(lambda rngs: decoder.Network(7, 10, **SIZES, outputs=1, rngs=rngs))
    params, _ = net.init(KEY)
    assert params["head"]["kernel"].shape == (8, 1)
    (values, _), _ = net.apply(params, {}, jnp.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(values, np.zeros((2, 3, 1)))


def test_without_biases_norms_have_none_either():
    found = make(bias=False)[1]
    assert set(found) == {"embed", "positions", "body"}
    assert all(path[-1].key != "bias" for path, _ in jax.tree_util.tree_leaves_with_path(found))


def test_the_tree_of_parameters_of_llama():
    norms = {f"norm{i}": {"scale": (2, 8)} for i in (1, 2)}
    linear = {"qkv": (8, 1, 24), "merge": (12, 8)}
    linear |= {"up": (8, 20), "gate": (8, 20), "down": (20, 8)}
    blocks = {name: {"kernel": (2, *s)} for name, s in linear.items()}
    expected = {
        "embed": {"kernel": (7, 8), "bias": (8,)},
        "body": {"blocks": blocks | norms, "norm": {"scale": (8,)}},
        "head": {"kernel": (8, 7)},
    }
    found = make(**LLAMA, frames=True)[1]
    assert jax.tree.map(jnp.shape, found) == expected


@pytest.mark.parametrize(("option", "std"), [(0.0, 0.1), (0.02, 0.02)])
def test_initial_weights(option, std):
    """Blocks as Nguyen & Salazar 2019: N(0, 2 / 5D), over sqrt(2 L) for what goes into the sum."""
    net = functional(
        lambda rngs: decoder.Network(
            50,
            40,
            **{"width": 40, "depth": 2, "heads": 2, "activation": "swiglu"},
            tied=False,
            init_std=option,
            rngs=rngs,
        )
    )
    params = jax.jit(net.init)(KEY)[0]
    blocks = params["body"]["blocks"]
    for kernel in (params["embed"]["embedding"], params["positions"], params["head"]["kernel"]):
        assert float(kernel.std()) == pytest.approx(0.02, rel=0.05)
    into = dict.fromkeys(("qkv", "up", "gate"), std)
    for name, size in {**into, "merge": std / 2, "down": std / 2}.items():
        assert float(blocks[name]["kernel"].std()) == pytest.approx(size, rel=0.05)
        assert not blocks[name]["bias"].any()


@pytest.mark.parametrize(("positions", "window"), [("learned", 0), ("rotary", 2)])
def test_segments_are_seen_alone_and_their_places_count_from_their_start(positions, window):
    T = 9
    options = {"window": window, "depth": 1} if window else {}
    net, params = make(positions=positions, frames=True, **options)
    segment = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3])
    x = jax.random.uniform(KEY, (1, T, 7))
    x = x.at[:, 5:7].set(x[:, 7:9])  # segments 2 and 3 are the same

    @jax.jit
    def run(x):
        logits = lambda x: net.apply(params, {}, x, segment=jnp.asarray(segment[None]))[0][0][0]  # noqa: E731
        return logits(x), jax.jacrev(lambda x: logits(x).sum(-1))(x)[:, 0]

    logits, slopes = run(x)
    seen = np.abs(np.asarray(slopes)).sum(-1) > 0
    own = (segment[:, None] == segment) & np.tri(T, dtype=bool)
    own &= np.triu(own, 1 - (window or T))
    np.testing.assert_array_equal(seen, own)
    np.testing.assert_allclose(logits[5:7], logits[7:9], atol=1e-5)


def test_the_order_of_positions_matters_unless_they_are_left_out():
    x = jnp.array([[1, 2, 3, 4], [2, 1, 3, 4]])
    for positions in decoder.POSITIONS:
        net, params = make(positions=positions, depth=1)  # two would count what each can see
        last = jax.jit(net.apply)(params, {}, x)[0][0][:, -1]
        gap = np.abs(last[0] - last[1]).max()
        assert gap < 1e-5 if positions == "none" else gap > 1e-4


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="Nearest: learned"):
        decoder.Network(7, 10, **SIZES, positions="learnt", rngs=nnx.Rngs(0))
    for options, message in (
        ({"residual": "parralel"}, "residual='parralel'.*Nearest: parallel"),
        ({"residual": "parallel", "norm_first": False}, "expected 'sequential' with norm_first=F"),
        ({"bias_of": "keys"}, "bias_of='keys': expected one of all, attention, qkv, mlp"),
        ({"window": -1}, "window=-1: expected at least 0"),
        (
            {"rotary_share": 0.0, "positions": "rotary"},
            "rotary_share=0.0: expected above 0",
        ),
        ({"rotary_share": 0.3, "positions": "rotary"}, "head_size=1: expected an even number"),
        ({"norm_offset": 2.0}, "norm_offset=2.0: expected at least 0 and at most 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            decoder.Network(7, 10, **SIZES, **options, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="window=2: expected 0 with causal=False"):
        Transformer(**SIZES, causal=False, window=2, rngs=nnx.Rngs(0))
    net, params = make()
    with pytest.raises(ConfigError, match="positions=11: expected at most 10"):
        net.apply(params, {}, jnp.zeros((1, 11), jnp.int32))
