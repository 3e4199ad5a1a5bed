"""Faces in pixel art with captions and true attributes, composed of the parts of a drawn style.

The parts and colours are those of DiceBear's style "pixel-art" (https://www.dicebear.com, CC0 1.0).
An attribute's value stands for one or more variants of a part, or colours, between which chance
decides. Each picture has its own combination of attributes, so that no combination is in two
splits. The pairs of values of `UNSEEN` occur together only in the split `test_unseen`, though each
value alone is common in train. Combinations in which one part would hide another are not drawn:
hats are worn over hair that shows below them, and earrings where no hair is.

Which combinations, variants and captions there are does not depend on the style's files.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int32, UInt8
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import packages, pixel_art, sources
from genjax.data.transforms import fit, height_and_width
from genjax.method import Field

NAMES = ("avatars",)
# Split -> the number of its pictures. Those of one split do not depend on the others' numbers,
# except that train comes last.
SIZES = {"train": 20_000, "validation": 1_000, "test": 2_000, "test_unseen": 2_000}
NONE = "none"

# Attribute -> value -> the variants of the style's part, or its colours. "none" has no part.
PARTS = {
    "hair": {
        "short": ("short02", "short08", "short10", "short14", "short15", "short16", "short17"),
        "curly": ("short11", "short13", "long15"),
        "thinning": ("short18",),
        "bun": ("long05",),
        "bob": ("long04", "long16", "long17", "long21"),
        "long": ("long01", "long03", "long07", "long09", "long12", "long13", "long20"),
        "pigtails": ("long02", "long18"),
    },
    "eyes": {
        "wide": ("variant01", "variant06", "variant07", "variant08", "variant09", "variant11"),
        "small": ("variant03", "variant04"),
        "tired": ("variant02", "variant05", "variant12"),
    },
    "mouth": {
        "happy": ("happy06", "happy07", "happy08", "happy09"),
        "serious": ("sad04", "sad05", "sad06"),
        "sad": ("sad01", "sad02", "sad03"),
        "surprised": ("happy01", "happy13"),
    },
    "clothes": {
        "shirt": ("variant05", "variant11", "variant14"),
        "striped shirt": ("variant13",),
        "checked shirt": ("variant06",),
        "turtleneck": ("variant12",),
        "tank top": ("variant10", "variant17", "variant19"),
    },
    "glasses": {
        NONE: (),
        "glasses": ("light05", "light06", "light07"),
        "sunglasses": ("dark05", "dark06", "dark07"),
    },
    "hat": {
        NONE: (),
        "cap": ("variant02", "variant07"),
        "beanie": ("variant03", "variant04"),
        "top hat": ("variant06",),
    },
    "beard": {
        NONE: (),
        "beard": ("variant01", "variant05", "variant06", "variant07", "variant08"),
        "goatee": ("variant02",),
    },
    "earrings": {
        NONE: (),
        "gold": ("variant01",),
        "silver": ("variant01",),
    },
}
COLORS = {
    "skin": {
        "light": ("#ffdbac",),
        "medium": ("#b68655",),
        "dark": ("#8d5524",),
    },
    "hair_color": {
        "blond": ("#cab188",),
        "brown": ("#603a14",),
        "black": ("#28150a",),
        "blue": ("#009bbd",),
        "red": ("#bd1700",),
        "green": ("#91cb15",),
    },
    "clothes_color": {
        "navy": ("#03396c",),
        "blue": ("#428bca",),
        "light blue": ("#5bc0de",),
        "green": ("#44c585", "#00b159"),
        "pink": ("#ff6f69",),
        "red": ("#d11141", "#ae0001"),
        "yellow": ("#ffc425",),
    },
    "hat_color": {
        NONE: (),
        "blue": ("#2663a3",),
        "grey": ("#989789",),
        "green": ("#3d8a6b",),
        "pink": ("#cc6192",),
        "purple": ("#614f8a",),
        "red": ("#a62116",),
    },
    "earrings": {NONE: (), "gold": ("#daa520", "#ffd700"), "silver": ("#a9a9a9",)},
}
# Attribute -> its values, in the order of their numbers.
ATTRIBUTES = {name: tuple(values) for name, values in (PARTS | COLORS).items()}
# Pairs of (attribute, value) that no example of train, validation and test has.
UNSEEN = (
    (("hair_color", "red"), ("clothes_color", "blue")),
    (("hair_color", "green"), ("clothes", "striped shirt")),
    (("hair_color", "blond"), ("hat_color", "purple")),
    (("hair", "curly"), ("clothes", "turtleneck")),
    (("hat", "cap"), ("glasses", "sunglasses")),
    (("hat", "top hat"), ("clothes_color", "yellow")),
    (("mouth", "sad"), ("glasses", "glasses")),
    (("beard", "beard"), ("earrings", "gold")),
)
UNDER_HATS = ("bob", "long", "pigtails")  # hair that a hat does not hide
WITH_EARS = ("short", "thinning", "bun")  # hair that does not hide earrings


class Part(NamedTuple):
    """A part of the style.

    Attributes:
      variants: the attribute that its variants depend on; "" for the head, which has one.
      color: the style's name of its colour.
      colors: the attribute that its colour depends on; if it is none, the part in `PLAIN`.
    """

    variants: str
    color: str
    colors: str


# Colours of parts that no attribute names.
PLAIN = {
    "eyes": ("#697b94", "#647b90", "#5b7c8b", "#876658"),
    "mouth": ("#de0f0d",),
    "glasses": ("#4b4b4b", "#323232", "#191919"),
}
HEAD = "head"  # stands for what is no part in the style
STYLE = {
    HEAD: Part("", "skin", "skin"),
    "accessories": Part("earrings", "accessories", "earrings"),
    "clothes": Part("clothes", "clothing", "clothes_color"),
    "eyes": Part("eyes", "eyes", "eyes"),
    "glasses": Part("glasses", "glasses", "glasses"),
    "beard": Part("beard", "hair", "hair_color"),
    "mouth": Part("mouth", "mouth", "mouth"),
    "hair": Part("hair", "hair", "hair_color"),
    "hat": Part("hat", "hat", "hat_color"),
}

WORDINGS = 4  # captions of a picture
_WORDS = 10  # chances that the last of them depends on: two, and one for each phrase
# The chances of one character, in the order in which they are drawn. The hair and the beard have
# one colour.
_CHANCES = (
    *ATTRIBUTES,
    *(f"variant of {name}" for name in STYLE),
    *(f"color of {name}" for name in {part.colors: 0 for part in STYLE.values()}),
    *(f"word {number}" for number in range(_WORDS)),
)
_POOL = 2 * sum(SIZES.values())  # characters drawn, of which the first that fit are taken
_CHUNK = 1024  # pictures composed at a time


class Characters(NamedTuple):
    """What N characters look like.

    Attributes:
      values: attribute -> the number of its value in `ATTRIBUTES`.
      chances: numbers in [0, 1) by name, which decide between variants, colours and words.
    """

    values: Mapping[str, Int32[np.ndarray, " N"]]
    chances: Mapping[str, Float64[np.ndarray, " N"]]

    @property
    def count(self) -> int:
        """N."""
        return len(self.values["hair"])

    def at(self, rows: Int[np.ndarray, " M"]) -> Characters:
        """The characters at these rows."""
        return Characters(*({name: c[rows] for name, c in columns.items()} for columns in self))

    def named(self) -> list[dict[str, str]]:
        """Attribute -> its value, for each character."""
        names = {name: np.asarray(ATTRIBUTES[name])[v].tolist() for name, v in self.values.items()}
        return [dict(zip(names, row, strict=True)) for row in zip(*names.values(), strict=True)]


# ---- which characters there are ------------------------------------------------------------------


def drawn(count: int) -> Characters:
    """The first `count` characters of an endless sequence.

    Each value of an attribute is equally likely, but half of the characters have no glasses, and
    likewise for the other attributes with "none", as far as the hair lets them have any.
    """
    numbers = np.arange(count * len(_CHANCES), dtype=np.uint64).reshape(count, -1)
    uniform = (sources.splitmix64(numbers) >> np.uint64(11)) * 2.0**-53
    chances = dict(zip(_CHANCES, uniform.T, strict=True))
    values = {}
    for name, names in ATTRIBUTES.items():
        chance, size = chances[name], len(names)
        number = np.floor(chance * size)
        if names[0] == NONE:
            number = np.floor(np.maximum(2 * chance - 1, 0) * (size - 1)) + (chance >= 0.5)
        values[name] = number.astype(np.int32)
    for name, fitting in (("hat", UNDER_HATS), ("earrings", WITH_EARS)):
        fits = np.isin(values["hair"], [ATTRIBUTES["hair"].index(hair) for hair in fitting])
        values[name] = np.where(fits, values[name], 0)
    colors = len(ATTRIBUTES["hat_color"]) - 1
    color = np.floor(chances["hat_color"] * colors).astype(np.int32) + 1
    values["hat_color"] = np.where(values["hat"] > 0, color, 0)
    return Characters(values, chances)


def has_unseen(values: Mapping[str, Int32[np.ndarray, " N"]]) -> Bool[np.ndarray, " N"]:
    """Whether each combination of attributes has one of the pairs of `UNSEEN`."""
    found = [
        np.logical_and(*(values[name] == ATTRIBUTES[name].index(value) for name, value in pair))
        for pair in UNSEEN
    ]
    return np.any(found, 0)


@functools.cache
def characters() -> dict[str, Characters]:
    """Split -> its characters, the same in every run, each with a combination of its own."""
    pool = drawn(_POOL)
    combinations = np.stack(list(pool.values.values()), 1)
    first = np.sort(np.unique(combinations, axis=0, return_index=True)[1])
    unseen = has_unseen(pool.values)[first]
    seen, held_out = first[~unseen], first[unseen]
    sizes = [SIZES["test"], SIZES["validation"], SIZES["train"]]
    test, validation, train = np.split(seen[: sum(sizes)], np.cumsum(sizes)[:2])
    rows = {"train": train, "validation": validation, "test": test}
    rows["test_unseen"] = held_out[: SIZES["test_unseen"]]
    return {split: pool.at(chosen) for split, chosen in rows.items()}


# ---- captions ------------------------------------------------------------------------------------


def captions(characters: Characters) -> list[tuple[str, ...]]:
    """The `WORDINGS` captions of each character.

    All but the last name every attribute; what a character has not is not mentioned. The last
    names a few, as people do.
    """
    words = np.stack([characters.chances[f"word {i}"] for i in range(_WORDS)], 1)
    return [_wordings(*both) for both in zip(characters.named(), words, strict=True)]


def _wordings(of: Mapping[str, str], chances: Float64[np.ndarray, " 10"]) -> tuple[str, ...]:
    color, mood = of["hair_color"], of["mouth"]
    hair = {
        "bun": f"{color} hair in a bun",
        "bob": _a(f"{color} bob"),
        "pigtails": f"{color} pigtails",
    }.get(of["hair"], f"{of['hair']} {color} hair")
    beard = [_a(of["beard"])] if of["beard"] != NONE else []
    earrings = [f"{of['earrings']} earrings"] if of["earrings"] != NONE else []
    features = [hair, f"{of['eyes']} eyes", f"{of['skin']} skin", *beard, *earrings]
    hat = [_a(f"{of['hat_color']} {of['hat']}")] if of["hat"] != NONE else []
    glasses = [of["glasses"]] if of["glasses"] != NONE else []
    worn = [_a(f"{of['clothes_color']} {of['clothes']}"), *hat, *glasses]
    everything = [*features, *worn]
    order = np.argsort(chances[2 : 2 + len(everything)])
    some = [everything[i] for i in order[: 1 + int(3 * chances[0])]]
    person = f"{mood} person" if chances[1] < 0.5 else "person"
    return (
        f"{_a(mood)} person with {_and(features)}, wearing {_and(worn)}",
        f"someone in {_and(worn)} who looks {mood} and has {_and(features)}",
        ", ".join([f"{mood} face", *reversed(worn), *reversed(features)]),
        f"{_a(person)} with {_and(some)}",
    )


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# ---- pictures ------------------------------------------------------------------------------------


def style(path: Path) -> dict[str, Any]:
    """The definition of the style in a file.

    Raises:
      ConfigError: its licence is not CC0.
    """
    definition = json.loads(path.read_text("utf-8"))
    licence = definition["meta"]["license"]["name"]
    if not licence.startswith("CC0"):
        raise ConfigError(f"the licence of {path} is {licence!r}, expected CC0 1.0.")
    return definition


class Drawings(NamedTuple):
    """A part of the style in all variants and colours that characters have.

    Attributes:
      variants: for each value of the attribute, the numbers of its first variant and of the next
        value's; then the number of all.
      colors: likewise, for colours.
      layers: of each variant in each colour.
    """

    variants: Int[np.ndarray, " V"]
    colors: Int[np.ndarray, " C"]
    layers: Float32[np.ndarray, "variants colors S S 4"]


def drawings(definition: Mapping[str, Any]) -> dict[str, Drawings]:
    """The parts by name, from back to front, as a style's definition draws them."""
    canvas = definition["canvas"]["elements"]
    head = [element for element in canvas if element["type"] == "element"]
    places = {
        element["name"]: element.get("attributes", {}).get("transform")
        for element in canvas
        if element["type"] == "component"
    }
    made = {}
    for name in (HEAD, *places):
        part = STYLE[name]
        matrix = pixel_art.within(pixel_art.IDENTITY, places.get(name))
        names = [n or ("",) for n in PARTS[part.variants].values()] if name != HEAD else [(HEAD,)]
        colors = [c or ("",) for c in COLORS.get(part.colors, {"": PLAIN.get(name)}).values()]
        elements = {variant: () for group in names for variant in group}
        for variant in elements:
            if variant == HEAD:
                elements[variant] = head
            elif variant:
                elements[variant] = definition["components"][name]["variants"][variant]["elements"]
        layers = [
            [
                pixel_art.draw(elements[variant], {part.color: color or "black"}, matrix)
                for group in colors
                for color in group
            ]
            for group_of_variants in names
            for variant in group_of_variants
        ]
        borders = (np.cumsum([0, *map(len, groups)]) for groups in (names, colors))
        made[name] = Drawings(*borders, np.asarray(layers, np.float32))
    return made


