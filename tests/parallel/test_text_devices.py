"""Sequence models of packed documents: the same update on one device and on eight."""

import jax
import numpy as np
import pytest
import updates

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data.alphabets import Characters
from genjax.method import DataSpec, Field
from genjax.parallel import rules
from genjax.parallel.mesh import global_batch
from genjax.sampling.draw import make_draw
from genjax.training.assemble import assemble

ROWS, T, VALUES, KEYS = 16, 12, 64, 88
SGD = updates.SGD | {
    "batch_size": ROWS,
    "evals.batch_size": ROWS,
    "dataset.text.length": T,
}
WIDE = {"model.lm.width": 64, "model.lm.dropout": 0.0}
SPREAD = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
CASES = [
    ("llama.py:tiny", {"accumulation": 2}, {"mesh.data": 1, "mesh.fsdp": 8}),
    (
        "llama.py:tiny",
        {"accumulation": 2, "model.lm.kv_heads": 2, "model.lm.remat": "dots"},
        SPREAD,
    ),
    ("gpt.py:tiny", {"model.lm.dropout": 0.2, "optimizer.clip_norm": 0.5}, SPREAD),
    ("gpt.py:tiny", {"model.lm.heads": 4}, SPREAD | {"mesh.fsdp": 1, "mesh.sequence": 2}),
    ("lstm.py:tiny", {}, SPREAD),
    ("tcn_music.py:tiny", {}, SPREAD),
    ("bert.py:tiny", {"accumulation": 2}, SPREAD),
    ("summarise.py:tiny", {"accumulation": 2}, SPREAD),  # cross-attention
]


def packed_rows(rolls):
    """(spec, batch): rows of one to three documents, of which not every token counts."""
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.integers(1, T + 1, (ROWS, 2)), axis=1)
    segment = (np.arange(T + 1) >= cuts[:, :1]).astype(np.int32) + (np.arange(T + 1) >= cuts[:, 1:])
    batch = {"segment": (segment + 1).astype(np.int32)}
    if rolls:
        batch["frame"] = rng.integers(0, 2, (ROWS, T + 1, KEYS), np.uint8)
    else:
        batch["token"] = rng.integers(0, VALUES, (ROWS, T + 1)).astype(np.int32)
        batch["loss_mask"] = rng.integers(0, 2, (ROWS, T + 1), np.uint8)
        batch["bytes"] = np.full(ROWS, float(T), np.float32)
    fields = {k: Field("real", v.shape[1:], v.dtype) for k, v in batch.items()}
    sizes = {"train": 64}
    if rolls:
        fields["frame"] = fields["frame"]._replace(kind="roll")
        return DataSpec("rolls", fields, "frame", sizes), batch
    facts = {"vocabulary_size": VALUES, "special": {"start": 0, "eos": 1}}
    facts["tokenizer"] = Characters("".join(map(chr, range(65, 63 + VALUES))), {"eos": 1})
    fields["token"] = fields["token"]._replace(kind="text", facts=facts)
    return DataSpec("text", fields, "token", sizes), batch


def pairs():
    """(spec, batch): sources and targets of any length, the target as long as the source."""
    rng, end = np.random.default_rng(0), 1
    spec, _ = packed_rows(rolls=False)
    facts = spec.fields["token"].facts | {"special": {"start": end, "eos": end}}
    field = Field("text", (T,), np.dtype(np.int32), facts)
    ends = rng.integers(1, T, (2, ROWS, 1))
    texts = rng.integers(2, VALUES, (2, ROWS, T)).astype(np.int32)
    source, target = np.where(np.arange(T) < ends, texts, end)
    fields = {"source": field, "target": field}
    return DataSpec("pairs", fields, "target", {"train": 64}), {"source": source, "target": target}


WIDTHS = {"bert": {"model.encoder.width": 64}}
WIDTHS["summarise"] = {"model.seq2seq.width": 64, "model.seq2seq.dropout": 0.0}


def update(location, overrides, devices):
    """(parameters before, after, metrics, shardings of the parameters) of one step."""
    name = location.partition(".")[0]
    spec, batch = pairs() if name == "summarise" else packed_rows("music" in name)
    keys = SGD | WIDTHS.get(name, WIDE) | overrides
    run = assemble(configs.load(f"configs/{location}", keys), spec, devices=devices)
    with jax.set_mesh(run.mesh):
        state = run.init()
        before = jax.device_get(state.params)
        after, output = run.step(state, global_batch(batch, run.mesh))
    specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(after.params)}
    return before, jax.device_get(after.params), jax.device_get(output.metrics), specs


