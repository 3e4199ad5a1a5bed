"""Pixel-art characters: drawn as resvg draws them, described as they are, kept apart by content."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from datasets import dataset

from genjax import modalities
from genjax.config import ConfigError
from genjax.data import avatars, catalogue, loader, packages, pixel_art, sources
from genjax.data.avatars import ATTRIBUTES, COLORS, NONE, SIZES, UNSEEN
from genjax.modalities import label
from genjax.networks import conditioning

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "avatars.npz")
STYLE = json.loads(GOLDEN["style"].tobytes())
HEX = json.loads(str(GOLDEN["colors"]))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Pip that fetches the golden file's style; what it was asked for."""
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    content, asked = GOLDEN["style"].tobytes(), []

    def pip(package, folder):
        asked.append(f"{package.name}=={package.version}")
        with zipfile.ZipFile(folder / "made.whl", "w") as wheel:
            wheel.writestr("dicebear_styles/pixel-art.json", content)
        return folder / "made.whl"

    digest = hashlib.sha256(content).hexdigest()
    wheel = packages.PIXEL_ART._replace(files=dict.fromkeys(packages.PIXEL_ART.files, digest))
    monkeypatch.setitem(packages._CLIENTS, "pip", pip)
    monkeypatch.setattr(avatars, "ROUTES", (("the wheel", wheel), *avatars.ROUTES[1:]))
    return asked


@pytest.fixture
def few(monkeypatch):
    """Splits of a few characters each, the first of the real ones."""
    real = avatars.characters()
    made = {s: c.at(np.arange(n)) for (s, c), n in zip(real.items(), (40, 4, 6, 8), strict=True)}
    monkeypatch.setattr(avatars, "characters", lambda: made)
    avatars._captions.cache_clear()
    yield made
    avatars._captions.cache_clear()


@pytest.fixture(scope="module")
def parts():
    return avatars.drawings(STYLE)


# ---- drawing -------------------------------------------------------------------------------------


def drawn(name, variant):
    """A part of the style, where it belongs."""
    places = {e["name"]: e.get("attributes", {}) for e in STYLE["canvas"]["elements"]}
    matrix = pixel_art.within(pixel_art.IDENTITY, places[name].get("transform"))
    return pixel_art.draw(STYLE["components"][name]["variants"][variant]["elements"], HEX, matrix)


def test_every_part_is_drawn_as_resvg_draws_it():
    assert len(GOLDEN["names"]) == 139
    for name, expected in zip(GOLDEN["names"], GOLDEN["parts"], strict=True):
        got = 255 * drawn(*name.split("/"))
        np.testing.assert_allclose(got[..., 3], expected[..., 3], atol=1, err_msg=name)
        seen = expected[..., 3] > 0
        assert seen.any()
        # resvg has 8 bits, multiplied by the opacity.
        np.testing.assert_allclose(got[seen][:, :3], expected[seen][:, :3], atol=2.5, err_msg=name)


def test_parts_lie_over_each_other_as_in_resvg():
    elements = STYLE["canvas"]["elements"]
    for chosen, expected in zip(GOLDEN["chosen"], GOLDEN["faces"], strict=True):
        layer = pixel_art.draw([e for e in elements if e["type"] == "element"], HEX)
        for name in (e["name"] for e in elements if e["type"] == "component"):
            layer = pixel_art.over(drawn(name, json.loads(chosen)[name]), layer)
        got, expected = (x * np.concatenate([x[..., 3:]] * 3 + [x[..., 3:] ** 0], -1)
                         for x in (layer, expected / 255))  # fmt: skip
        np.testing.assert_allclose(255 * got, 255 * expected, atol=2.5)


def test_paths_cover_what_the_rules_of_svg_say():
    ring = "M1 1h4v4H1zm1 1v2h2V2z"  # a square with a square hole, wound the other way
    hole = pixel_art.covered(ring)
    assert hole.sum() == 16 - 4
    assert not hole[2:4, 2:4].any()
    same = "M1 1h4v4H1zM2 2h2v2H2z"  # wound alike: a hole only by the rule evenodd
    assert pixel_art.covered(same).sum() == 16
    np.testing.assert_array_equal(pixel_art.covered(same, evenodd=True), hole)
    np.testing.assert_array_equal(pixel_art.covered("M1 1 5 1l0 4-4 0z"), pixel_art.covered(same))
    mirrored = pixel_art.within(pixel_art.IDENTITY, "matrix(-1 0 0 1 16 0)")
    np.testing.assert_array_equal(pixel_art.covered("M0 0h3v1H0z", mirrored)[0, 13:], True)
    assert pixel_art.covered("M0 0h3v1H0z", mirrored).sum() == 3


