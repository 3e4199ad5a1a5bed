"""The diffusion transformer: diffusers' on its weights, published sizes, and what it depends on."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, PartitionSpec

from genjax.config import ConfigError
from genjax.networks import dit
from genjax.nn.functional import functional
from genjax.nn.layers import space_to_depth
from genjax.nn.positions import rotate, rotation_of_grid
from genjax.parallel.rules import path_name, shardings

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "dit.npz")
KEY = jax.random.key(0)
SMALL = {"patch_size": 2, "width": 16, "depth": 2, "heads": 2, "context_width": 3}
CLASSES = 4


def network(shape=(4, 6, 1), out_channels=2, num_classes=CLASSES, **options):
    given = SMALL | options
    return functional(
        lambda rngs: dit.Network(shape, out_channels, num_classes, rngs=rngs, **given)
    )


def large(net, size=0.3):
    """Parameters large enough that all matters; most begin at zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: jnp.asarray(size * rng.normal(size=p.shape), p.dtype),
        jax.eval_shape(net.init, KEY)[0],
    )


def given(seed=0):
    """Images, times, labels, tokens of a text and which of them are seen."""
    rng = np.random.default_rng(seed)
    return {
        "x": jnp.asarray(rng.normal(size=(2, 4, 6, 1)), jnp.float32),
        "t": jnp.array([3.0, 700.0]),
        "label": jnp.array([0, 2]),
        "context": jnp.asarray(rng.normal(size=(2, 3, 3)), jnp.float32),
        "context_mask": jnp.array([[True, True, False], [True, False, False]]),
    }


def called(net, params, *, x, t, label=None, **named):
    return net.apply(params, {}, x, t, label, **named)[0]


def by_head(layer, heads):
    """Columns of queries, keys and values [..., 3 N H] as each head's three, [..., N, 3 H]."""
    return {
        name: array.reshape(*array.shape[:-1], 3, heads, -1)
        .swapaxes(-3, -2)
        .reshape(*array.shape[:-1], heads, -1)
        for name, array in layer.items()
    }


def test_it_is_diffusers():
    """And so are the weights: this is how published ones would be read."""
    golden = {name[4:]: GOLDEN[name] for name in GOLDEN if name.startswith("net/")}
    net = network((6, 6, 3), 6, 5, context_width=0)

    def linear(name):
        return {"kernel": golden[f"{name}.weight"].T, "bias": golden[f"{name}.bias"]}

    def stacked(*names):
        each = [[linear(f"transformer_blocks.{i}.{name}") for name in names] for i in range(2)]
        joined = [
            {k: np.concatenate([part[k] for part in parts], axis=-1) for k in parts[0]}
            for parts in each
        ]
        return {k: np.stack([layer[k] for layer in joined]) for k in joined[0]}

    first = "transformer_blocks.0.norm1.emb"
    time1 = linear(f"{first}.timestep_embedder.linear_1")
    cosine, sine = np.split(time1["kernel"], 2)
    time1["kernel"] = np.stack([sine, cosine], axis=1).reshape(256, -1)
    patch = golden["pos_embed.proj.weight"]  # [D, C, h, w]
    params = {
        "patch": {
            "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, 16),
            "bias": golden["pos_embed.proj.bias"],
        },
        "time1": time1,
        "time2": linear(f"{first}.timestep_embedder.linear_2"),
        "label": {"embedding": golden[f"{first}.class_embedder.embedding_table.weight"]},
        "blocks": {
            "modulation": stacked("norm1.linear"),
            "qkv": by_head(stacked("attn1.to_q", "attn1.to_k", "attn1.to_v"), 2),
            "merge": stacked("attn1.to_out.0"),
            "up": stacked("ff.net.0.proj"),
            "down": stacked("ff.net.2"),
        },
        "modulation": linear("proj_out_1"),
        "head": linear("proj_out_2"),
    }
    shapes = jax.eval_shape(net.init, KEY)[0]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    x = jnp.asarray(GOLDEN["x"].transpose(0, 2, 3, 1))
    y = jax.jit(partial(called, net))(params, x=x, t=GOLDEN["t"], label=GOLDEN["label"])
    expected = GOLDEN["y"].transpose(0, 2, 3, 1)
    assert expected.std() > 0.5
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "depth", "width", "heads", "millions"),
    [
        ("S", 12, 384, 6, 33),
        ("B", 12, 768, 12, 130),
        ("L", 24, 1024, 16, 458),
        ("XL", 28, 1152, 16, 675),
    ],
)
def test_sizes_are_the_published_ones(name, depth, width, heads, millions):
    """Table 1 of the paper, and the peer's own count; sinusoidal positions are no parameters."""
    size = {"depth": depth, "width": width, "heads": heads, "context_width": 0}
    net = network((32, 32, 4), 8, 1000, **size)
    count = sum(p.size for p in jax.tree.leaves(jax.eval_shape(net.init, KEY)[0]))
    assert count == GOLDEN[f"parameters/{name}"]
    assert round(count / 1e6) == millions


