"""CLIP compares all pairs of a batch, on one device or on eight, with the same update."""

import jax
import numpy as np
import pytest
import updates

from genjax import config as configs
from genjax.data.alphabets import Bytes
from genjax.method import DataSpec, Field
from genjax.parallel import rules
from genjax.parallel.mesh import global_batch
from genjax.training.assemble import assemble

ROWS, T, SIDE, EOS = 16, 8, 8, 256
KEYS = updates.SGD | {
    "batch_size": ROWS,
    "evals.batch_size": ROWS,
    "dataset.text.length": T,
    "clip.largest_scale": 1e30,
    "model.vit.width": 64,
    "model.vit.dropout": 0.0,
    "model.text.width": 64,
    "model.text.dropout": 0.0,
    "model.cnn.channels": (16, 64),
    "model.cnn.dropout": 0.0,
}
SPREAD = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
CASES = [
    {},
    {"clip.loss": "siglip", "model.network": "cnn", "accumulation": 2},
]


def pairs():
    rng = np.random.default_rng(0)
    text = rng.integers(97, 123, (ROWS, T))
    text = np.where(np.arange(T) < rng.integers(2, T, (ROWS, 1)), text, EOS).astype(np.int32)
    image = rng.integers(0, 256, (ROWS, SIDE, SIDE, 3), np.uint8)
    facts = {"vocabulary_size": EOS + 1, "special": {"eos": EOS}, "tokenizer": Bytes({"eos": EOS})}
    fields = {
        "image": Field("image", image.shape[1:], image.dtype),
        "text": Field("text", (T,), text.dtype, facts),
    }
    return DataSpec("toy", fields, "image", {"train": 64}), {"image": image, "text": text}


def update(overrides, devices):
    """(parameters before, after, metrics, evaluation, shardings) of one step."""
    spec, rows = pairs()
    run = assemble(configs.load("configs/clip.py:tiny", KEYS | overrides), spec, devices=devices)
    with jax.set_mesh(run.mesh):
        state, batch = run.init(), global_batch(rows, run.mesh)
        before, key = jax.device_get(state.params), jax.random.key(0)
        seen = jax.jit(run.method.evaluate)(state.params, state.mutable, batch, key)
        after, output = run.step(state, batch)
    specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(after.params)}
    return before, *jax.device_get((after.params, output.metrics, seen)), specs


@pytest.mark.parametrize("keys", CASES, ids=str)
def test_eight_devices_make_the_update_of_one(keys):
    before, one, metrics_of_one, seen_by_one, _ = update(keys, jax.devices()[:1])
    _, eight, metrics, seen, specs = update(keys | SPREAD, jax.devices())
    flat = [dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (one, eight)]
    for path, start in jax.tree_util.tree_leaves_with_path(before):
        name = rules.path_name(path)
        expected, found = (start - leaves[path] for leaves in flat)
        largest = np.abs(expected).max()
        assert largest > 1e-3, name
        np.testing.assert_allclose(found, expected, atol=3e-4 * largest, err_msg=name)
    for ours, theirs in ((metrics, metrics_of_one), (seen, seen_by_one)):
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-4, err_msg=name)
    assert any("fsdp" in spec for spec in specs)
    assert any("tensor" in spec for spec in specs)