@pytest.mark.parametrize(
    ("element", "said"),
    [
        ({"name": "path", "attributes": {"d": "M0 0C1 1 2 2 3 3z"}}, "command 'C'"),
        ({"name": "circle", "attributes": {}}, "element 'circle'"),
        ({"name": "g", "attributes": {"transform": "rotate(45)"}, "children": []}, "rotate"),
    ],
)
def test_what_is_not_known_is_refused(element, said):
    with pytest.raises(ValueError, match=said):
        pixel_art.draw([element], {})


# ---- which characters there are ------------------------------------------------------------------


def test_the_first_numbers_are_splitmix64s():
    # The reference implementation's first two for the seed 0 (Vigna, splitmix64.c).
    first = sources.splitmix64(np.arange(2, dtype=np.uint64))
    assert [hex(int(n)) for n in first] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


def test_the_same_characters_are_drawn_on_every_machine():
    digest = hashlib.sha256()
    for split, made in avatars.characters().items():
        columns = np.stack([v.astype("<i4") for v in made.values.values()])
        digest.update(split.encode() + columns.tobytes())
        digest.update(json.dumps(avatars.captions(made)).encode())
    assert digest.hexdigest() == (
        "f046ffb4f009f25115a1bc6e24150e547d4e2c9bd5c9267217ef23cb99e47808"
    )


def test_no_combination_is_in_two_splits_or_twice_in_one():
    made = avatars.characters()
    assert {split: c.count for split, c in made.items()} == SIZES
    rows = np.concatenate([np.stack([*c.values.values()], 1) for c in made.values()])
    assert len(np.unique(rows, axis=0)) == sum(SIZES.values())


def test_pairs_are_held_out_but_their_values_are_common():
    made = {split: c.named() for split, c in avatars.characters().items()}
    for pair in UNSEEN:
        have = {
            split: sum(all(r[n] == v for n, v in pair) for r in of) for split, of in made.items()
        }
        assert have["train"] == have["validation"] == have["test"] == 0
        assert have["test_unseen"] > 40, pair
    assert all(any(all(r[n] == v for n, v in p) for p in UNSEEN) for r in made["test_unseen"])
    for name, values in ATTRIBUTES.items():
        counts = {value: sum(row[name] == value for row in made["train"]) for value in values}
        assert min(counts.values()) > 400, counts


def test_hats_and_earrings_are_worn_where_they_show():
    for made in avatars.characters().values():
        for of in made.named():
            assert (of["hat"] == NONE) == (of["hat_color"] == NONE)
            assert of["hat"] == NONE or of["hair"] in avatars.UNDER_HATS
            assert of["earrings"] == NONE or of["hair"] in avatars.WITH_EARS


# ---- what is said of them ------------------------------------------------------------------------


def read(caption):
    """Attribute -> the value that a caption names, by the words alone."""
    said = {}
    either = {name: "|".join(v for v in values if v != NONE) for name, values in ATTRIBUTES.items()}
    hair, color, shirts = (either[name] for name in ("hair", "hair_color", "clothes_color"))
    for pattern in (
        rf"(?P<hair>{hair}) (?P<hair_color>{color}) hair",
        rf"(?P<hair_color>{color}) hair in a (?P<hair>bun)",
        rf"(?P<hair_color>{color}) (?P<hair>bob|pigtails)",
        rf"(?P<eyes>{either['eyes']}) eyes",
        rf"(?P<skin>{either['skin']}) skin",
        rf"(?P<mouth>{either['mouth']})(?! hair)",
        rf"(?P<clothes_color>light blue|{shirts}) (?P<clothes>{either['clothes']})",
        rf"(?P<hat_color>{either['hat_color']}) (?P<hat>{either['hat']})",
        r"\b(?P<glasses>sunglasses|glasses)\b",
        r"\ba (?P<beard>beard|goatee)\b",
        rf"(?P<earrings>{either['earrings']}) earrings",
    ):
        if match := re.search(pattern, caption):
            said |= match.groupdict()
    return said


