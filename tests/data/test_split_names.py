"""One rule for the names of splits, for every reader; what lies beside them is said."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import dataset
from PIL import Image

from genjax.config import ConfigError
from genjax.data import arrays, documents, folders, records, rolls, splits, text
from genjax.data.splits import by_split

TRIPLES = [
    ("train", "validation", "test"),
    ("Train", "Valid", "Test"),
    ("TRAINING", "val", "testing"),
    ("training_set", "dev", "eval"),
    ("train_images", "val_images", "test_images"),
    ("train2017", "val2017", "test2017"),
]


@pytest.mark.parametrize("names", TRIPLES)
def test_every_usual_spelling_is_understood(names, tmp_path):
    expected = dict(zip(("train", "validation", "test"), ([name] for name in names), strict=True))
    assert by_split(names, "here") == expected
    for number, name in enumerate(names):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("L", (2, 2), number).save(tmp_path / "pictures" / name / "0.png")
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{name}.txt").write_text(name)
    raw = folders.read(dataset(path=str(tmp_path / "pictures")))
    assert [int(s[0]["image"].max()) for s in raw.splits.values()] == [0, 1, 2]
    found = documents.corpus(dataset(name="text", path=str(tmp_path / "texts"))).read()
    assert {split: docs.texts for split, docs in found.items()} == expected


@pytest.mark.parametrize("names", [("x_train", "x_val", "X_test"), ("TrainX", "dev.x", "x-eval")])
def test_arrays_too(names, tmp_path):
    made = {name: np.full((2, 3, 3), i, np.uint8) for i, name in enumerate(names)}
    np.savez(tmp_path / "a.npz", **made)
    raw = arrays.load(dataset(name="npz", path=str(tmp_path / "a.npz")))
    assert list(raw.splits) == ["train", "validation", "test"]
    assert [int(s[0]["image"].max()) for s in raw.splits.values()] == [0, 1, 2]


def test_shards_come_in_the_order_of_their_numbers(tmp_path):
    names = ["train-00010-of-00011", "train-00002-of-00011", "val_1", "val_0"]
    assert by_split(names, "here") == {
        "train": ["train-00002-of-00011", "train-00010-of-00011"],
        "validation": ["val_0", "val_1"],
    }
    for i in (10, 2, 1):
        (tmp_path / f"train-{i}.txt").write_text(str(i))
    (tmp_path / "valid.txt").write_text("v")
    found = documents.corpus(dataset(name="text", path=str(tmp_path))).read()
    assert found["train"].texts == ["1", "2", "10"]
    assert found["validation"].texts == ["v"]


def test_a_word_of_their_own_may_stand_before_all(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.tokens").write_text(split)
    found = documents.corpus(dataset(name="text", path=str(tmp_path))).read()
    assert {split: docs.texts for split, docs in found.items()} == {
        **{"train": ["train"], "validation": ["valid"]},
        "test": ["test"],
    }
    # One alone is a document like others, and words that only look alike are none.
    assert by_split(["my-train", "notes"], "here", prefixed=True) == {}
    assert by_split(["trainer", "latest", "detest", "evaluate", "testtube"], "here", True) == {}


def test_two_of_a_split_are_one_clear_error(tmp_path):
    for names in (["val", "Validation"], ["train", "train-1"], ["test_a", "test"]):
        if names[0] != "test_a":
            with pytest.raises(ConfigError, match=rf"{names[0]}|{names[1]}.*expected one of them"):
                by_split(["train", *names], "here")
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 2, 2), np.uint8), train_images=np.zeros(1))
    with pytest.raises(ConfigError, match=r"train_images and x_train: expected one of them"):
        arrays.load(dataset(name="npz", path=str(tmp_path / "a.npz")))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train", "validation", "test", "test2015"], ["train", "validation", "test"]),
        (["train", "train_extra", "val", "test_1"], ["train", "val", "test_1"]),
        (["train_2", "train_1", "train_10"], ["train_1+train_2+train_10"]),
    ],
)
def test_of_tfds_the_split_of_the_very_name_counts_first(names, expected):
    from types import SimpleNamespace

    built = SimpleNamespace(name="a", info=SimpleNamespace(splits=names))
    assert list(records._named_splits(built).values()) == expected


def test_two_splits_of_tfds_are_refused_with_what_can_be_done():
    from types import SimpleNamespace

    built = SimpleNamespace(name="a", info=SimpleNamespace(splits=["train", "val", "dev"]))
    with pytest.raises(ConfigError, match=r"dev and val: .*use 'folder' or 'npz'\.$"):
        records._named_splits(built)


def test_arrays_by_the_rule_of_files(tmp_path):
    parts = {f"train_images_{i}": np.full((2, 3, 3), i, np.uint8) for i in (10, 2)}
    labels = {"train_set_labels": np.arange(4), "y_testdata": np.arange(1)}
    np.savez(tmp_path / "a.npz", **parts, **labels, x_test_images=np.zeros((1, 3, 3), np.uint8))
    raw = arrays.load(dataset(name="npz", path=str(tmp_path / "a.npz")))
    assert raw.splits["train"].take(np.arange(4))["image"][:, 0, 0, 0].tolist() == [2, 2, 10, 10]
    assert raw.splits["train"].take(np.arange(4))["label"].tolist() == [0, 1, 2, 3]
    assert len(raw.splits["test"]) == 1
    parts["train_images_10"] = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", **parts)
    with pytest.raises(
        ConfigError, match=r"train_images_10.*expected parts that differ only in length"
    ):
        arrays.load(dataset(name="npz", path=str(tmp_path / "a.npz")))


def test_what_lies_beside_is_said(tmp_path, caplog):
    for name in ("train", "extra"):
        (tmp_path / "p" / name).mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / "p" / name / "0.png")
    folders.read(dataset(path=str(tmp_path / "p")))
    assert "(train): not read: extra" in caplog.text
    (tmp_path / "t").mkdir()
    for name in ("train.txt", "notes.txt"):
        (tmp_path / "t" / name).write_text("x")
    documents.corpus(dataset(name="text", path=str(tmp_path / "t")))
    assert "not read, as they are next to train.txt: notes.txt" in caplog.text
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 2, 2), np.uint8), weights=np.zeros(2))
    arrays.load(dataset(name="npz", path=str(tmp_path / "a.npz")))
    assert "not read: weights" in caplog.text
    # Where there is no train, what is called test is trained on: that is said as well.
    (tmp_path / "u").mkdir()
    for name in ("test.txt", "notes.txt"):
        (tmp_path / "u" / name).write_text("x")
    found = documents.corpus(dataset(name="text", path=str(tmp_path / "u"))).read()
    assert len(found["train"].texts) == 2
    assert "all of its texts are for training, also test.txt" in caplog.text


def test_tunes_of_the_usual_names(tmp_path):
    import scipy.io

    cells = np.empty((1, 1), object)
    cells[0, 0] = np.zeros((3, rolls.KEYS), np.uint8)
    scipy.io.savemat(tmp_path / "a.mat", {"traindata": cells, "valdata": cells, "Test": cells})
    assert list(rolls.read(tmp_path / "a.mat")) == ["train", "validation", "test"]


@pytest.mark.parametrize("total", [1, 2, 4, 9])
def test_a_share_that_was_asked_for_is_never_nothing(total):
    keys = dataset(validation="10_percent", test="1_percent")
    if total < 3:
        with pytest.raises(ConfigError, match="Ask for less"):
            splits.carve({"train": total}, keys)
        with pytest.raises(ConfigError, match="Ask for less"):
            splits.cut(total, (), keys)
        return
    sizes = {split: count for split, (count, _) in splits.carve({"train": total}, keys).items()}
    assert sizes == {"train": total - 2, "validation": 1, "test": 1}
    parts = splits.cut(total, (), keys)
    assert {split: part.stop - part.start for split, part in parts.items()} == sizes


def test_a_document_too_short_to_be_cut_is_for_training():
    keys = dataset(name="text", validation="10_percent", test="10_percent")
    official = {"train": documents.Documents(["a" * 20, "b", "c" * 20], [])}
    found = {split: docs.texts for split, docs in text._split(official, False, keys).items()}
    assert found["train"] == ["a" * 16, "b", "c" * 16]
    assert found["validation"] == ["aa", "cc"]
    one = dataset(name="text", validation="10_percent")
    assert text._split(official, False, one)["train"].texts == ["a" * 18, "b", "c" * 18]
    with pytest.raises(ConfigError, match="Ask for less"):
        text._split({"train": documents.Documents(["a", "b", "c"], [])}, False, keys)