def compose(
    characters: Characters, parts: Mapping[str, Drawings]
) -> UInt8[np.ndarray, "N 16 16 3"]:
    """The pictures of characters, on white, from the `drawings` of a style."""
    images = np.ones((characters.count, pixel_art.SIDE, pixel_art.SIDE, 3), np.float32)
    for name, drawn_part in parts.items():
        part, layers = STYLE[name], drawn_part.layers
        of_variant = characters.values.get(part.variants), characters.chances[f"variant of {name}"]
        of_color = characters.values.get(part.colors), characters.chances[f"color of {part.colors}"]
        if part.colors not in COLORS:
            of_color = None, of_color[1]
        variant = _chosen(drawn_part.variants, *of_variant)
        color = _chosen(drawn_part.colors, *of_color)
        for start in range(0, len(images), _CHUNK):
            rows = slice(start, start + _CHUNK)
            layer = layers[variant[rows], color[rows]]
            images[rows] += layer[..., 3:] * (layer[..., :3] - images[rows])
    return np.rint(255 * images).astype(np.uint8)


def _chosen(
    borders: Int[np.ndarray, " V"],
    number: Int[np.ndarray, " N"] | None,
    chance: Float64[np.ndarray, " N"],
) -> Int[np.ndarray, " N"]:
    """A number from `borders[number]` to below the next border, by chance; None stands for 0."""
    number = np.zeros(len(chance), np.int64) if number is None else number
    sizes = np.diff(borders)
    return borders[number] + np.floor(chance * sizes[number]).astype(np.int64)


