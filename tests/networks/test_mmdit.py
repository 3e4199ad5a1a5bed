"""The transformer with joint attention: diffusers' on its weights, published sizes, its inputs."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.method import DataSpec, Field
from genjax.methods import denoiser, diffusion
from genjax.networks import mmdit
from genjax.nn.functional import functional
from genjax.parallel.rules import path_name, shardings

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "mmdit.npz")
KEY = jax.random.key(0)
SMALL = {"patch_size": 2, "width": 32, "depth": 3, "heads": 4, "context_width": 3}
SMALL |= {"vector_width": 5, "qk_norm": True}
CLASSES = 4


def network(shape=(4, 8, 1), out_channels=2, num_classes=CLASSES, **options):
    given = SMALL | options
    return functional(
        lambda rngs: mmdit.Network(shape, out_channels, num_classes, rngs=rngs, **given)
    )


def large(net, size=0.3):
    """Parameters large enough that all matters; most begin at zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: jnp.asarray(size * rng.normal(size=p.shape), p.dtype),
        jax.eval_shape(net.init, KEY)[0],
    )


def given(seed=0):
    """Images, times, labels, vectors, tokens of a text and which of them are seen."""
    rng = np.random.default_rng(seed)
    return {
        "x": jnp.asarray(rng.normal(size=(2, 4, 8, 1)), jnp.float32),
        "t": jnp.array([3.0, 700.0]),
        "label": jnp.array([0, 2]),
        "vector": jnp.asarray(rng.normal(size=(2, 5)), jnp.float32),
        "context": jnp.asarray(rng.normal(size=(2, 3, 3)), jnp.float32),
        "context_mask": jnp.array([[True, True, False], [True, False, False]]),
    }


def called(net, params, *, x, t, label=None, **named):
    return net.apply(params, {}, x, t, label, **named)[0]


def weighted(net, params, own):
    """A number that depends on all of the output."""
    weights = np.random.default_rng(1).normal(size=(2, 4, 8, 2)).astype(np.float32)
    return (weights * called(net, params, **own, train=True)).sum()


@pytest.fixture(scope="module")
def run():
    """The network, as a compiled function of its parameters and inputs."""
    return jax.jit(partial(called, network()))


@pytest.fixture(scope="module")
def gradient():
    """That of `weighted`, on one device."""
    net = network()
    return jax.jit(jax.grad(partial(weighted, net)))(large(net), given())


# ---- the peer ------------------------------------------------------------------------------------


def by_head(layers, heads, parts):
    """Layers of queries, keys and values [..., N H] as each head's `parts`, [..., N, parts H]."""
    return {
        name: np.stack(
            [np.stack(np.split(layer[name], heads, axis=-1), axis=-2) for layer in layers], axis=-2
        ).reshape(*layers[0][name].shape[:-1], heads, -1)
        for name in layers[0]
        if parts == len(layers)
    }


