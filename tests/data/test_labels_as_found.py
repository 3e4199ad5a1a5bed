"""Labels and numbers as they are found."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import dataset

from genjax.config import ConfigError
from genjax.data import arrays
from genjax.modalities import label

IMAGES = np.zeros((6, 3, 3), np.uint8)


def read(tmp_path, **made):
    np.savez(tmp_path / "a.npz", **made)
    return arrays.load(dataset(name="npz", path=str(tmp_path / "a.npz")))


@pytest.mark.parametrize("largest", [2**31, 2**32 + 1, 10**9, 2**64 - 1])
def test_a_large_number_is_no_class(largest, tmp_path):
    labels = np.array([0, 1, 2, 3, 4, largest], np.uint64)
    with pytest.raises(ConfigError, match=rf"largest number is {largest}, .*6 different.*unique"):
        read(tmp_path, image=IMAGES, label=labels)
    np.savez(tmp_path / "a.npz", code=labels)
    keys = {"fields": (("code", "code"),), "target": "code"}
    with pytest.raises(ConfigError, match=rf"largest number is {largest}"):
        arrays.load(dataset(name="npz", path=str(tmp_path / "a.npz"), **keys))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_classes_of_any_whole_type_are_the_same(dtype, tmp_path):
    raw = read(tmp_path, image=IMAGES, label=np.arange(6, dtype=dtype)[::-1])
    assert [int(raw.splits["train"][i]["label"]) for i in range(6)] == [5, 4, 3, 2, 1, 0]
    assert label.num_classes(raw) == 6


def test_many_classes_are_many(tmp_path):
    many = np.arange(70_000)
    raw = read(tmp_path, image=np.zeros((70_000, 1, 1), np.uint8), label=many)
    assert label.num_classes(raw) == 70_000


def test_labels_that_a_split_lacks_are_left_out_and_it_is_said(tmp_path, caplog):
    raw = read(tmp_path, x_train=IMAGES, y_train=np.arange(6), x_test=IMAGES[:2])
    assert label.num_classes(raw) == 0
    assert "'label' is left out, also of train: there is none in test" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_are_not_finite_are_refused(value, tmp_path):
    made = np.zeros((6, 2))
    made[3, 1] = value
    np.savez(tmp_path / "a.npz", made=made)
    keys = {"fields": (("made", "real"),), "target": "made"}
    with pytest.raises(ConfigError, match=r"'made'.*1 of its numbers are not finite in float32"):
        arrays.load(dataset(name="npz", path=str(tmp_path / "a.npz"), **keys))