def test_captions_say_what_is_there_and_all_of_it():
    number_of_words = set()
    for split, made in avatars.characters().items():
        made = made.at(np.arange(500))
        for of, texts in zip(made.named(), avatars.captions(made), strict=True):
            there = {name: value for name, value in of.items() if value != NONE}
            assert len(set(texts)) == len(texts) == avatars.WORDINGS
            for text in texts[:-1]:
                assert read(text) == there, (split, text)
            assert read(texts[-1]).items() <= there.items(), texts[-1]
            assert read(texts[-1])
            number_of_words.add(len(read(texts[-1])))
            assert all(len(text) < 160 and not re.search(r"\ba [aeiou]", text) for text in texts)
    assert {1, 2, 3, 4} <= number_of_words


def test_pictures_show_the_colours_that_are_named(parts):
    made = avatars.characters()["test_unseen"].at(np.arange(300))
    for of, image in zip(made.named(), avatars.compose(made, parts), strict=True):
        pixels = image.reshape(-1, 3).tolist()
        for name in ("hair_color", "hat_color", "clothes_color", "earrings"):
            if of[name] != NONE:
                hexes = [list(bytes.fromhex(c[1:])) for c in COLORS[name][of[name]]]
                assert sum(pixel in hexes for pixel in pixels) >= 3, (name, of)


def test_every_attribute_can_be_seen(parts):
    """Another value of one attribute changes the picture, whatever the others are."""
    made = avatars.characters()["test"].at(np.arange(400))
    images = avatars.compose(made, parts).astype(int)
    fitting = {"hat": avatars.UNDER_HATS, "earrings": avatars.WITH_EARS}
    for name, values in ATTRIBUTES.items():
        for number, value in enumerate(values):
            changed = {n: v.copy() for n, v in made.values.items()}
            changed[name][:] = number
            compared = made.values[name] != number
            for other, hairs in fitting.items():
                fits = np.isin(changed["hair"], [ATTRIBUTES["hair"].index(h) for h in hairs])
                compared &= fits | (changed[other] == 0)
            if name == "hat":
                color = np.where(made.values["hat_color"] > 0, made.values["hat_color"], 1)
                changed["hat_color"] = color * (number > 0)
            if name == "hat_color":
                compared &= (made.values["hat"] > 0) & (number > 0)
            other = avatars.compose(made._replace(values=changed), parts)
            pixels = (np.abs(images - other).max(-1) > 24).sum((1, 2))
            assert not compared.any() or pixels[compared].min() >= 2, (name, value)


# ---- the data set --------------------------------------------------------------------------------


def test_what_it_looks_like_is_known_without_data(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "none"))
    for keys in ({}, {"text.tokenizer": "characters"}):
        spec = catalogue.spec(dataset(name="avatars", image_size=32, **keys))
        assert spec.target == "image"
        assert spec.generated.shape == (32, 32, 3)
        assert spec.sizes == SIZES
        assert set(spec.fields) == {"image", "text", *ATTRIBUTES}
        assert spec.fields["text"].shape == (256,)
        assert (
            spec.fields["hair"].facts["classes"][label.parse("bun", spec.fields["hair"])] == "bun"
        )
        assert (
            conditioning.way_of("hair", spec.fields["hair"]) == "vector"
        )  # denoisers take it as it is
    assert not (tmp_path / "none").exists()


def test_examples_have_their_pictures_captions_and_attributes(files, few, parts):
    asked = dataset(name="avatars", validation="10_percent")
    loaded = catalogue.load(asked)
    assert loaded.spec == catalogue.spec(asked)
    assert loaded.route == "the wheel"
    assert files == ["dicebear-styles==10.6.0"]
    assert {split: len(source) for split, source in loaded.splits.items()} == {
        **{"train": 40, "validation": 4, "test": 6, "test_unseen": 8}
    }
    tokenizer = loaded.spec.fields["text"].facts["tokenizer"]
    for split, source in loaded.splits.items():
        rows = source.take(np.arange(len(source)))
        np.testing.assert_array_equal(rows["image"], avatars.compose(few[split], parts))
        for name in ATTRIBUTES:
            np.testing.assert_array_equal(rows[name], few[split].values[name])
        texts = [tuple(map(tokenizer.decode, ids)) for ids in rows["text"]]
        assert texts == avatars.captions(few[split])
    large = catalogue.load(dataset(name="avatars", image_size=32)).splits["test"]
    small = loaded.splits["test"][3]["image"]
    np.testing.assert_array_equal(large[3]["image"], np.kron(small, np.ones((2, 2, 1), np.uint8)))
    grey = catalogue.load(dataset(name="avatars", channels=1)).splits["test"][3]["image"]
    luma = np.rint(small @ [0.299, 0.587, 0.114])  # ITU-R 601
    np.testing.assert_allclose(grey[..., 0], luma, atol=1)


