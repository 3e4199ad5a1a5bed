"""The captions of a folder of pictures: in files beside them, or in a table of their folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from genjax.config import ConfigError
from genjax.data import json_lines
from genjax.data.documents import decode
from genjax.files import parse_json

TABLES = ("metadata.jsonl", "captions.jsonl", "metadata.csv")  # of captions
IN_JSON = ("captions", "caption", "text")  # where a JSON object beside a picture has them
MOST_CAPTIONS = 64  # of one picture


def counted(captions: Mapping[str, list[list[str]]]) -> str:
    """How many captions the pictures have, for the log."""
    if not captions:
        return ""
    counts = {len(texts) for of_split in captions.values() for texts in of_split}
    if counts == {1}:
        return "; with captions"
    between = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return f"; with {between} captions each, of which training draws one"


def is_caption_file(file: Path, pictured: Collection[Path]) -> bool:
    """Whether a file may hold captions; `pictured` are the pictures without their suffixes."""
    return (
        file.suffix.lower() == ".txt"
        or file.name in TABLES
        or (file.suffix == ".json" and file.with_suffix("") in pictured)
    )


def of_pictures(folders: Sequence[Path], files: list[Path]) -> list[list[str]] | None:
    """The captions of each picture of a split; None if there are no captions.

    The captions of `picture.png` are the lines of `picture.txt`; or, in `picture.json`, the list
    `captions`, or the text `caption` or `text`; or the field `text`, a text or a list, of rows of
    `metadata.jsonl`, `captions.jsonl` or `metadata.csv` in the split's folder, whose `file_name` is
    the picture's path from there.

    Raises:
      ConfigError: only some pictures have captions, one has too many, or a file is invalid.
    """
    table = {folder / name: texts for folder in folders for name, texts in _table(folder).items()}
    captions_of = {file: table.get(file) or _beside(file) for file in files}
    captions_of = {file: texts for file, texts in captions_of.items() if texts}
    if captions_of and len(captions_of) < len(files):
        uncaptioned = next(file for file in files if file not in captions_of)
        raise ConfigError(
            f"{uncaptioned} has no caption, and {len(captions_of)} of {len(files)} pictures of its "
            f"split have. Put its text into {uncaptioned.with_suffix('.txt').name}, or remove the "
            "captions."
        )
    for file, texts in captions_of.items():
        if len(texts) > MOST_CAPTIONS:
            raise ConfigError(
                f"{file} has {len(texts)} captions, expected at most {MOST_CAPTIONS}. Each line of "
                "a text file is a caption of its own."
            )
    return [captions_of[file] for file in files] if captions_of else None


def _beside(picture: Path) -> list[str]:
    """The captions in the .txt or .json beside a picture."""
    file = picture.with_suffix(".txt")
    if file.is_file():
        return _texts(decode(file.read_bytes(), str(file)).split("\n"))
    file = picture.with_suffix(".json")
    if not file.is_file():
        return []
    try:
        row = parse_json(file.read_bytes())
        return _texts(next((row[key] for key in IN_JSON if key in row), []))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{file} cannot be read ({type(error).__name__}: {error}). Expected a JSON object with "
            "the list captions, or the text caption or text."
        ) from error


def _table(folder: Path) -> dict[str, list[str]]:
    """`file_name` -> each `text`, from a folder's table of captions; empty if there is none."""
    table_file = next((p for name in TABLES if (p := folder / name).is_file()), None)
    if table_file is None:
        return {}
    try:
        text = decode(table_file.read_bytes(), str(table_file))
        if table_file.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            rows = json_lines.all_rows(text)
        if not any("text" in row for row in rows):  # a table of something else
            return {}
        captions: dict[str, list[str]] = {}
        for row in rows:
            captions.setdefault(row["file_name"], []).extend(_texts(row["text"]))
        return captions
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{table_file} cannot be read ({type(error).__name__}: {error}). Expected rows with "
            "file_name and text."
        ) from error


def _texts(given: object) -> list[str]:
    """A text, or each of several, without those that are empty."""
    texts = given if isinstance(given, list) else [given]
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"the text {text!r}")
    return [text.strip() for text in texts if text.strip()]


def equally_many(
    captions: Mapping[str, list[list[str]]],
) -> dict[str, list[str]] | dict[str, list[list[str]]]:
    """The captions by split, as many for each picture: those of a picture with fewer come again."""
    most = max(len(texts) for of_split in captions.values() for texts in of_split)
    if most == 1:
        return {split: [text for (text,) in of_split] for split, of_split in captions.items()}
    return {
        split: [(texts * most)[:most] for texts in of_split] for split, of_split in captions.items()
    }
