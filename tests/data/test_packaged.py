"""The registry packages' readers, each on a small package of the same layout made here."""

from __future__ import annotations

import io
import json
import logging
import sys
import types

import numpy as np
import pytest
from datasets import arrays, dataset
from PIL import Image

from genjax.config import ConfigError
from genjax.data import catalogue, clipart, packaged, packages, records

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


def groups(name):
    records_of = records.prepared(name, [records.root()]).as_data_source("train")
    return [record[records.GROUP].decode() for record in records_of]


def test_emoji_in_all_skin_tones_share_a_group_and_its_words(package):
    entries, pictures = [], {}
    for code in ("1F44B", "1F46B", "1F600"):
        name = {"1F44B": "WAVING HAND SIGN", "1F46B": "COUPLE", "1F600": "GRINNING FACE"}[code]
        tones = {"1F44B": ("1F3FB", "1F3FF"), "1F46B": ("1F3FC-1F3FE", "1F3FD-1F3FD")}.get(code, ())
        variants = {t: {"image": f"{code}-{t}.png".lower()} for t in tones}
        entry = {"name": name, "unified": code, "image": f"{code}.png".lower()}
        entries.append(entry | {"category": "People & Body"})
        entries[-1] |= {"skin_variations": variants} if variants else {}
        pictures |= dict.fromkeys([entry["image"], *(v["image"] for v in variants.values())])
    for number, file in enumerate(pictures):
        package(f"package/img/google/64/{file}", np.full((64, 64, 3), number, np.uint8))
    package("package/emoji.json", json.dumps(entries))
    package("package/dist/emoji-en-US.json", json.dumps({"\U0001f44b": ["wave", "hello"]}))

    got = arrays(load("emoji_tones").splits["train"])
    assert got["image"][:, 0, 0, 0].tolist() == list(range(7))
    assert captions("emoji_tones") == [
        "waving hand sign, wave, hello",
        "waving hand sign, light skin tone, wave, hello",
        "waving hand sign, dark skin tone, wave, hello",
        "couple",
        "couple, medium-light skin tone, medium-dark skin tone",
        "couple, medium skin tone",
        "grinning face",
    ]
    assert groups("emoji_tones") == ["1F44B"] * 3 + ["1F46B"] * 3 + ["1F600"]
    asked = dataset(name="emoji_tones", validation="2_examples", test="1_examples")
    loaded = catalogue.load(asked)
    assert catalogue.spec(asked) == loaded.spec
    parts = {
        split: {groups("emoji_tones")[i] for i in arrays(source)["image"][:, 0, 0, 0]}
        for split, source in loaded.splits.items()
    }
    assert set(parts) == {"train", "validation", "test"}
    assert sum(map(len, parts.values())) == 3  # each group in one split
    assert sum(loaded.spec.sizes.values()) == 7


def test_openmoji_has_tags_of_the_emoji_in_every_skin_tone(package, monkeypatch, caplog):
    def rasterised(svg, width, height, skip_system_fonts):
        content = io.BytesIO()
        Image.new("RGBA", (width, height), svg).save(content, "PNG")
        return content.getvalue()

    library = types.SimpleNamespace(svg_to_bytes=rasterised)
    monkeypatch.setitem(sys.modules, "resvg_py", library)
    keys = ("hexcode", "group", "annotation", "tags", "openmoji_tags", "skintone_base_hexcode")
    listed = [
        ("1F575-FE0F", "people-body", "detective", "sleuth, spy", "spy, police", ""),
        ("1F575-1F3FB", "people-body", "detective: light skin tone", "", "", "1F575-FE0F"),
        ("E000", "extras-openmoji", "goldfish of Le\ufffdn", "", "fish", ""),
    ]
    entries = [dict(zip(keys, entry, strict=True)) for entry in listed]
    package("package/data/openmoji.json", json.dumps(entries, ensure_ascii=False))
    for entry, colour in zip(listed, ("#ff0000", "#00ff00", "#0000ff80"), strict=True):
        package(f"package/color/svg/{entry[0]}.svg", colour)

    with caplog.at_level(logging.INFO):
        got = arrays(load("openmoji", image_size=8).splits["train"])
    assert got["image"].shape == (3, 8, 8, 3)
    corners = got["image"][:, 0, 0].tolist()
    assert corners == [[255, 0, 0], [0, 255, 0], [127, 127, 255]]  # half of blue on white
    assert [clipart.OPENMOJI_GROUPS[i] for i in got["label"]] == [entry[1] for entry in listed]
    assert captions("openmoji_8") == [
        "detective, sleuth, spy, police",
        "detective: light skin tone, sleuth, spy, police",
        "goldfish of león, fish",
    ]
    assert groups("openmoji_8") == ["1F575-FE0F", "1F575-FE0F", "E000"]
    assert "designed by OpenMoji" in caplog.text
    assert "CC BY-SA 4.0" in caplog.text

    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ConfigError, match=r"resvg-py.* not installed. Run GENJAX_EXTRAS=svg"):
        load("openmoji", image_size=9)