# ---- the data set --------------------------------------------------------------------------------


ROUTES = (
    ("the wheel dicebear-styles", packages.PIXEL_ART),
    ("the npm package @dicebear/styles", packages.PIXEL_ART_NPM),
)


def read(dataset: ConfigDict, pictures: bool = True) -> sources.Raw:
    """The splits `train`, `validation`, `test` and `test_unseen`.

    The fields are `image`, uint8 [16, 16, 3], and a label for each of `ATTRIBUTES`. Each picture
    has `WORDINGS` captions. `dataset.image_size` may ask for a multiple of 16: each pixel becomes a
    square. `dataset.channels=1` makes the pictures grey.

    Args:
      dataset: the section of the config.
      pictures: if false, nothing is fetched, and the pictures are black.

    Raises:
      ConfigError: another size, or the style cannot be fetched.
    """
    side = pixel_art.SIDE
    height, width = (asked or side for asked in height_and_width(dataset.image_size))
    if height != width or height % side:
        raise ConfigError(
            f"config.dataset.image_size={dataset.image_size!r}: the pictures of avatars are "
            f"{side} x {side}. Expected a multiple of {side}, such as {2 * side}."
        )
    shape = (height, width, dataset.channels or 3)
    definition, route = _fetch() if pictures else ({}, "nothing fetched")
    parts = drawings(definition) if pictures else {}
    splits = {}
    for split, drawn_characters in characters().items():
        images = np.broadcast_to(np.uint8(0), (drawn_characters.count, *shape))
        if pictures:
            images = compose(drawn_characters, parts)
            if shape[-1] == 1:
                images = np.stack([fit(image, 1, (0, 0)) for image in images])
            images = images.repeat(height // side, 1).repeat(width // side, 2)
        splits[split] = sources.Columns({"image": images, **drawn_characters.values})
    fields = {"image": Field("image", shape, np.dtype(np.uint8))}
    for name, classes in ATTRIBUTES.items():
        facts = {"num_classes": len(classes), "classes": classes}
        fields[name] = Field("label", (), np.dtype(np.int32), facts)
    return sources.Raw(splits, fields, "image", route, _captions())


@functools.cache
def _captions() -> dict[str, list[tuple[str, ...]]]:
    return {split: captions(drawn_characters) for split, drawn_characters in characters().items()}


def _fetch() -> tuple[dict[str, Any], str]:
    """The definition of the style, and where it came from.

    Raises:
      ConfigError: no route works; the message has the error of each.
    """
    errors = []
    for route, package in ROUTES:
        try:
            (path,) = packages.fetch(package).values()
        except ConfigError as error:
            errors.append(f"  {route}: {error}")
        else:
            return style(path), route
    raise ConfigError(
        "the data set 'avatars' could not be loaded. Tried:\n" + "\n".join(errors) + "\n"
        "Connect to a network, or set GENJAX_DATA to a folder with a cache of it."
    )
