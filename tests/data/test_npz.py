from __future__ import annotations

import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.data import sources


def images(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def saved(tmp_path, **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def test_keras_names_give_train_and_test(tmp_path):
    x, y = images(6, 5, 4), np.arange(6, dtype=np.uint8) % 3
    raw = sources.npz(
        saved(tmp_path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2]), channels=0, image_size=0
    )
    assert raw.shape == (5, 4, 1)
    assert raw.num_classes == 3
    assert {split: len(source) for split, source in raw.splits.items()} == {"train": 6, "test": 2}
    example = raw.splits["train"][4]
    np.testing.assert_array_equal(example["image"], x[4][..., None])
    assert example["label"] == 1
    assert example["label"].dtype == np.int32
    assert "data.npz" in raw.route


@pytest.mark.parametrize(
    "names",
    [
        ("image", "label"),
        ("images", "labels"),
        ("train_images", "train_labels"),
        ("x", "y"),
        ("arr_0", "arr_1"),
    ],
)
def test_names_of_arrays(tmp_path, names):
    x, y = images(4, 3, 3, 3), np.array([[0], [1], [5], [2]])  # labels as MedMNIST stores them
    raw = sources.npz(saved(tmp_path, **{names[0]: x, names[1]: y}), 0, 0)
    assert raw.num_classes == 6
    assert [int(raw.splits["train"][i]["label"]) for i in range(4)] == [0, 1, 5, 2]


def test_without_labels(tmp_path):
    raw = sources.npz(saved(tmp_path, image=images(4, 3, 3), val_images=images(2, 3, 3)), 0, 0)
    assert raw.num_classes == 0
    assert set(raw.splits["train"][0]) == {"image"}
    assert len(raw.splits["validation"]) == 2


def test_conversion(tmp_path):
    x = images(4, 10, 6, 3)
    raw = sources.npz(saved(tmp_path, image=x, label=np.arange(4)), channels=1, image_size=4)
    assert raw.shape == (4, 4, 1)
    for _ in range(2):  # decoded, then from memory
        example = raw.splits["train"][3]
        assert example["image"].shape == (4, 4, 1)
        assert example["label"] == 3


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 3, 3), np.float32), r"\[4, 3, 3\] and dtype float32; expected uint8"),
        (np.zeros((4, 9), np.uint8), r"\[4, 9\].*expected uint8 of shape \[N, H, W\]"),
        (np.zeros((4, 3, 8, 8), np.uint8), r"\[4, 3, 8, 8\].*Move the channels last"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"\[4, 8, 8, 4\].*C = 1 or 3"),
    ],
)
def test_images_of_another_shape_or_dtype(tmp_path, array, says):
    with pytest.raises(ConfigError, match=says):
        sources.npz(saved(tmp_path, image=array), 0, 0)


@pytest.mark.parametrize(
    "labels",
    [np.zeros(3, np.int64), np.zeros(4), np.array([0, 1, -1, 0]), np.zeros((4, 2), np.int64)],
)
def test_bad_labels(tmp_path, labels):
    with pytest.raises(ConfigError, match=r"array 'label'.*expected whole numbers.*\[4\]"):
        sources.npz(saved(tmp_path, image=images(4, 3, 3), label=labels), 0, 0)


def test_splits_of_two_shapes_need_a_size(tmp_path):
    path = saved(tmp_path, x_train=images(4, 6, 6), x_test=images(2, 8, 8))
    with pytest.raises(ConfigError, match=r"train \[4, 6, 6, 1\], test \[2, 8, 8, 1\].*image_size"):
        sources.npz(path, 0, 0)
    raw = sources.npz(path, 0, 6)
    assert raw.splits["test"][0]["image"].shape == raw.shape == (6, 6, 1)


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(ConfigError, match=r"needs dataset\.path"):
        sources.npz("", 0, 0)
    with pytest.raises(ConfigError, match=r"gone\.npz.*no such file"):
        sources.npz(str(tmp_path / "gone.npz"), 0, 0)
    text = tmp_path / "text.npz"
    text.write_text("hello")
    with pytest.raises(ConfigError, match=r"text\.npz cannot be read"):
        sources.npz(str(text), 0, 0)
    whole = (tmp_path / "cut.npz").open("wb")
    np.savez(whole, image=images(4, 3, 3))
    whole.close()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:120])
    with pytest.raises(ConfigError, match=r"cut\.npz cannot be read"):
        sources.npz(str(tmp_path / "cut.npz"), 0, 0)
    np.save(tmp_path / "one.npy", images(4, 3, 3))
    with pytest.raises(ConfigError, match=r"one\.npy holds one array"):
        sources.npz(str(tmp_path / "one.npy"), 0, 0)
    with pytest.raises(ConfigError, match="holds the arrays a, b; expected images"):
        sources.npz(saved(tmp_path, a=np.zeros(3), b=np.zeros(3)), 0, 0)


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    path = tmp_path / "bomb.npz"
    np.savez(path, allow_pickle=True, image=np.array([Bomb()], dtype=object))
    with pytest.raises(ConfigError, match=r"bomb\.npz cannot be read: .*allow_pickle"):
        sources.npz(str(path), 0, 0)
    assert not (tmp_path / "exploded").exists()
