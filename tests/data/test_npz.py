from __future__ import annotations

import numpy as np
import pytest
from datasets import dataset

from genjax.config import ConfigError
from genjax.data import arrays, transforms
from genjax.modalities import label


def read(path, **keys):
    return arrays.load(dataset(name="npz", path=path, **keys))


def images(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def saved(tmp_path, **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def test_keras_names_give_train_and_test(tmp_path):
    x, y = images(6, 5, 4), np.arange(6, dtype=np.uint8) % 3
    raw = read(saved(tmp_path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2]))
    assert raw.target == "image"
    assert raw.fields["image"].shape == (5, 4, 1)
    assert label.num_classes(raw) == 3
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
    raw = read(saved(tmp_path, **{names[0]: x, names[1]: y}))
    assert label.num_classes(raw) == 6
    assert [int(raw.splits["train"][i]["label"]) for i in range(4)] == [0, 1, 5, 2]


def test_without_labels(tmp_path):
    raw = read(saved(tmp_path, image=images(4, 3, 3), val_images=images(2, 3, 3)))
    assert label.num_classes(raw) == 0
    assert set(raw.splits["train"][0]) == {"image"}
    assert len(raw.splits["validation"]) == 2


def test_conversion(tmp_path):
    x = images(4, 10, 6, 3)
    raw = read(saved(tmp_path, image=x, label=np.arange(4)), channels=1, image_size=4)
    assert raw.fields["image"].shape == (4, 4, 1)
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
        read(saved(tmp_path, image=array))


@pytest.mark.parametrize(
    "labels",
    [np.zeros(3, np.int64), np.zeros(4), np.array([0, 1, -1, 0]), np.zeros((4, 2), np.int64)],
)
def test_bad_labels(tmp_path, labels):
    with pytest.raises(ConfigError, match=r"array 'label'.*expected whole numbers.*\[4\]"):
        read(saved(tmp_path, image=images(4, 3, 3), label=labels))


def test_splits_of_two_shapes_need_a_size(tmp_path):
    path = saved(tmp_path, x_train=images(4, 6, 6), x_test=images(2, 8, 8))
    with pytest.raises(ConfigError, match=r"train \[4, 6, 6, 1\], test \[2, 8, 8, 1\].*image_size"):
        read(path)
    raw = read(path, image_size=6)
    assert raw.splits["test"][0]["image"].shape == raw.fields["image"].shape == (6, 6, 1)


def blobs(count, height, width, seed=1):
    """Masks of a rectangle each."""
    made, rng = np.zeros((count, height, width), np.uint8), np.random.default_rng(seed)
    for mask in made:
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        mask[top : top + height // 2, left : left + width // 2] = 1
    return made


def test_named_arrays_are_fields_of_their_kind(tmp_path):
    x, masks = images(6, 8, 6, 3), blobs(6, 8, 6)
    names = {"image_train": x, "train_mask": masks.astype(bool), "depth": np.arange(6) / 4}
    names |= {"image_test": x[:2], "mask_test": masks[:2, ..., None], "test_depth": np.zeros(2)}
    path = saved(tmp_path, **names, label=np.arange(6), other=np.zeros(9))
    raw = read(path, fields=(("mask", "mask"), ("depth", "real")))
    assert raw.target == "image"
    assert set(raw.fields) == {"image", "mask", "depth"}  # no label in test
    assert raw.fields["mask"] == ("mask", (8, 6, 1), np.dtype(np.uint8), {})
    assert raw.fields["depth"] == ("real", (), np.dtype(np.float32), {})
    example = raw.splits["train"][3]
    np.testing.assert_array_equal(example["image"], x[3])
    np.testing.assert_array_equal(example["mask"][..., 0], masks[3])
    assert example["mask"].dtype == np.uint8
    assert example["depth"] == 0.75
    assert example["depth"].dtype == np.float32
    assert {split: len(source) for split, source in raw.splits.items()} == {"train": 6, "test": 2}
    assert set(read(path).fields) == {"image"}


@pytest.mark.parametrize(
    ("kind", "array", "field"),
    [
        ("mask", blobs(6, 4, 4), ("mask", (4, 4, 1), np.dtype(np.uint8), {})),
        ("real", np.ones((6, 3), np.float16), ("real", (3,), np.dtype(np.float32), {})),
        (
            "code",
            np.arange(12).reshape(6, 2),
            ("code", (2,), np.dtype(np.int32), {"vocabulary_size": 12}),
        ),
        ("code", np.ones((6, 2)), ("code", (2,), np.dtype(np.float32), {})),
        ("image", images(6, 4, 4), ("image", (4, 4, 1), np.dtype(np.uint8), {})),
        (
            "label",
            np.arange(6),
            ("label", (), np.dtype(np.int32), {"num_classes": 6}),
        ),
    ],
)
def test_another_target_than_the_images(tmp_path, kind, array, field):
    path = saved(tmp_path, made_train=array, made_val=array[:2], image=images(6, 5, 5))
    raw = read(path, fields=(("made", kind),), target="made")
    assert raw.target == "made"
    assert raw.fields == {"made": field}  # the images are of train alone
    assert {split: len(s) for split, s in raw.splits.items()} == {"train": 6, "validation": 2}
    np.testing.assert_array_equal(np.squeeze(raw.splits["train"][4]["made"]), array[4])


def test_images_go_with_another_target(tmp_path):
    path = saved(tmp_path, mask=blobs(6, 4, 4), image=images(6, 4, 4))
    raw = read(path, fields=(("mask", "mask"),), target="mask")
    assert (raw.target, set(raw.fields)) == ("mask", {"image", "mask"})


@pytest.mark.parametrize(
    ("arrays", "keys", "said"),
    [
        ({"mask": blobs(5, 4, 4)}, {}, r"'mask'.*\[5, 4, 4\].*expected numbers of shape \[6, "),
        ({"mask": 2 * blobs(6, 4, 4)}, {}, r"'mask'.*expected zeros and ones of shape \[N, H, W\]"),
        ({"mask": blobs(6, 4, 4)[0]}, {}, r"'mask'.*expected zeros and ones"),
        ({"mask": np.array(["a"] * 6)}, {"fields": (("mask", "real"),)}, "expected numbers of sh"),
        ({}, {}, r"no array of the field 'mask' in the split train; it holds image, label\. Exp"),
        ({"mask": blobs(6, 4, 4), "x_test": images(2, 4, 4)}, {}, "'mask' in the split test"),
        ({}, {"target": "mask"}, "image, label; expected an array of the field 'mask' for"),
        (
            {"map": np.ones(6)},
            {"target": "map"},
            "target='map': expected one of image, label, m",
        ),
        ({"label": np.arange(5)}, {"fields": ()}, r"'label'.*expected whole numbers.*\[6\]"),
    ],
)
def test_arrays_that_do_not_go_together(tmp_path, arrays, keys, said):
    path = saved(tmp_path, **{"image": images(6, 4, 4), "label": np.arange(6), **arrays})
    with pytest.raises(ConfigError, match=said):
        read(path, **{"fields": (("mask", "mask"),), **keys})


def test_images_of_a_height_and_a_width(tmp_path):
    x = images(4, 10, 6, 3)
    raw = read(saved(tmp_path, image=x), image_size=(24, 48))
    assert raw.fields["image"].shape == (24, 48, 3)
    for _ in range(2):  # decoded, then from memory
        image = raw.splits["train"][3]["image"]
        np.testing.assert_array_equal(image, transforms.fit(x[3], 3, (24, 48)))


def test_masks_are_resized_and_cropped_with_their_images(tmp_path):
    masks = blobs(6, 20, 30)
    x = masks[..., None] * np.array([200, 100, 250], np.uint8)
    path = saved(tmp_path, image=x, mask=masks, whole=masks[:, ::2, ::2])
    raw = read(path, image_size=(12, 8), fields=(("mask", "mask"), ("whole", "mask")))
    assert raw.fields["mask"].shape == raw.fields["whole"].shape == (12, 8, 1)
    for index in range(6):
        example = raw.splits["train"][index]
        assert example["mask"].dtype == np.uint8
        assert set(np.unique(example["mask"])) <= {0, 1}
        np.testing.assert_array_equal(example["mask"], example["image"][..., :1] >= 100)
        assert example["image"].shape == (12, 8, 3)
        assert (example["whole"] != example["mask"]).mean() < 0.15
    taken = raw.splits["train"].take(np.arange(6))["mask"]
    assert 0 < taken.mean() < 1


def test_splits_of_two_colours_need_channels(tmp_path):
    path = saved(tmp_path, x_train=images(4, 6, 6), x_test=images(2, 6, 6, 3))
    with pytest.raises(ConfigError, match=r"differ in colour. Set dataset\.channels"):
        read(path, image_size=4)
    raw = read(path, image_size=4, channels=3)
    assert raw.splits["train"][0]["image"].shape == (4, 4, 3)
    assert raw.splits["test"][0]["image"].shape == (4, 4, 3)


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(ConfigError, match=r"needs dataset\.path"):
        read("")
    with pytest.raises(ConfigError, match=r"gone\.npz.*no such file"):
        read(str(tmp_path / "gone.npz"))
    text = tmp_path / "text.npz"
    text.write_text("hello")
    with pytest.raises(ConfigError, match=r"text\.npz cannot be read"):
        read(str(text))
    whole = (tmp_path / "cut.npz").open("wb")
    np.savez(whole, image=images(4, 3, 3))
    whole.close()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:120])
    with pytest.raises(ConfigError, match=r"cut\.npz cannot be read"):
        read(str(tmp_path / "cut.npz"))
    np.save(tmp_path / "one.npy", images(4, 3, 3))
    with pytest.raises(ConfigError, match=r"one\.npy cannot be read: it holds one array"):
        read(str(tmp_path / "one.npy"))
    with pytest.raises(ConfigError, match="holds the arrays a, b; expected images"):
        read(saved(tmp_path, a=np.zeros(3), b=np.zeros(3)))


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    path = tmp_path / "bomb.npz"
    np.savez(path, allow_pickle=True, image=np.array([Bomb()], dtype=object))
    with pytest.raises(ConfigError, match=r"bomb\.npz cannot be read: it holds object"):
        read(str(path))
    assert not (tmp_path / "exploded").exists()