@pytest.mark.parametrize("condition", dit.CONDITIONS)
def test_the_output_begins_at_zero(condition):
    """And with adaLN-zero a network begins without knowledge of time, label and text."""
    net = network(condition=condition)
    params, _ = jax.jit(net.init)(KEY)
    run = jax.jit(partial(called, net))
    y = run(params, **given())
    assert y.dtype == jnp.float32
    assert y.shape == (2, 4, 6, 2)
    np.testing.assert_array_equal(y, 0)
    params["head"] = jax.tree.map(lambda p: jax.random.normal(KEY, p.shape), params["head"])
    first = run(params, **given())
    for name, value in (("t", jnp.array([9.0, 20.0])), ("label", jnp.array([1, 3]))):
        moved = np.abs(run(params, **given() | {name: value}) - first).max()
        assert (moved == 0) == (condition == "adaln"), name
    moved = np.abs(run(params, **given() | {"context": given(1)["context"]}) - first).max()
    assert (moved == 0) == (condition != "cross_attention")


@pytest.mark.parametrize(
    ("condition", "positions"),
    [("adaln", "sincos"), ("in_context", "rotary"), ("cross_attention", "sincos")],
)
def test_what_the_output_depends_on(condition, positions):
    net = network(condition=condition, positions=positions)
    params, own, run = large(net), given(), jax.jit(partial(called, net))
    first = run(params, **own)
    changes = {
        "x": own["x"].at[0].add(0.1),
        "t": own["t"].at[0].add(1.0),
        "label": own["label"].at[0].set(CLASSES),
        "context": own["context"].at[0, 1].add(1.0),
        "context_mask": own["context_mask"].at[0, 1].set(False),
    }
    for name, value in changes.items():
        moved = np.abs(run(params, **own | {name: value}) - first).max((1, 2, 3))
        assert moved[0] > 1e-3, name
        assert moved[1] == 0, name  # examples do not see each other
    hidden = own | {"context": own["context"].at[0, 2].add(9.0).at[1, 1:].add(9.0)}
    np.testing.assert_array_equal(run(params, **hidden), first)
    none = own | {"context_mask": own["context_mask"].at[0].set(False)}
    blind = run(params, **none)
    assert np.isfinite(blind).all()
    assert np.abs(blind - first)[0].max() > 1e-3
    blinder = run(params, **none | {"context": own["context"].at[0].add(9.0)})
    np.testing.assert_array_equal(blinder, blind)
    # Patches in another order come out as other patches: they know where they are.
    mirrored = run(params, **own | {"x": jnp.roll(own["x"], 2, axis=2)})
    assert np.abs(jnp.roll(mirrored, -2, axis=2) - first).max() > 1e-3


def test_patches_have_no_place_without_positions(monkeypatch):
    """The control of the test above: their order is lost on the network then."""
    monkeypatch.setattr(dit, "sinusoidal_of_grid", lambda *size: jnp.zeros((2, 3, 16)))
    net, own = network(), given()
    params = large(net)
    run = jax.jit(partial(called, net))
    rolled = run(params, **own | {"x": jnp.roll(own["x"], 2, axis=2)})
    np.testing.assert_allclose(
        jnp.roll(rolled, -2, axis=2), run(params, **own), rtol=1e-4, atol=1e-4
    )


