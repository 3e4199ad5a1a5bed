"""Drawings with captions: OpenMoji (CC BY-SA 4.0) and the Open Clip Art Library (public domain)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from genjax.config import ConfigError
from genjax.data import packages, transforms

Files = Mapping[str, Path]  # path inside the package -> file

OPENMOJI_CREDIT = (
    "All emojis designed by OpenMoji, https://openmoji.org. License: CC BY-SA 4.0. Whoever shares "
    "its pictures, also changed ones, names OpenMoji and the licence, and keeps the licence."
)
OPENMOJI_GROUPS = (
    *("activities", "animals-nature", "component", "extras-openmoji", "extras-unicode", "flags"),
    *("food-drink", "objects", "people-body", "smileys-emotion", "symbols", "travel-places"),
)
OPENCLIPART_GROUPS = (
    *("animals", "buildings", "buttons", "computer", "containers", "decorations", "education"),
    *("electronics", "food", "geography", "logos", "office", "people", "plants", "recreation"),
    *("science", "shapes", "signs_and_symbols", "special", "tools", "transportation", "unsorted"),
)
COLLECTION = 4  # a title that so many pictures share is that of a collection
_HASH = re.compile(r"hash(\(0x[0-9a-f]+\))?")  # what a program left among the keywords
_CLIPART_BY = re.compile(r"clip ?art by .*? - ")
_NUMBER = re.compile(r"[._-]*\d*$")


# ---- OpenMoji ------------------------------------------------------------------------------------


def draw(svg: str, side: int) -> UInt8[np.ndarray, "S S 3"]:
    """A square SVG drawing on white, with the library resvg.

    Raises:
      ConfigError: the library is not installed.
    """
    png = _resvg().svg_to_bytes(svg, width=side, height=side, skip_system_fonts=True)
    return transforms.read_picture(bytes(png), lambda picture: transforms.pixels(picture, 3))


def _resvg() -> Any:
    try:
        import resvg_py
    except ImportError as error:
        raise ConfigError(
            "the pictures of openmoji are SVG, and the package resvg-py, which draws them, is not "
            "installed. Run GENJAX_EXTRAS=svg launch/local.sh with the same arguments (or pip "
            "install 'genjax-models[svg]'). The data set 'emoji' needs no such package."
        ) from error
    return resvg_py


def fetch_openmoji() -> Files:
    """The files of OpenMoji, if there is a library to draw them with.

    Raises:
      ConfigError: there is none, or as `packages.fetch`.
    """
    _resvg()
    return packages.fetch(packages.OPENMOJI)


def openmoji(side: int, files: Files) -> Iterator[dict[str, Any]]:
    """OpenMoji in colour on white; a caption is the annotation and the tags.

    Variants in other skin tones have no tags of their own: they have those of their emoji, and are
    of its group.
    """
    by_name = {path.name: path for path in files.values()}
    described = by_name["openmoji.json"].read_text("utf-8")
    entries = json.loads(described.replace("\ufffd", "ó"))  # León, damaged in the package
    tags = {e["hexcode"]: _tags(e) for e in entries}
    for entry in entries:
        base = entry["skintone_base_hexcode"] or entry["hexcode"]
        words = [entry["annotation"].lower(), *_tags(entry), *tags.get(base, ())]
        yield {
            "image": draw(by_name[f"{entry['hexcode']}.svg"].read_text("utf-8"), side),
            "label": entry["group"],
            "caption": ", ".join(dict.fromkeys(words)),
            "split_group": base,
        }


def _tags(entry: Mapping[str, Any]) -> list[str]:
    tags = f"{entry['tags']},{entry['openmoji_tags']}".split(",")
    return [tag.strip() for tag in tags if tag.strip()]


# ---- the Open Clip Art Library -------------------------------------------------------------------


def fetch_openclipart() -> Files:
    """The pictures, and the drawings that have their titles and keywords.

    Raises:
      ConfigError: as `packages.fetch`.
    """
    return {
        **packages.fetch(packages.OPENCLIPART_PNG),
        **packages.fetch(packages.OPENCLIPART_SVG),
    }


def openclipart(side: int, files: Files) -> Iterator[dict[str, Any]]:
    """Clip art, padded with white to squares; a caption is the title and keywords.

    A title that `COLLECTION` pictures or more share is replaced by the words of the file's name.
    Names that differ in a number at their end, which are often variants of one drawing, are of one
    group. Pictures of more than `transforms.LARGE` pixels are left out.
    """
    pictures = {m: path for m, path in files.items() if m.startswith(packages.CLIPART_PNG)}
    described = {}
    for member in pictures:
        name = member.removeprefix(packages.CLIPART_PNG).removesuffix(".png")
        drawing = files.get(f"{packages.CLIPART_SVG}{name}.svg")
        described[member] = _described(drawing) if drawing else ("", (), "")
    shared = Counter(title for title, _, _ in described.values())
    for member, path in pictures.items():
        name = member.removeprefix(packages.CLIPART_PNG).removesuffix(".png")
        title, keywords, creator = described[member]
        if not title or shared[title] >= COLLECTION:
            title = _words(name.rpartition("/")[2], creator)
        with Image.open(path) as picture:
            if picture.width * picture.height > transforms.LARGE:
                continue
            image = Image.fromarray(transforms.pixels(picture, 3))
        image = ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, "white")
        yield {
            "image": np.asarray(image),
            "label": name.partition("/")[0],
            "caption": ", ".join(dict.fromkeys([_CLIPART_BY.sub("", title), *keywords])),
            "split_group": _NUMBER.sub("", name),
        }


def _described(drawing: Path) -> tuple[str, Sequence[str], str]:
    """(title, keywords, author) in the metadata of an SVG, in lower case; "" if they are missing.

    Keywords that name no content are left out: the author, and what the library's programs left.
    """
    for _, element in ElementTree.iterparse(drawing):
        if _tag(element) != "Work":
            continue
        parts = {_tag(part): "".join(part.itertext()) for part in element}
        title, creator = (
            " ".join(parts.get(name, "").replace("_", " ").split()).lower()
            for name in ("title", "creator")
        )
        listed = (e for part in element if _tag(part) == "subject" for e in part.iter())
        words = [
            (e.text or "").replace("_", " ").strip().lower() for e in listed if _tag(e) == "li"
        ]
        unwanted = {"", creator, "unsorted"}
        kept = [word for word in words if word not in unwanted and not _HASH.fullmatch(word)]
        return title.removesuffix(".svg"), kept, creator
    return "", (), ""


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _words(name: str, creator: str) -> str:
    """The words of a file's name, without the author's name and numbers such as 01 at its end."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word]
    while len(words) > 1 and (
        (words[-1].isdigit() and words[-1].startswith("0"))
        or any(part.startswith(words[-1]) for part in creator.split())
    ):
        words.pop()
    return " ".join(words)
