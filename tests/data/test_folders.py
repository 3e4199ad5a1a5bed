from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
from datasets import dataset
from PIL import Image

from genjax.config import ConfigError
from genjax.data import folders, sources
from genjax.modalities import label


def put(path, value=0, size=(6, 4), mode="RGB"):
    """A one-coloured picture, `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (value, 0, 0) if mode == "RGB" else value
    Image.new(mode, size, colour).save(path)
    return path


def values(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def read(path, channels=0, image_size=(), on_corrupt="error"):
    keys = {"channels": channels, "image_size": image_size, "on_corrupt": on_corrupt}
    return folders.read(dataset(path=str(path), **keys))


def test_pictures_side_by_side_have_no_labels(tmp_path):
    for name, value in (("b.png", 2), ("a.bmp", 1), ("c.PNG", 3), ("d.gif", 0)):
        put(tmp_path / name, value)
    (tmp_path / "notes.txt").write_text("not a picture")
    put(tmp_path / ".hidden.png", 9)
    put(tmp_path / ".thumbnails" / "x.png", 9)
    raw = read(tmp_path)
    assert raw.fields["image"].shape == (4, 6, 3)
    assert raw.texts is None
    assert label.num_classes(raw) == 0
    assert values(raw.splits["train"]) == [1, 2, 3, 0]
    assert set(raw.splits["train"][0]) == {"image"}


def test_every_kind_of_file_is_read(tmp_path):
    for suffix in folders.SUFFIXES:
        put(tmp_path / f"x{suffix}", 0)
    assert len(read(tmp_path).splits["train"]) == len(folders.SUFFIXES) == 6


def test_class_folders_are_sorted_labels(tmp_path):
    put(tmp_path / "zebra" / "1.png", 30)
    put(tmp_path / "ant" / "deep" / "2.png", 20)
    put(tmp_path / "ant" / "1.png", 10)
    raw = read(tmp_path)
    assert label.num_classes(raw) == 2
    assert raw.fields["label"].facts["classes"] == ("ant", "zebra")
    train = raw.splits["train"]
    assert [(v, int(train[i]["label"])) for i, v in enumerate(values(train))] == [
        (10, 0),
        (20, 0),
        (30, 1),
    ]
    assert train[0]["label"].dtype == np.int32


def test_split_folders(tmp_path):
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        for i in range(count):
            put(tmp_path / split / "cat" / f"{i}.png")
        put(tmp_path / split / "dog" / "0.png")
    raw = read(tmp_path)
    assert {s: len(x) for s, x in raw.splits.items()} == {"train": 4, "validation": 3, "test": 2}
    assert int(raw.splits["test"][1]["label"]) == 1
    put(tmp_path / "test" / "emu" / "0.png")
    with pytest.raises(ConfigError, match=r"same class folders .*cat, dog.*got emu"):
        read(tmp_path)


def test_a_split_without_class_folders_beside_one_with_them_is_named(tmp_path):
    put(tmp_path / "train" / "cat" / "0.png")
    put(tmp_path / "test" / "0.png")
    with pytest.raises(ConfigError, match=r"test has no class folders, and .*train has"):
        read(tmp_path)


def test_grey_pictures_stay_grey_and_channels_convert(tmp_path):
    put(tmp_path / "a.png", 50, mode="L")
    put(tmp_path / "b.png", 60, mode="L")
    assert read(tmp_path).fields["image"].shape == (4, 6, 1)
    assert read(tmp_path, channels=3).splits["train"][1]["image"].tolist()[0][0] == [60, 60, 60]
    put(tmp_path / "c.png", 70)
    assert read(tmp_path).fields["image"].shape == (4, 6, 3)


def test_a_picture_of_another_shape_is_named(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "odd.png", size=(6, 5))
    for on_corrupt in ("error", "skip"):
        with pytest.raises(ConfigError) as caught:
            read(tmp_path, on_corrupt=on_corrupt)
        for part in ("odd.png", "(5, 6, 3)", "(4, 6, 3)", "dataset.image_size"):
            assert part in str(caught.value)
    raw = read(tmp_path, image_size=4)
    assert raw.splits["train"][1]["image"].shape == raw.fields["image"].shape == (4, 4, 3)


@pytest.fixture(params=["garbage", "empty", "truncated"])
def damaged(tmp_path, request):
    """Three good pictures and one bad, in the given way."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name in ("a.png", "b.png", "c.png", "d.png"):
        Image.fromarray(noise).save(tmp_path / name)
    bad = tmp_path / "b.png"
    content = {
        "garbage": b"this is not a picture",
        "empty": b"",
        "truncated": bad.read_bytes()[:3000],
    }
    bad.write_bytes(content[request.param])
    return tmp_path