def test_training_draws_captions_and_evaluations_take_the_first(files, few):
    asked = dataset(name="avatars", **{"text.length": 160})
    loaded = catalogue.load(asked)
    tokenizer = loaded.spec.fields["text"].facts["tokenizer"]
    train = modalities.transforms(asked, loaded.spec, train=True)
    wording_of = {t: i for texts in avatars.captions(few["train"]) for i, t in enumerate(texts)}

    def texts(step, seed=0, **parts):
        source = loaded.splits["train"]
        batches = loader.train_batches(source, seed=seed, batch_size=40, transform=train, **parts)
        batch = batches[step]
        assert batch["text"].shape[1:] == loaded.spec.fields["text"].shape
        read_back = [tokenizer.decode(row) for row in batch["text"]]
        for index, said in enumerate(read_back):  # of the attributes beside it
            values = {n: ATTRIBUTES[n][batch[n][index]] for n in ATTRIBUTES}
            assert read(said).items() <= values.items()
        return read_back

    epochs = [texts(step) for step in range(3)]
    assert texts(1) == epochs[1]
    drawn_wordings = [[wording_of[t] for t in epoch] for epoch in epochs]
    assert all(set(epoch) == {0, 1, 2, 3} for epoch in drawn_wordings)
    assert sorted(epochs[0]) != sorted(epochs[1])  # the same pictures in other words
    halves = [texts(1, process_index=p, process_count=2) for p in range(2)]
    assert halves[0] + halves[1] == epochs[1]

    held_out = modalities.transforms(asked, loaded.spec, train=False)
    batches = loader.eval_batches(loaded.splits["test_unseen"], batch_size=8, transform=held_out)
    ((batch, _),) = batches
    first = [texts[0] for texts in avatars.captions(few["test_unseen"])]
    assert [tokenizer.decode(row) for row in batch["text"]] == first


@pytest.mark.parametrize("size", [24, (16, 32), 8])
def test_a_size_that_no_pixel_fits_is_refused(size):
    with pytest.raises(ConfigError, match=r"image_size=.*Expected a multiple of 16, such as 32"):
        catalogue.spec(dataset(name="avatars", image_size=size))


def test_npm_is_tried_next_and_a_failure_names_both(files, monkeypatch):
    def fails(package, folder):
        raise ConfigError(f"no {package.name} here")

    monkeypatch.setitem(packages._CLIENTS, "pip", fails)
    monkeypatch.setitem(packages._CLIENTS, "npm", fails)
    with pytest.raises(ConfigError) as caught:
        catalogue.load(dataset(name="avatars"))
    for part in ("'avatars'", "no dicebear-styles here", "no @dicebear/styles here", "GENJAX_DATA"):
        assert part in str(caught.value)


def test_a_damaged_style_is_fetched_again_and_it_is_said(files, few, tmp_path, caplog):
    whole = catalogue.load(dataset(name="avatars")).splits["test"][0]["image"]
    (path,) = (tmp_path / "cache").rglob("pixel-art.json")
    path.write_bytes(path.read_bytes().replace(b"M", b"L", 1))
    again = catalogue.load(dataset(name="avatars")).splits["test"][0]["image"]
    np.testing.assert_array_equal(again, whole)
    assert "damaged and will be fetched again" in caplog.text
    assert len(files) == 2


def test_a_style_of_another_licence_is_refused(tmp_path):
    changed = STYLE | {"meta": {"license": {"name": "CC BY 4.0"}}}
    (tmp_path / "pixel-art.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match=r"'CC BY 4\.0', expected CC0"):
        avatars.style(tmp_path / "pixel-art.json")