@pytest.mark.parametrize("options", [{"beams": 2}, {"top_k": 9}], ids=str)
def test_eight_devices_write_the_texts_of_one(options):
    """With parameters spread over them, which are large enough that all matters."""
    texts = []
    for layout, devices in (({"mesh.data": 1}, jax.devices()[:1]), (SPREAD, jax.devices())):
        spec, _ = packed_rows(rolls=False)
        overrides = SGD | WIDE | layout | {"model.lm.kv_heads": 2}
        run = assemble(configs.load("configs/llama.py:tiny", overrides), spec, devices=devices)
        with jax.set_mesh(run.mesh):
            params = jax.tree.map(lambda p: 8 * p, run.init().params)
        prompt = np.array([3, 9, 27, 17], np.int32)[None]
        given = {"max_new_tokens": 8, **options}
        draw = make_draw(run.method, run.mesh, 4, {"prompt": prompt}, given)
        texts.append(draw(params, {"lm": {}}, jax.random.key(0)))
    assert any("tensor" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(*texts)
    assert len(np.unique(texts[0][0, 4:])) > 2


@pytest.mark.parametrize(("location", "keys", "layout"), CASES, ids=str)
def test_eight_devices_make_the_update_of_one(location, keys, layout):
    before, one, metrics_one, _ = update(location, keys, jax.devices()[:1])
    _, eight, metrics, specs = update(location, keys | layout, jax.devices())
    for path, start in jax.tree_util.tree_leaves_with_path(before):
        name = rules.path_name(path)
        gaps = []
        for tree in (one, eight):
            leaf = dict(jax.tree_util.tree_leaves_with_path(tree))[path]
            gaps.append(start - leaf)
        largest = np.abs(gaps[0]).max()
        assert largest > 1e-3, name
        np.testing.assert_allclose(gaps[1], gaps[0], atol=1e-4 * largest, rtol=1e-4, err_msg=name)
    assert metrics.keys() == metrics_one.keys()
    for name, value in metrics_one.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert (layout.get("mesh.fsdp", 1) > 1) == any("fsdp" in spec for spec in specs)
    transformers = ("llama", "gpt", "bert", "summarise")
    divided = layout.get("mesh.tensor", 1) > 1 and location.startswith(transformers)
    assert divided == any("tensor" in spec for spec in specs)


def test_a_run_over_a_split_length_has_the_same_losses():
    """Ten steps of AdamW, the length over two devices: to the tolerance of float32."""
    spec, batch = packed_rows(rolls=False)
    losses = []
    for layout, devices in (({"mesh.data": 1}, 1), ({"mesh.data": 1, "mesh.sequence": 2}, 2)):
        plain = {"batch_size": ROWS, "evals.batch_size": ROWS, "dataset.text.length": T}
        config = configs.load("configs/gpt.py:tiny", plain | layout)
        run = assemble(config, spec, devices=jax.devices()[:devices])
        with jax.set_mesh(run.mesh):
            state, found = run.init(), []
            for _ in range(10):
                state, output = run.step(state, global_batch(batch, run.mesh))
                found.append(np.divide(*jax.device_get(output.metrics["loss"])))
        losses.append(found)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[0][-1] < losses[0][0] - 0.05


@pytest.mark.parametrize(
    ("layout", "keys", "message"),
    [
        ({"mesh.sequence": 8}, {}, r"positions=12.*mesh\.sequence=8"),
        ({"mesh.sequence": 4}, {"model.lm.heads": 2}, r"heads=2.*sequence x tensor = 4"),
    ],
)
def test_a_mesh_that_cannot_split_the_length_is_refused(layout, keys, message):
    spec, _ = packed_rows(rolls=False)
    config = configs.load("configs/gpt.py:tiny", SGD | {"mesh.data": -1} | layout | keys)
    run = assemble(config, spec)
    with jax.set_mesh(run.mesh), pytest.raises(ConfigError, match=message):
        run.step.trace(run.state, run.batch)
