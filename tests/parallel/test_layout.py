"""Where activations lie, and attention over a split length."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from genjax import config as configs
from genjax.networks import decoder
from genjax.nn.attention import attention
from genjax.nn.functional import functional
from genjax.nn.plain_attention import plain_attention
from genjax.parallel.layout import EXAMPLES, LENGTH, UNITS, laid
from genjax.parallel.mesh import make_mesh


def mesh(**sizes):
    config = configs.base()
    config.mesh.update({"data": 1} | sizes)
    return make_mesh(config)


def test_without_a_mesh_of_several_devices_it_is_the_array_itself():
    x = jnp.ones((4, 2))
    assert laid(x, EXAMPLES, UNITS) is x
    with jax.set_mesh(make_mesh(configs.base(), jax.devices()[:1])):
        assert laid(x, EXAMPLES, UNITS) is x


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 4, 6), (4, 2, 3)),
        ((8, 3, 6), (4, 3, 3)),  # a length that two devices cannot share
        ((7, 4, 6), (7, 2, 3)),  # and examples
    ],
)
def test_an_array_is_split_where_the_mesh_divides_it(shape, expected):
    """Also inside `vmap`, where the examples may be split over what is mapped."""
    on = mesh(fsdp=2, sequence=2, tensor=2)
    x = jnp.arange(float(np.prod(shape))).reshape(shape)
    with jax.set_mesh(on):
        placed = jax.jit(lambda x: laid(x, EXAMPLES, LENGTH, UNITS))(x)
        slope = jax.jit(jax.grad(lambda x: (laid(x, EXAMPLES, LENGTH, UNITS) ** 2).sum()))(x)
        mapped = jax.vmap(lambda x: laid(x, EXAMPLES, LENGTH, UNITS))
        stacked = jax.device_put(jnp.stack([x, x]), NamedSharding(on, jax.P(EXAMPLES)))
        many = jax.jit(mapped)(stacked)
    assert placed.sharding.shard_shape(shape) == expected
    assert slope.sharding.shard_shape(shape) == expected
    np.testing.assert_array_equal(placed, x)
    np.testing.assert_array_equal(slope, 2 * x)
    np.testing.assert_array_equal(many, np.stack([x, x]))
    assert many.sharding.shard_shape(many.shape)[:2] == (1, shape[0])


@pytest.mark.parametrize(
    ("sizes", "kv_heads", "causal"),
    [
        ({"fsdp": 2, "sequence": 4}, 4, True),
        ({"fsdp": 4, "sequence": 2}, 2, False),
        ({"sequence": 4, "tensor": 2}, 2, True),  # too few heads of keys: they are repeated
    ],
    ids=str,
)
def test_attention_over_a_split_length_is_attention(sizes, kv_heads, causal):
    """And so are its gradients. Heads change places with positions, and back: all-to-alls."""
    B, T, N, H = 4, 128, 8, 4
    draws = np.random.default_rng(0)
    shapes = [(B, T, N, H), (B, T, kv_heads, H), (B, T, kv_heads, H), (B, T, N, H)]
    given = [jnp.asarray(draws.normal(size=shape), jnp.float32) for shape in shapes]
    mask = jnp.tril(jnp.ones((1, 1, T, T), bool)) if causal else None

    def total(form):
        def run(q, k, v, weight):
            return (form(q, k, v, mask, causal=causal) * weight).sum()

        return jax.value_and_grad(run, (0, 1, 2))

    right = jax.jit(total(plain_attention))(*given)
    on = mesh(**sizes)
    split = NamedSharding(
        on, jax.P(EXAMPLES, LENGTH, UNITS if kv_heads % sizes.get("tensor", 1) == 0 else None)
    )
    with jax.set_mesh(on):
        program = jax.jit(total(attention), in_shardings=split, out_shardings=(None, (split,) * 3))
        found = program(*given)
        text = program.lower(*given).compile().as_text()
    np.testing.assert_allclose(found[0], right[0], rtol=1e-5)
    for slope, like in zip(found[1], right[1], strict=True):
        np.testing.assert_allclose(slope, like, atol=1e-5 * np.abs(like).max())
    assert len(re.findall(r" all-to-all\(", text)) >= 4
    examples = B // sizes.get("fsdp", 1)
    assert not re.search(rf"f32\[{examples},{T},(8|{kv_heads}),{H}\]", text)  # all heads of all


def test_a_window_norms_of_queries_and_parallel_layers_over_a_split_length():
    options = {"width": 16, "depth": 1, "heads": 4, "positions": "rotary", "rotary_share": 0.5}
    options |= {"window": 3, "qk_norm": True, "residual": "parallel", "bias_of": "attention"}
    net = functional(lambda rngs: decoder.Network(9, 8, **options, rngs=rngs))
    shapes, _ = jax.eval_shape(net.init, jax.random.key(0))
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda leaf: draw(leaf.shape, np.float32), shapes)
    x = np.random.default_rng(1).integers(0, 9, (8, 8))
    segment = np.repeat([[1, 2]], [5, 3], axis=1).repeat(8, axis=0)

    def logits(params, x, segment):
        return net.apply(params, {}, x, segment=segment, train=True)[0][0]

    expected = jax.jit(logits)(params, x, segment)
    with jax.set_mesh(mesh(fsdp=2, sequence=2, tensor=2)):
        found = jax.jit(logits)(params, x, segment)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected).max() > 1