def of_the_peer(golden, depth, heads):
    """The peer's weights as ours."""

    def linear(name):
        kernel = golden[f"{name}.weight"].T
        return {"kernel": kernel.astype(np.float32), "bias": golden[f"{name}.bias"].astype("f4")}

    def swapped(name):  # scale and shift
        return {k: np.roll(v, v.shape[-1] // 2, axis=-1) for k, v in linear(name).items()}

    def scale(name):
        return {"scale": golden[f"{name}.weight"].astype(np.float32)}

    def stream(block, context, ends):
        side = f"{block}.norm1_context" if context else f"{block}.norm1"
        attn = ("add_q_proj", "add_k_proj", "add_v_proj") if context else ("to_q", "to_k", "to_v")
        layers = [linear(f"{block}.attn.{name}") for name in attn[ends:]]
        found = {"modulation": (swapped if ends else linear)(f"{side}.linear")}
        found["pair" if ends else "qkv"] = by_head(layers, heads, 3 - ends)
        if f"{block}.attn.norm_q.weight" in golden:
            infix = "added_" if context else ""
            found["key_norm"] = scale(f"{block}.attn.norm_{infix}k")
            if not ends:
                found["query_norm"] = scale(f"{block}.attn.norm_{infix}q")
        if not ends:
            found["merge"] = linear(f"{block}.attn.{'to_add_out' if context else 'to_out.0'}")
            ff = f"{block}.ff_context" if context else f"{block}.ff"
            found |= {"up": linear(f"{ff}.net.0.proj"), "down": linear(f"{ff}.net.2")}
        return found

    def block(i):
        name, last = f"transformer_blocks.{i}", i == depth - 1
        return {"image": stream(name, False, False), "context": stream(name, True, last)}

    embed = "time_text_embed"
    time1 = linear(f"{embed}.timestep_embedder.linear_1")
    cosine, sine = np.split(time1["kernel"], 2)
    time1["kernel"] = np.stack([sine, cosine], axis=1).reshape(256, -1)
    patch = golden["pos_embed.proj.weight"].astype(np.float32)  # [D, C, h, w]
    return {
        "patch": {
            "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, len(patch)),
            "bias": golden["pos_embed.proj.bias"].astype(np.float32),
        },
        "token": linear("context_embedder"),
        "time1": time1,
        "time2": linear(f"{embed}.timestep_embedder.linear_2"),
        "vector1": linear(f"{embed}.text_embedder.linear_1"),
        "vector2": linear(f"{embed}.text_embedder.linear_2"),
        "blocks": jax.tree.map(lambda *a: np.stack(a), *map(block, range(depth - 1))),
        "last": block(depth - 1),
        "modulation": swapped("norm_out.linear"),
        "head": linear("proj_out"),
    }


@pytest.mark.parametrize(("name", "depth"), [("plain", 3), ("normalised", 2)])
def test_it_is_diffusers(name, depth):
    """And so are the weights: this is how published ones would be read."""
    golden = {n.removeprefix(f"{name}/"): GOLDEN[n] for n in GOLDEN if n.startswith(f"{name}/")}
    weights = {n[4:]: array for n, array in golden.items() if n.startswith("net/")}
    size = {"width": 16, "heads": 2, "depth": depth, "qk_norm": name == "normalised"}
    net = network((6, 6, 3), 4, 0, context_width=5, vector_width=7, **size)
    params = of_the_peer(weights, depth, 2)
    shapes = jax.eval_shape(net.init, KEY)[0]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    inputs = {n: jnp.asarray(golden[n]) for n in ("t", "context", "vector")}
    inputs["x"] = jnp.asarray(golden["x"].transpose(0, 2, 3, 1))
    if name == "normalised":
        inputs["context_mask"] = jnp.ones((2, 4), bool)
    y = jax.jit(partial(called, net))(params, **inputs)
    expected = golden["y"].transpose(0, 2, 3, 1)
    assert expected.std() > 0.5
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "depth", "qk_norm", "billions"),
    [("medium", 24, False, 2.0), ("large", 38, True, 8.1)],
)
def test_sizes_are_the_published_ones(name, depth, qk_norm, billions):
    """The peer's own count, less the queries of the context that its last block makes and drops.

    SD3 medium and SD3.5 large, without the text encoders.
    """
    D = 64 * depth
    size = {"depth": depth, "heads": depth, "width": D, "qk_norm": qk_norm}
    net = network((128, 128, 16), 16, 0, context_width=4096, vector_width=2048, **size)
    count = sum(p.size for p in jax.tree.leaves(jax.eval_shape(net.init, KEY)[0]))
    assert count + D * D + D + 64 * qk_norm == GOLDEN[f"parameters/{name}"]
    assert round(count / 1e9, 1) == billions


# ---- what it depends on --------------------------------------------------------------------------


def test_the_output_begins_at_zero(run):
    """And a network begins without knowledge of its conditions."""
    params = jax.device_get(jax.jit(network().init)(KEY)[0])
    y = run(params, **given())
    assert y.dtype == jnp.float32
    assert y.shape == (2, 4, 8, 2)
    np.testing.assert_array_equal(y, 0)
    params["head"] = jax.tree.map(lambda p: np.ones_like(p), params["head"])
    first = run(params, **given())
    assert np.abs(first).max() > 0.1
    np.testing.assert_array_equal(run(params, **given(1) | {"x": given()["x"]}), first)