def test_scores_depend_on_rows_and_columns_between():
    """Re sum conj(q) k exp(i f d), d rows for the first half of the pairs, columns for the rest."""
    height, width, size = 3, 4, 8
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=size) for _ in range(2))
    turn = rotation_of_grid(height, width, size)
    many = (jnp.broadcast_to(jnp.asarray(v, jnp.float32), (1, 12, 1, size)) for v in (q, k))
    turned = [np.asarray(rotate(v, turn), np.float64)[0, :, 0] for v in many]
    pairs = [v[: size // 2] + 1j * v[size // 2 :] for v in (q, k)]
    speeds = np.array([1.0, 0.01])  # 10,000^(-2 i / 4)
    for i, j in np.ndindex(height * width, height * width):
        (row, column), (other_row, other_column) = divmod(i, width), divmod(j, width)
        between = np.repeat([other_row - row, other_column - column], 2) * np.tile(speeds, 2)
        expected = (pairs[0].conj() * pairs[1] * np.exp(1j * between)).sum().real
        np.testing.assert_allclose(turned[0][i] @ turned[1][j], expected, atol=1e-5)


def test_scanned_blocks_are_blocks_one_after_the_other():
    options = SMALL | {"depth": 3, "dropout": 0.4}
    net = nnx.eval_shape(lambda: dit.Network((4, 4, 1), 1, rngs=nnx.Rngs(0), **options))
    graph, params = nnx.split(net.blocks)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(0.3 * rng.normal(size=p.shape), jnp.float32), params
    )
    nnx.update(net.blocks, params)
    x, tokens = (jax.random.normal(KEY, (2, n, 16)) for n in (4, 3))
    beside = dit.Beside(x[:, 0], rotation_of_grid(2, 2, 8), tokens, jnp.ones((2, 3), bool))
    found = jax.jit(lambda x: net._run(x, beside, KEY, True))(x)
    block = jax.jit(lambda params, x, key: nnx.merge(graph, params)(x, beside, key, True))
    for i, key in enumerate(jax.random.split(KEY, 3)):
        x = block(jax.tree.map(lambda p, i=i: p[i], params), x, key)
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("condition", ["adaln", "cross_attention"])
def test_derivatives_are_differences(condition):
    net = network(condition=condition, positions="rotary")
    params, own = large(net), given()
    rng = np.random.default_rng(1)
    way = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    weights = jnp.asarray(rng.normal(size=(2, 4, 6, 2)), jnp.float32)

    def run(params):
        return (weights * called(net, params, **own)).sum()

    both = jax.jit(lambda params: jax.jvp(run, (params,), (way,)))
    slope, step = both(params)[1], 1e-3
    ends = [both(jax.tree.map(lambda p, w, s=s: p + s * w, params, way)) for s in (step, -step)]
    np.testing.assert_allclose(slope, (ends[0][0] - ends[1][0]) / (2 * step), rtol=2e-2)
    gradient = jax.jit(jax.grad(run))(params)
    along = sum(jnp.vdot(g, w) for g, w in zip(*map(jax.tree.leaves, (gradient, way)), strict=True))
    np.testing.assert_allclose(along, slope, rtol=1e-4)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, path_name(path)


def test_what_is_not_kept_is_computed_again():
    kept, slopes = {}, {}
    for remat in ("none", "dots", "full"):
        net = network(remat=remat, dropout=0.3)
        params = large(net)

        def out(params, net=net):
            return called(net, params, **given(), key=KEY, train=True)

        pull = jax.eval_shape(lambda params, out=out: jax.vjp(out, params)[1], params)
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(pull))
        if remat != "dots":
            slope = jax.grad(lambda params, out=out: (out(params) ** 2).sum())
            slopes[remat] = jax.jit(slope)(params)
    assert kept["none"] > kept["dots"] > kept["full"]
    for one, other in zip(*map(jax.tree.leaves, slopes.values()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(one).max())


def test_dropout_acts_in_training_only_and_by_key():
    net = network(dropout=0.5)
    params, own = large(net), given()
    plain = jax.jit(partial(called, net))(params, **own)
    run = jax.jit(partial(called, net, train=True))
    a, b, c = (run(params, **own, key=jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.1
    assert np.abs(a - plain).max() > 0.1
    still = jax.jit(partial(called, net))(params, **own, key=KEY)
    np.testing.assert_array_equal(still, plain)
    with pytest.raises(ValueError, match="needs a key"):
        jax.eval_shape(partial(called, net, train=True), params, **own)


@pytest.mark.parametrize("condition", ["adaln", "cross_attention"])
def test_bfloat16_is_close_and_parameters_stay_float32(condition):
    net, low = (network(condition=condition, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    params = large(net, 0.1)
    types = {p.dtype for p in jax.tree.leaves(jax.eval_shape(low.init, KEY))}
    assert types == {jnp.dtype("float32")}
    exact, rough = (jax.jit(partial(called, n))(params, **given()) for n in (net, low))
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


def test_all_parameters_have_a_place_on_a_mesh():
    devices = np.array(jax.devices()[:8]).reshape(2, 2, 2)
    mesh = Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    net = network(width=64, condition="cross_attention")
    placed = shardings(jax.eval_shape(net.init, KEY)[0], dit.RULES, mesh)["blocks"]
    into, out = PartitionSpec(None, "fsdp", "tensor"), PartitionSpec(None, "tensor", "fsdp")
    for name in ("qkv", "pair"):
        assert placed[name]["kernel"].spec == PartitionSpec(None, None, "tensor", "fsdp")
    for name in ("query", "up"):
        assert placed[name]["kernel"].spec == into
    for name in ("merge", "merge_cross", "down"):
        assert placed[name]["kernel"].spec == out


def test_patches_are_squares_of_pixels():
    """A head that is the inverse of what patches are made of gives the picture back."""
    net = network((4, 6, 2), 2, 0, context_width=0, condition="in_context")
    params = jax.tree.map(jnp.zeros_like, large(net))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 6, 2)), jnp.float32)
    patches = space_to_depth(x, 2)
    params["patch"]["kernel"] = jnp.eye(8, 16) * 1e3  # next to which positions are nothing
    params["norm"]["scale"] = jnp.ones(16)
    params["head"]["kernel"] = jnp.eye(16, 8)
    h = np.pad(patches, [(0, 0)] * 3 + [(0, 8)]).reshape(6, 16)
    h = (h - h.mean(1, keepdims=True)) / h.std(1, keepdims=True)
    expected = np.empty((4, 6, 2))
    for i, vector in enumerate(h):
        row, column = 2 * (i // 3), 2 * (i % 3)
        expected[row : row + 2, column : column + 2] = vector[:8].reshape(2, 2, 2)
    y = jax.jit(partial(called, net))(params, x=x, t=jnp.zeros(1))
    np.testing.assert_allclose(y[0], expected, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_size": 4}, "patch_size=4: expected a divisor of the input's 4 x 6"),
        ({"patch_size": 0}, "patch_size=0: expected at least 1"),
        ({"heads": 3}, "heads=3: expected a divisor of width=16"),
        ({"heads": 8, "positions": "rotary"}, "head_size=2: expected a multiple of 4"),
        ({"width": 18}, "width=18: expected a multiple of 4"),
        ({"depth": 0}, "depth=0: expected at least 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0: expected at least"),
        ({"dropout": 1.0}, "dropout=1.0: expected at least 0 and below 1"),
        ({"context_width": -1}, "context_width=-1: expected at least 1, or 0"),
        ({"num_classes": -1}, "num_classes=-1: expected at least 1, or 0"),
        ({"positions": "sincoz"}, "positions='sincoz'.*Nearest: sincos"),
        ({"condition": "adaln_zero"}, "condition='adaln_zero'.*Nearest: adaln"),
        ({"remat": "some"}, "remat='some': expected one of"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        network(**options)


@pytest.mark.parametrize(
    ("classes", "width", "absent", "words"),
    [
        (CLASSES, 3, "label", "num_classes=4, and none was given"),
        (0, 3, "", "num_classes=0, and one was given"),
        (CLASSES, 3, "context", "context_width=3"),
        (CLASSES, 0, "", "context_width=0"),
        (CLASSES, 0, "context", "context_width=0"),  # a mask of nothing
    ],
)
def test_what_is_not_known_or_is_lacking_is_refused(classes, width, absent, words):
    net = network(num_classes=classes, context_width=width)
    own = {name: value for name, value in given().items() if name != absent}
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(partial(called, net), large(net), **own)
