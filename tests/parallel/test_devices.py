"""The same gradients on one device and on eight, however the mesh is laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.method import DataSpec, Field
from genjax.parallel import rules
from genjax.parallel.mesh import global_batch
from genjax.training.assemble import assemble

PLAIN_SGD = {
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.0,
    "optimizer.clip_norm": 0.0,
    "optimizer.learning_rate": 1.0,
    "schedule.name": "constant",
    "schedule.warmup": "",
    "batch_size": 16,
    "model.denoiser.channels": 16,
    "model.denoiser.multipliers": (1,),
    "model.denoiser.attention": (8,),
}
# Labels, a picture, a text and a vector; words enough that their embedding is sharded.
TOLD = {"diffusion.class_conditional": True, "diffusion.conditions": ("small", "text", "vector")}
BYTE, INT = np.dtype(np.uint8), np.dtype(np.int32)
SPEC = DataSpec(
    "toy",
    {
        "image": Field("image", (8, 8, 1), BYTE),
        "label": Field("label", (), INT, {"num_classes": 10}),
        "small": Field("image", (2, 2, 1), BYTE),
        "text": Field("text", (4,), INT, {"vocabulary_size": 600}),
        "vector": Field("real", (3,), np.dtype(np.float32)),
    },
    "image",
    {"train": 100, "validation": 100},
)


def rows(name, count):
    """Values of a field."""
    rng, field = np.random.default_rng(0), SPEC.fields[name]
    if field.kind == "real":
        return rng.normal(size=(count, *field.shape)).astype(field.dtype)
    most = next(iter(field.facts.values()), 256)
    return rng.integers(0, most, (count, *field.shape)).astype(field.dtype)


def begun(devices, **overrides):
    """(state, assembly): the same start on any devices."""
    config = configs.load("configs/ddpm.py:tiny", PLAIN_SGD | overrides)
    run = assemble(config, SPEC, devices=devices)
    state = run.init()

    # Off the initial zeros, through which no gradient passes.
    def move(path, leaf):
        seed = sum(map(ord, rules.path_name(path)))
        return leaf + 0.05 * np.random.default_rng(seed).normal(size=leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(move, state.params)
    shardings = jax.tree.map(lambda s: s.sharding, run.state)
    return jax.device_put(state.replace(params=params), shardings), run


def one_step(devices, **overrides):
    """(parameters before, state after, output, assembly) of a step on the same data."""
    state, run = begun(devices, **overrides)
    batch = {name: rows(name, 16) for name in SPEC.fields}
    before = jax.tree.map(np.asarray, state.params)
    with jax.set_mesh(run.mesh):
        after, output = run.step(state, global_batch(batch, run.mesh))
    return before, after, output, run


@pytest.fixture(scope="module")
def on_one_device():
    return one_step(jax.devices()[:1])


LAYOUTS = [
    {"mesh.data": 1, "mesh.fsdp": 8},
    {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2} | TOLD,
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_eight_devices_give_the_gradients_of_one(on_one_device, layout):
    if told := TOLD.items() <= layout.items():
        on_one_device = one_step(jax.devices()[:1], **TOLD)
    before, after_one, output_one, _ = on_one_device
    _, after, output, run = one_step(jax.devices(), **layout)
    assert ("conditions" in before["denoiser"]) == told
    largest = 0.0
    for path, start in jax.tree_util.tree_leaves_with_path(before):
        name = rules.path_name(path)
        one, eight = (
            start - np.asarray(leaf)
            for tree in (after_one.params, after.params)
            for p, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if rules.path_name(p) == name
        )
        np.testing.assert_allclose(eight, one, atol=2e-6, rtol=1e-4, err_msg=name)
        largest = max(largest, float(np.abs(one).max()))
    assert largest > 1e-2
    np.testing.assert_allclose(output.metrics["loss"], output_one.metrics["loss"], rtol=1e-5)
    if run.mesh.shape["fsdp"] > 1:
        specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(after.params)}
        assert any("fsdp" in spec for spec in specs)


def test_bfloat16_compute_gives_nearly_the_same_gradients(on_one_device):
    before, after_exact, output_exact, _ = on_one_device
    _, after, output, _ = one_step(jax.devices()[:1], precision="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(
        output.metrics["loss"][0], output_exact.metrics["loss"][0], rtol=0.02
    )
    exact, rough = (
        jnp.concatenate(
            [
                (np.asarray(leaf) - start).ravel()
                for leaf, start in zip(jax.tree.leaves(tree), jax.tree.leaves(before), strict=True)
            ]
        )
        for tree in (after_exact.params, after.params)
    )
    error = jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact)
    assert 1e-4 < error < 0.05


def test_accumulation_over_devices_keeps_examples_where_they_are():
    """A microbatch takes every k-th example: splitting it moves no data between devices."""
    config = configs.load("configs/ddpm.py:tiny", PLAIN_SGD | {"accumulation": 2})
    run = assemble(config, devices=jax.devices()[:8])
    from genjax.training.accumulate import part

    text = (
        jax.jit(lambda b: part(b, 2, 1)["image"].astype(jnp.int32).sum(axis=(1, 2, 3)))
        .lower(run.batch)
        .compile()
        .as_text()
    )
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text


def test_guided_samples_with_noise_are_the_same_on_any_mesh():
    """Tables and strengths are arrays of the program, which is spread over the devices."""
    from genjax.sampling.draw import make_draw

    num, known = 5, TOLD | {"diffusion.variance": "learned"}
    options = dict(guidance=2.0, guidance_kind="projected", sampler="ddpm", steps=4)
    found = []
    for overrides in ({"mesh.data": 1}, {"mesh.data": 4, "mesh.fsdp": 2}):
        devices = jax.devices()[: 1 if overrides["mesh.data"] == 1 else 8]
        state, run = begun(devices, **known, **overrides)
        given = {name: rows(name, num) for name in run.method.conditions if name in SPEC.fields}
        draw = make_draw(run.method, run.mesh, num, given, options)
        found.append(draw(state.params, state.mutable, jax.random.key(0)).astype(int))
    assert found[0].std() > 10
    assert np.abs(found[0] - found[1]).max() <= 2  # of 255: sums are taken in another order