@pytest.mark.parametrize("limit", [2**30, 0])
def test_a_corrupt_picture_is_an_error_that_names_it(damaged, monkeypatch, limit):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)

    def all_of_it():  # too large to be decoded at once: the error comes as it is read
        train = read(damaged).splits["train"]
        return [train[index] for index in range(4)]

    with pytest.raises(ConfigError, match=r"b\.png cannot be decoded.*on_corrupt=\"skip\""):
        all_of_it()


@pytest.mark.parametrize("limit", [2**30, 0])
def test_a_corrupt_picture_is_counted_and_skipped_if_so_asked(damaged, monkeypatch, caplog, limit):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)
    with caplog.at_level(logging.WARNING):
        raw = read(damaged, on_corrupt="skip")
    train = raw.splits["train"]
    assert len(train) == 3
    assert all(train[i]["image"].shape == (40, 60, 3) for i in range(3))
    (record,) = caplog.records
    assert "1 of 4 pictures" in record.getMessage()
    assert "b.png" in record.getMessage()


def test_a_label_stays_with_its_picture_when_others_are_skipped(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "0.png").write_bytes(b"no")
    put(tmp_path / "ant" / "1.png", 10)
    put(tmp_path / "bee" / "1.png", 20)
    train = read(tmp_path, on_corrupt="skip").splits["train"]
    assert [(v, int(train[i]["label"])) for i, v in enumerate(values(train))] == [(10, 0), (20, 1)]


def test_nothing_but_corrupt_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(ConfigError, match="none of the 1 pictures can be decoded"):
        read(tmp_path, on_corrupt="skip")


def test_pictures_of_a_height_and_a_width(tmp_path):
    put(tmp_path / "a.png", 5)
    put(tmp_path / "b.png", 6, size=(30, 40))
    raw = read(tmp_path, image_size=(24, 48))
    assert raw.fields["image"].shape == (24, 48, 3)
    assert [raw.splits["train"][i]["image"].shape for i in range(2)] == [(24, 48, 3)] * 2
    assert values(raw.splits["train"]) == [5, 6]


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"needs dataset\.path"):
        read("")
    with pytest.raises(ConfigError, match="no such folder"):
        read(tmp_path / "gone")
    with pytest.raises(ConfigError, match="holds no pictures"):
        read(tmp_path)
    put(tmp_path / "a.png")
    put(tmp_path / "cat" / "b.png")
    with pytest.raises(ConfigError, match=r"both pictures \(such as a\.png\) and .*cat/"):
        read(tmp_path)
    put(tmp_path / "only" / "test" / "x.png")
    with pytest.raises(ConfigError, match="no train folder"):
        read(tmp_path / "only")


def test_large_folders_are_decoded_as_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    put(tmp_path / "a.png", 5)
    raw = read(tmp_path)
    put(tmp_path / "a.png", 6)
    assert values(raw.splits["train"]) == [6]


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
@pytest.mark.parametrize("inside", [".", "pictures"])
def test_an_archive_is_read_like_the_folder_in_it(tmp_path, monkeypatch, kind, inside):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    folder = tmp_path / "made" / inside
    for name, value in (("cat", 1), ("dog", 2)):
        put(folder / name / "1.png", value)
        (folder / name / "1.txt").write_text(f"a {name}\n")
    archive = shutil.make_archive(str(tmp_path / "data"), kind, tmp_path / "made")
    for _ in range(2):  # unpacked, then out of the cache
        raw = read(archive)
        assert values(raw.splits["train"]) == [1, 2]
        assert raw.texts == {"train": ["a cat", "a dog"]}
        assert raw.fields["label"].facts["classes"] == ("cat", "dog")
    (place,) = (tmp_path / "cache" / "archives").iterdir()
    place.rename(place.with_name(f".{place.name}.killed"))
    assert len(read(archive).splits["train"]) == len(raw.splits["train"])
    assert list(place.parent.iterdir()) == [place]


def test_what_is_no_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    for name in ("a.zip", "b.tar.gz", "c.tar"):
        (tmp_path / name).write_bytes(b"nothing of the kind" * 40)
        with pytest.raises(ConfigError, match=f"{name} cannot be unpacked"):
            read(tmp_path / name)
    (tmp_path / "d.txt").write_text("text")
    with pytest.raises(ConfigError, match=r"d\.txt.*an archive that ends in \.zip"):
        read(tmp_path / "d.txt")
    assert not any((tmp_path / "cache" / "archives").iterdir())
