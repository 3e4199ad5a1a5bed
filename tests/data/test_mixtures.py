"""Mixtures: shares, epochs, and batches that depend on the seed and the step alone."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import catalogue, loader, mixture, sources
from genjax.data.digest import content_digests
from genjax.method import DataSpec, Field


def numbers(*values):
    return sources.Columns({"x": np.array(values, np.int32)})


def dataset(**changed):
    changed = {f"dataset.{key}": value for key, value in changed.items()}
    return configs.override(configs.base(), {"dataset.name": "mixture", **changed}).dataset


def test_an_epoch_has_the_shares_and_every_example():
    parts = [numbers(*range(10)), numbers(100, 101), numbers(*range(200, 206))]
    given = mixture.places([10, 2, 6], [2.0, 1.0, 1.0])
    assert given == [12, 6, 6]  # the third has six examples in a quarter of the epoch
    mixed = mixture.Mixed(parts, given)
    rows = mixed.take(np.arange(len(mixed)))["x"]
    assert Counter(rows // 100) == {0: 12, 1: 6, 2: 6}
    assert Counter(rows[rows // 100 == 1]) == {100: 3, 101: 3}
    assert {int(x) for x in rows if x < 100} == set(range(10))
    shuffled = np.array([17, 3, 23, 12, 3])
    expected = [int(mixed[int(i)]["x"]) for i in shuffled]
    np.testing.assert_array_equal(mixed.take(shuffled)["x"], expected)


def test_no_share_is_so_small_that_an_epoch_lacks_an_example():
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes, weights = rng.integers(1, 50, 3), rng.uniform(0.01, 1, 3)
        given = np.array(mixture.places(list(sizes), list(weights)))
        assert (given >= sizes).all()
        np.testing.assert_allclose(
            given / given.sum(), weights / weights.sum(), atol=1 / sizes.max()
        )
    with pytest.raises(ConfigError, match="an epoch has fewer than"):
        mixture.places([10, 1000], [1.0, 1e-9])


def test_batches_are_of_the_seed_and_the_step():
    mixed = mixture.Mixed([numbers(*range(64)), numbers(*range(100, 108))], [64, 64])

    def batch(step, seed=0, **process):
        return loader.train_batches(mixed, seed=seed, batch_size=16, **process)[step]["x"]

    np.testing.assert_array_equal(batch(5), batch(5))
    assert (batch(5) != batch(5, seed=1)).any()
    halves = [batch(5, process_index=i, process_count=2) for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), batch(5))
    epoch = np.concatenate([batch(step) for step in range(8)])
    assert (epoch >= 100).sum() == 64


def field(shape=(), kind="real", **facts):
    return Field(kind, shape, np.dtype(np.int32), facts)


def fake(specs):
    """`load_one` of data sets that are made here."""

    def load(one):
        assert one.mixture == ()
        spec = specs[one.name]
        rows = {name: np.zeros((4, *f.shape), f.dtype) for name, f in spec.fields.items()}
        splits = {split: sources.Columns(rows) for split in spec.sizes}
        return SimpleNamespace(spec=spec, splits=splits, route=f"route of {one.name}")

    return load


def test_the_examples_of_all_are_alike():
    def spec(**fields):
        return DataSpec("made", fields, "x", {"train": 4, "validation": 4})

    specs = {
        "a": spec(x=field(), label=field(kind="label", num_classes=3)),
        "b": spec(x=field(), label=field(kind="label", num_classes=3)),
        "wide": spec(x=field((2,)), label=field(kind="label", num_classes=3)),
        "classes": spec(x=field(), label=field(kind="label", num_classes=4)),
        "fewer": spec(x=field()),
    }

    def load(*names):
        return mixture.load(dataset(mixture=tuple((n, "", 1.0) for n in names)), fake(specs))

    found, splits, route = load("a", "b")
    assert found.sizes == {"train": 8, "validation": 8}
    assert len(splits["train"]) == 8
    assert "route of b" in route
    for other, message in {
        "wide": r"shape of the field 'x' of wide is \(2,\), expected \(\), as in a",
        "classes": r"num_classes of the field 'label' of classes is 4, expected 3",
        "fewer": r"the fields of fewer=\['x'\]: expected those of a",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load("a", other)
    for bad in ((), (("a", ""),), (("a", "", 0.0),), (("mixture", "", 1.0),), "a"):
        with pytest.raises(ConfigError, match=r"dataset.mixture=.*expected at least one \(name"):
            mixture.load(SimpleNamespace(mixture=bad), fake(specs))


@pytest.mark.parametrize("documents", ["packed", "padded", "stream"])
def test_pairs_and_plain_text(documents, tmp_path, monkeypatch):
    """Of plain text every token counts; of JSON Lines with prompts, what follows the prompt."""
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    lines = [f'{{"ask": "QUESTION {i}?", "text": "ANSWER {i}."}}' for i in range(20)]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    (tmp_path / "plain").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "plain" / f"{name}.txt").write_text("plain words. " * 40)
    entries = (
        ("text", str(tmp_path / "asked.jsonl"), 3.0),
        ("text", str(tmp_path / "plain"), 1.0),
    )
    changed = {"text.documents": documents, "text.length": 16, "text.prompt_field": "ask"}
    given = dataset(mixture=entries, validation="10_percent", **changed)
    loaded = catalogue.load(given)
    train = loaded.splits["train"]
    rows = train.take(np.arange(len(train)))
    assert set(rows) == set(loaded.spec.fields) >= {"token", "loss_mask"}
    tokenizer = loaded.spec.generated.facts["tokenizer"]
    plain = np.array([any(map(str.islower, tokenizer.decode(row))) for row in rows["token"]])
    np.testing.assert_allclose(plain.mean(), 0.25, atol=0.01)
    shown = rows.get("segment", np.ones_like(rows["token"]))[plain][:, 1:] > 0
    assert rows["loss_mask"][plain][:, 1:][shown].all()
    assert not rows["loss_mask"][~plain].all()
    sizes = [len(s) for s in loaded.splits.values()]
    assert sizes == list(loaded.spec.sizes.values())
    assert content_digests(loaded).keys() == loaded.splits.keys()
    if documents == "stream":
        assert train[0].shifted(1)["loss_mask"].shape == (17,)
    with pytest.raises(ConfigError, match=r"of the field 'token'.*--mode=tokenizer"):
        catalogue.load(dataset(mixture=entries, **changed, **{"text.tokenizer": "characters"}))
