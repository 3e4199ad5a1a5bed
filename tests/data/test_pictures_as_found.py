"""Folders of pictures as they are found: links, metadata, sizes, empty classes."""

from __future__ import annotations

import logging
import os
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from datasets import dataset
from PIL import Image

from genjax.config import ConfigError
from genjax.data import catalogue, documents, folders, transforms
from genjax.modalities import label


def put(path, value=0, size=(6, 4), **saving):
    """A grey picture, `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path, **saving)
    return path


def read(path, **keys):
    return folders.read(dataset(path=str(path), **keys))


def values(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def test_links_are_followed_and_loops_are_not(tmp_path, caplog):
    put(tmp_path / "elsewhere" / "deep" / "a.png", 1)
    put(tmp_path / "data" / "cat" / "b.png", 2)
    put(tmp_path / "data" / "dog" / "c.png", 3)
    (tmp_path / "data" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "dog" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "dog" / "gone.png").symlink_to(tmp_path / "nothing.png")
    raw = read(tmp_path / "data")
    # "again" leads to the folder above: its cats are no dogs, and it does not go round for ever.
    train = raw.splits["train"]
    labelled = sorted((int(train[i]["label"]), v) for i, v in enumerate(values(train)))
    assert labelled == [(0, 1), (0, 2), (1, 3)]
    assert "1 links lead to no file" in caplog.text
    assert "lead back to a folder that contains them" in caplog.text
    (tmp_path / "data" / "t.txt").write_text("one")
    (tmp_path / "elsewhere" / "u.txt").write_text("two")
    found = documents.corpus(dataset(name="text", path=str(tmp_path / "data"))).read()
    assert sorted(found["train"].texts) == ["one", "two"]


def exif(orientation):
    """The bytes of EXIF data whose orientation is this number, or these characters."""
    if isinstance(orientation, int):
        entry = struct.pack("<HHII", 0x0112, 3, 1, orientation)
    else:
        entry = struct.pack("<HHI4s", 0x0112, 2, len(orientation), orientation)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


@pytest.mark.parametrize("orientation", [*range(10), 65535, b"abc", b"6\0", "broken"])
def test_no_orientation_makes_a_picture_unreadable(orientation, tmp_path):
    content = b"Exif\0\0II*\0\xff" if orientation == "broken" else exif(orientation)
    put(tmp_path / "a.jpg", 9, exif=content)
    image = read(tmp_path).splits["train"][0]["image"]
    assert image.shape == ((6, 4, 1) if orientation in (5, 6, 7, 8) else (4, 6, 1))


def test_a_picture_is_made_upright_as_pillow_does(tmp_path):
    from PIL import ImageOps

    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    for number in range(1, 9):
        path = tmp_path / f"{number}.png"
        tags = Image.Exif()
        tags[0x0112] = number
        Image.fromarray(pixels).save(path, exif=tags)
        with Image.open(path) as picture:
            expected = np.asarray(ImageOps.exif_transpose(picture))
        found = transforms.read_picture(path, lambda p: transforms.pixels(p, 1))
        np.testing.assert_array_equal(found[..., 0], expected)
        size = transforms.read_picture(path, transforms.upright_size)
        assert size == expected.shape


def with_chunk(content, kind, body, before):
    """A PNG with one more chunk, ahead of the chunk `before`."""
    at = content.index(before) - 4
    chunk = struct.pack(">I", len(body)) + kind + body
    chunk += struct.pack(">I", zlib.crc32(kind + body))
    return content[:at] + chunk + content[at:]


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000)),
        (b"iCCP", b"profile\0\0" + zlib.compress(b"x" * 3_000_000)),
        (b"zTXt", b"Comment\0\x07" + b"what"),
        (b"pHYs", b"1"),
    ],
)
def test_no_text_makes_a_png_unreadable(kind, body, before, tmp_path):
    plain = put(tmp_path / "a.png", 7).read_bytes()
    (tmp_path / "a.png").write_bytes(with_chunk(plain, kind, body, before))
    assert values(read(tmp_path).splits["train"]) == [7]


def test_a_picture_beyond_the_limit_says_which_key_raises_it(tmp_path):
    put(tmp_path / "a.png", 7, size=(300, 200))
    with pytest.raises(ConfigError, match=r"a\.png.*300 x 200 are 60000.*dataset\.max_pixels=100"):
        read(tmp_path, max_pixels=100)
    assert len(read(tmp_path, max_pixels=60000).splits["train"]) == 1
    # More than Pillow takes by itself: its limits are ours.
    assert Image.MAX_IMAGE_PIXELS is None
    with pytest.raises(ConfigError, match=r"max_pixels=0: expected at least 1"):
        catalogue.load(dataset(name="folder", path=str(tmp_path), max_pixels=0))


def test_a_narrow_picture_is_cropped_before_it_grows(tmp_path):
    put(tmp_path / "a.png", 7, size=(1, 8000))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2 * 10**9,) * 2)\n"
        "from genjax.data import transforms\n"
        "image = transforms.read_picture(sys.argv[1],"
        " lambda p: transforms.pixels(p, 3, (512, 512)))\n"
        "print(image.shape, image.min(), image.max())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        timeout=60,
    )
    assert run.stdout == "(512, 512, 3) 7 7\n", run.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_what_is_cropped_first_is_what_is_cropped_last(monkeypatch):
    rng = np.random.default_rng(0)
    # Smooth, so that rounding in between shows as one level and no more.
    rough = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    picture = rough.resize((90, 41), Image.Resampling.BICUBIC)
    usual = transforms.pixels(picture, 3, (32, 24)).astype(int)
    monkeypatch.setattr(transforms, "LARGE", 0)
    other = transforms.pixels(picture, 3, (32, 24)).astype(int)
    assert np.abs(usual - other).max() <= 1


def test_an_empty_class_folder_keeps_its_number(tmp_path, caplog):
    for number, name in enumerate("acd"):
        put(tmp_path / name / "0.png", number)
    (tmp_path / "b").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.md").write_text("no class")
    raw = read(tmp_path)
    assert raw.fields["label"].facts["classes"] == ("a", "b", "c", "d")
    assert label.num_classes(raw) == 4
    assert [int(raw.splits["train"][i]["label"]) for i in range(3)] == [0, 2, 3]
    assert "the class folders b hold no pictures in train; they keep their numbers" in caplog.text
    assert "1 other files are not read (1 of .md)" in caplog.text


def test_a_folder_says_what_it_holds(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    put(tmp_path / "train" / "ant" / "0.png", 1)
    put(tmp_path / "train" / "bee" / "0.png", 1, size=(8, 8))
    put(tmp_path / "Valid" / "bee" / "1.png", 1)
    Image.new("RGBA", (6, 4)).save(tmp_path / "train" / "bee" / "1.png")
    read(tmp_path, image_size=(4,))
    told = [record.getMessage().removeprefix(f"{tmp_path}: ") for record in caplog.records]
    assert told == [
        "train has 3 pictures",
        "validation (from Valid) has 1 pictures",
        "2 classes, with their pictures in train: 0 ant (1), 1 bee (2)",
        "height x width 4 x 6 to 8 x 8, resized and cropped around the centre to 4 x 4; colour; "
        "1 with transparency, laid over white",
    ]
