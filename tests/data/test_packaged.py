"""The registry packages' readers, each on a small package of the same layout made here."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import arrays, dataset
from PIL import Image

from genjax.config import ConfigError
from genjax.data import catalogue, packaged, packages, records

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Puts files where `packages.fetch` gives them: path inside the package -> content."""
    home = tmp_path / "package"

    def fetch(wanted):
        below = {p.relative_to(home).as_posix(): p for p in home.rglob("*") if p.is_file()}
        return {
            member: below[member]
            for pattern in wanted.files
            for member in packages._matching(pattern, below)
        }

    monkeypatch.setattr(packages, "fetch", fetch)

    def put(member, content):
        path = home / member
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, "utf-8")
        else:
            Image.fromarray(content).save(path, "PNG")

    return put


def load(name, **keys):
    return catalogue.load(dataset(name=name, **keys))


def captions(name):
    records_of = records.prepared(name, [records.root()]).as_data_source("train")
    return [record["caption"].decode() for record in records_of]


def said(name, rows):
    """What rows of tokens say, by the tokenizer that the data are foretold to have."""
    facts = catalogue.spec(dataset(name=name)).fields["text"].facts
    assert rows.shape[1] == 256
    assert ((rows == facts["special"]["eos"]).sum(1) > 0).all()
    return [facts["tokenizer"].decode(row) for row in rows]


def test_mnist10k_reads_the_packages_numbers(package):
    levels = RNG.integers(0, 256, (10, 2, 28, 28))
    for digit in range(10):
        numbers = ",".join(f"{v / 255:.4g}" for v in levels[digit].ravel())
        package(f"package/src/digits/{digit}.json", f'{{"data": [{numbers}]}}')
    got = arrays(load("mnist10k").splits["train"])
    np.testing.assert_array_equal(got["image"][..., 0], levels.reshape(-1, 28, 28))
    np.testing.assert_array_equal(got["label"], np.repeat(np.arange(10), 2))


def test_emoji_lie_on_white_and_have_captions_but_no_skin_tones(package):
    pictures = RNG.integers(0, 256, (3, 64, 64, 4), dtype=np.uint8)
    pictures[..., 3] = 255 * (pictures[..., 3] > 127)  # opaque or not: nothing to round
    listed = [
        ("GRINNING FACE", "1F600", "1f600.png", "Smileys & Emotion"),
        ("HASH KEY", "0023-FE0F-20E3", "0023-fe0f-20e3.png", "Symbols"),
    ]
    for picture, file in zip(pictures, [e[2] for e in listed] + ["1f44b-1f3fb.png"], strict=True):
        package(f"package/img/google/64/{file}", picture)
    keys = ("name", "unified", "image", "category")
    package("package/emoji.json", json.dumps([dict(zip(keys, e, strict=True)) for e in listed]))
    words = {"\U0001f600": ["grinning_face", "smile", ":D"], "\U0001f44b": ["wave"]}
    package("package/dist/emoji-en-US.json", json.dumps(words))

    got = arrays(load("emoji").splits["train"])
    white = np.where(pictures[:2, ..., 3:] > 0, pictures[:2, ..., :3], 255)
    np.testing.assert_array_equal(got["image"], white)
    assert [packaged.EMOJI_GROUPS[i] for i in got["label"]] == ["Smileys & Emotion", "Symbols"]
    assert captions("emoji") == ["grinning face, smile, :D", "hash key"]
    assert set(got) == {"image", "label", "text"}
    assert said("emoji", got["text"]) == captions("emoji")


def test_stamps_are_padded_to_squares_and_captioned_in_english(package):
    folder = "usr/share/tuxpaint/stamps"
    crow = RNG.integers(0, 256, (20, 10, 4), dtype=np.uint8)
    crow[..., 3] = 255 * (crow[..., 3] > 127)
    package(f"{folder}/animals/birds/crow.png", crow)
    package(f"{folder}/animals/birds/crow.txt", "A crow.\naf.utf8='n Kraai.\n")
    package(f"{folder}/town/wall.png", np.zeros((20, 40), np.uint8))
    package(f"{folder}/town/wall.txt", "A “wall”.\n")
    package(f"{folder}/town/wall_mirror.png", np.zeros((20, 40), np.uint8))
    package(f"{folder}/town/drawn.txt", "A stamp in a format that is not read.\n")

    got = arrays(load("stamps", image_size=20).splits["train"])
    expected = np.full((20, 20, 3), 255, np.uint8)
    expected[:, 5:15] = np.where(crow[..., 3:] > 0, crow[..., :3], 255)
    np.testing.assert_array_equal(got["image"][0], expected)
    assert not got["image"][1, 5:15].any()
    assert (got["image"][1, :5] == 255).all()
    assert (got["image"][1, 15:] == 255).all()
    assert [packaged.STAMP_GROUPS[i] for i in got["label"]] == ["animals", "town"]
    assert captions("stamps_20") == ["A crow.", "A “wall”."]
    assert said("stamps", got["text"]) == captions("stamps_20")
    assert arrays(load("stamps").splits["train"])["image"].shape == (2, 64, 64, 3)


def test_photos_are_cut_into_tiles_that_do_not_overlap(package):
    folder = "usr/share/doc/opencv-doc/examples/data"
    wide, grey, small = (
        RNG.integers(0, 256, s, np.uint8) for s in [(70, 130, 3), (70, 70), (63, 99, 3)]
    )
    package(f"{folder}/wide.png", wide)
    package(f"{folder}/grey.png", grey)
    package(f"{folder}/small.png", small)
    package(f"{folder}/mask.png", RNG.integers(0, 256, (70, 70, 4), np.uint8))

    got = arrays(load("photos").splits["train"])
    assert set(got) == {"image"}
    np.testing.assert_array_equal(got["image"], [wide[:64, :64], wide[:64, 64:128]])
    tiles = arrays(load("photos", image_size=32).splits["train"])["image"]
    assert len(tiles) == 3 + 2 * 4
    np.testing.assert_array_equal(tiles[0], small[:32, :32])  # the order is that of the names
    np.testing.assert_array_equal(tiles[-1], wide[32:64, 96:128])


def test_the_number_of_tiles_is_known_for_every_size():
    # Counted on the real package, built at both sizes.
    assert packaged.find("photos", 0).count == 3341
    assert packaged.find("photos", 128).count == 756
    assert packaged.find("photos", 1110).count == 2
    with pytest.raises(ConfigError, match=r"image_size=1111: .*largest is 1282x1110.*smaller"):
        packaged.find("photos", 1111)
    assert packaged.find("cifar10", 0) is None