def svg(title, *keywords, creator="Jo Doe"):
    """A drawing of the library, with names of its publisher that are not those of the drawing."""
    listed = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    agent = "<cc:Agent><dc:title>{}</dc:title></cc:Agent>"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="c" xmlns:dc="d" xmlns:rdf="r">'
        f"<metadata><rdf:RDF><cc:Work><dc:title>{title}</dc:title><dc:subject><rdf:Bag>{listed}"
        f"</rdf:Bag></dc:subject><dc:publisher>{agent.format('Library')}</dc:publisher>"
        f"<dc:creator>{agent.format(creator)}</dc:creator></cc:Work></rdf:RDF></metadata></svg>"
    )


def test_clip_art_is_captioned_by_its_drawings(package, monkeypatch):
    monkeypatch.setattr("genjax.data.transforms.LARGE", 60)
    described = {
        "animals/birds/owl_jo_do_01": svg(
            "Clipart by Jo Doe - An  Owl_bird.svg", "bird", "Night_bird"
        ),
        "animals/birds/owl_jo_do_02": svg("Owl two", "bird", "", "hash(0x8a095fc)", "jo doe"),
        "computer/icons/left_out": svg("icon", "icon"),
        "shapes/stars/left_out": svg("star", "star"),
        "people/large": svg("large"),
        "signs_and_symbols/flags/red_flag_jo_doe_": svg("Flags", "flag", "unsorted"),
        "signs_and_symbols/flags/blue_flag": svg("Flags", "flag"),
        "signs_and_symbols/flags/a_3_jo_doe_01": svg("Flags", "flag"),
        "signs_and_symbols/flags/b": svg("flags", "flag"),
        "computer/mouse": None,
        "containers/box": svg("", "box"),
    }
    for number, (name, drawing) in enumerate(described.items()):
        size = (8, 8, 3) if name == "people/large" else (10, 5, 3)
        package(f"usr/share/openclipart/png/{name}.png", np.full(size, number, np.uint8))
        if drawing:
            package(f"usr/share/openclipart/svg/{name}.svg", drawing)
    package("usr/share/openclipart/svg/animals/not_drawn.svg", svg("no picture"))

    got = arrays(load("openclipart", image_size=10).splits["train"])
    names = list(described)
    read = [names[i] for i in got["image"][:, 0, 5, 0]]
    made = dict(zip(read, captions("openclipart_10"), strict=True))
    assert made == {
        "animals/birds/owl_jo_do_01": "an owl bird, bird, night bird",
        "animals/birds/owl_jo_do_02": "owl two, bird",
        "computer/mouse": "mouse",
        "containers/box": "box",
        "signs_and_symbols/flags/a_3_jo_doe_01": "a 3, flag",
        "signs_and_symbols/flags/b": "b, flag",
        "signs_and_symbols/flags/blue_flag": "blue flag, flag",
        "signs_and_symbols/flags/red_flag_jo_doe_": "red flag, flag",
    }
    assert (got["image"][:, :, [0, 1, 8, 9]] == 255).all()  # padded, not cropped
    labels = dict(zip(read, got["label"], strict=True))
    assert all(clipart.OPENCLIPART_GROUPS[i] == name.split("/")[0] for name, i in labels.items())
    made = dict(zip(read, groups("openclipart_10"), strict=True))
    assert made["animals/birds/owl_jo_do_01"] == made["animals/birds/owl_jo_do_02"]
    assert len(set(made.values())) == 7


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