def test_what_the_output_depends_on(run):
    params, own = large(network()), given()
    first = run(params, **own)
    changes = {
        "x": own["x"].at[0].add(0.1),
        "t": own["t"].at[0].add(1.0),
        "label": own["label"].at[0].set(CLASSES),
        "vector": own["vector"].at[0, 3].add(1.0),
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
    # Tokens do not: that is for what makes the context.
    swapped = own | {n: own[n].at[:, :2].set(own[n][:, 1::-1]) for n in ("context", "context_mask")}
    np.testing.assert_allclose(run(params, **swapped), first, rtol=1e-4, atol=1e-4)


def test_every_parameter_matters_and_derivatives_are_differences(run, gradient):
    params, own = large(network()), given()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = path_name(path)
        for part in leaf if name.startswith("blocks/") else [leaf]:
            assert np.abs(part).max() > 1e-4, name
    rng, step = np.random.default_rng(2), 1e-3
    way = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    weights = np.random.default_rng(1).normal(size=(2, 4, 8, 2))
    ends = [
        run(jax.tree.map(lambda p, w, s=s: p + s * w, params, way), **own) for s in (step, -step)
    ]
    slope = (weights * (np.asarray(ends[0], np.float64) - ends[1])).sum() / (2 * step)
    along = sum(jnp.vdot(g, w) for g, w in zip(*map(jax.tree.leaves, (gradient, way)), strict=True))
    np.testing.assert_allclose(along, slope, rtol=2e-2)


def test_eight_devices_that_compute_again_give_the_gradient_of_one(gradient):
    devices = np.array(jax.devices()[:8]).reshape(1, 2, 2, 2)
    names = ("data", "fsdp", "tensor", "sequence")
    mesh = Mesh(devices, names, axis_types=(AxisType.Auto,) * 4)
    net = network(remat="full")
    places = shardings(jax.eval_shape(net.init, KEY)[0], mmdit.RULES, mesh)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    blocks, last = places["blocks"], places["last"]
    for side in ("image", "context"):
        assert blocks[side]["qkv"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor", None)
        assert blocks[side]["up"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
        for name in ("merge", "down"):
            assert blocks[side][name]["kernel"].spec[1] == "tensor"
    assert last["context"]["pair"]["kernel"].spec[1] == "tensor"
    with jax.set_mesh(mesh):
        params, own = jax.device_put(large(net), places), jax.device_put(given(), rows)
        eight = jax.jit(jax.grad(partial(weighted, net)), out_shardings=places)(params, own)
    for (path, found), expected in zip(
        jax.tree_util.tree_leaves_with_path(eight), jax.tree.leaves(gradient), strict=True
    ):
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=1e-4 * largest, err_msg=path_name(path))


def test_what_is_not_kept_is_computed_again():
    kept = {}
    for remat in ("none", "dots", "full"):
        net = network(remat=remat)
        pull = jax.eval_shape(
            lambda params, net=net: jax.vjp(lambda p: called(net, p, **given()), params)[1],
            large(net),
        )
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(pull))
    assert kept["none"] > kept["dots"] > kept["full"]


def test_dropout_acts_in_training_only_and_by_key():
    """Of one block, which is the first and the last."""
    net = network(dropout=0.5, depth=1)
    params, own = large(net), given()
    run = jax.jit(partial(called, net), static_argnames="train")
    a, b, c = (run(params, **own, key=jax.random.key(s), train=True) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.1
    still = run(params, **own, key=KEY, train=False)
    np.testing.assert_array_equal(still, run(params, **own, key=jax.random.key(1), train=False))
    assert np.abs(a - still).max() > 0.1
    with pytest.raises(ValueError, match="needs a key"):
        jax.eval_shape(partial(called, net, train=True), params, **own)


def test_bfloat16_is_close_and_parameters_stay_float32(run):
    low = network(dtype=jnp.bfloat16)
    params = large(low, 0.1)
    types = {p.dtype for p in jax.tree.leaves(jax.eval_shape(low.init, KEY))}
    assert types == {jnp.dtype("float32")}
    exact, rough = (f(params, **given()) for f in (run, jax.jit(partial(called, low))))
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_size": 3}, "patch_size=3: expected a divisor of the input's 4 x 8"),
        ({"patch_size": 0}, "patch_size=0: expected at least 1"),
        ({"heads": 3}, "heads=3: expected a divisor of width=32"),
        ({"width": 18, "heads": 2}, "width=18: expected a multiple of 4"),
        ({"depth": 0}, "depth=0: expected at least 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0: expected at least"),
        ({"dropout": 1.0}, "dropout=1.0: expected at least 0 and below 1"),
        ({"context_width": 0}, "context_width=0: expected at least 1.*the network 'dit'"),
        ({"vector_width": -1}, "vector_width=-1: expected at least 1, or 0"),
        ({"num_classes": -1}, "num_classes=-1: expected at least 1, or 0"),
        ({"remat": "some"}, "remat='some': expected one of"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        network(**options)


@pytest.mark.parametrize(
    ("options", "absent", "words"),
    [
        ({}, "label", "label: the network has num_classes=4, and none was given"),
        ({"num_classes": 0}, "", r"label: .*num_classes=0, and shape \(2,\) was given"),
        ({}, "context", "context: the network has context_width=3, and none was given"),
        ({}, "vector", "vector: the network has vector_width=5, and none was given"),
        ({"vector_width": 0}, "", r"vector: .*vector_width=0, and shape \(2, 5\) was given"),
    ],
)
def test_what_is_not_known_or_is_lacking_is_refused(options, absent, words):
    net = network(**options)
    own = {name: value for name, value in given().items() if name != absent}
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(partial(called, net), large(net), **own)


def test_diffusion_tells_it_texts_and_numbers_and_needs_a_text():
    byte, word = np.dtype(np.uint8), np.dtype(np.int32)
    fields = {
        "image": Field("image", (8, 8, 1), byte),
        "text": Field("text", (5,), word, {"vocabulary_size": 9}),
        "number": Field("real", (2,), np.dtype(np.float32)),
    }
    spec = DataSpec("toy", fields, "image", {"train": 8})

    def made(*conditions):
        section = {"context_width": 8, "conditions": conditions, "num_timesteps": 10, "steps": 3}
        section |= {"eval_timesteps": 2}
        size = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
        model = {"network": "mmdit", "denoiser": size}
        config = ConfigDict({"diffusion": section, "model": model, "precision": "float32"})
        return diffusion.build(config, spec)

    method = made("text", "number")
    batch = {n: jnp.zeros((2, *f.shape), f.dtype) for n, f in fields.items()}
    params, _ = jax.eval_shape(method.init, KEY, batch)
    names = set(params["denoiser"])
    assert {"token", "vector1", denoiser.OWN} <= names
    with pytest.raises(ConfigError, match=r"context_width=0: expected.*use the network 'dit'"):
        made("number")
