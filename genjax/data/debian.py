"""Pairs of texts from Debian's package index: descriptions and synopses, and their translations.

The index changes from day to day, so the pairs are stored when they are first made: as JSON Lines
with the fields `source`, `target` and `group`, the source package. Copy that file to another
machine to use the same data there. https://wiki.debian.org/DebianRepository/Format has the format
of the index, and Debian's policy, section 5.6.13, that of descriptions.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from genjax.config import ConfigError
from genjax.data import documents, json_lines, packages
from genjax.files import write_atomic

log = logging.getLogger(__name__)

SUMMARIES = "package_summaries"
LANGUAGES = ("da", "de", "fr", "it", "ja", "ru")  # those with the most translations
NAMES = (SUMMARIES, *(f"translation/{language}" for language in LANGUAGES))
FIELDS = ("source", "target", "group")


class Described(NamedTuple):
    """A description in one language.

    Attributes:
      package: the name of a package that it describes.
      synopsis: its first line.
      paragraphs: the rest.
    """

    package: str
    synopsis: str
    paragraphs: tuple[str, ...]


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The fields of each paragraph of a file of the index, with lines that continue a field."""
    for stanza in re.split(r"\n{2,}", text):
        fields, name = {}, ""
        for line in stanza.split("\n"):
            if line[:1] in (" ", "\t"):
                fields[name] = f"{fields.get(name, '')}\n{line}"
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def described(text: str, language: str) -> dict[str, Described]:
    """The descriptions of a file Translation-`language`, by their Description-md5.

    Lines of a paragraph are joined, except those that start with more than one space, which are
    shown as they are; a line of one point separates paragraphs.
    """
    found, key = {}, f"Description-{language}"
    for fields in stanzas(text):
        if not {"Package", "Description-md5", key} <= fields.keys():
            continue
        synopsis, *lines = fields[key].split("\n")
        paragraphs: list[str] = [""]
        for line in lines:
            if line.strip() == ".":
                paragraphs.append("")
            elif line[1:2] in (" ", "\t"):
                paragraphs[-1] += f"\n{line[1:].rstrip()}"
            else:
                paragraphs[-1] += f"{' ' * bool(paragraphs[-1])}{line.strip()}"
        full = tuple(filter(None, (paragraph.strip() for paragraph in paragraphs)))
        one = Described(fields["Package"], synopsis.strip(), full)
        found.setdefault(fields["Description-md5"], one)
    return found


def origins(text: str) -> dict[str, str]:
    """Package -> source package, of a file Packages; a source package has the same name if none."""
    return {
        fields["Package"]: fields.get("Source", fields["Package"]).partition(" ")[0]
        for fields in stanzas(text)
        if "Package" in fields
    }


def _unique(rows: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The first row of each source, in order."""
    first: dict[str, tuple[str, str, str]] = {}
    for row in rows:
        first.setdefault(row[0], row)
    return list(first.values())


def summaries(english: Mapping[str, Described], origin: Mapping[str, str]) -> list[tuple]:
    """(description, synopsis, source package) of each description, in the order of the index."""
    return _unique(
        ("\n".join(d.paragraphs), d.synopsis, origin.get(d.package, d.package))
        for d in english.values()
        if d.paragraphs and d.synopsis
    )


def translations(
    english: Mapping[str, Described], other: Mapping[str, Described], origin: Mapping[str, str]
) -> list[tuple]:
    """(English, other language, source package) of each synopsis and each paragraph.

    Left out are descriptions that do not have the same number of paragraphs in both languages, and
    texts that are the same in both.
    """
    rows = []
    for key, ours in english.items():
        theirs = other.get(key)
        if theirs is None or len(ours.paragraphs) != len(theirs.paragraphs):
            continue
        group = origin.get(ours.package, ours.package)
        pairs = zip(
            (ours.synopsis, *ours.paragraphs), (theirs.synopsis, *theirs.paragraphs), strict=True
        )
        rows += [(a, b, group) for a, b in pairs if a and b and a != b]
    return _unique(rows)


def _read(folder: Path, pattern: str) -> str:
    """The texts of all files of an index whose names end so."""
    files = sorted(path for path in folder.iterdir() if path.name.endswith(pattern))
    return "\n\n".join(documents.decode(path.read_bytes(), str(path)) for path in files)


def pairs(name: str, folder: Path) -> list[tuple[str, str, str]]:
    """The pairs of a data set of `NAMES` from the files of an index in a folder.

    Raises:
      ConfigError: a file is missing from the index, or it gives no pair.
    """
    languages = ("en", *name.split("/")[1:])
    english, *other = (described(_read(folder, f"Translation-{x}"), x) for x in languages)
    origin = origins(_read(folder, "Packages"))
    rows = translations(english, *other, origin) if other else summaries(english, origin)
    if not rows:
        needed = ", ".join(("Packages", *(f"Translation-{x}" for x in languages)))
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise ConfigError(
            f"{name}: the package index gives no pair. It needs files whose names end in {needed}; "
            f"there are {found}."
        )
    return rows


def load(name: str, path: str) -> tuple[list[tuple[str, str, str]], str]:
    """(rows of source, target and group; route) of a data set of `NAMES`.

    Args:
      name: "package_summaries", or "translation/" and a language: from English.
      path: a copy of the stored pairs (.jsonl), or a folder with the files of an index, not
        compressed; "" fetches the index with apt when the pairs are first needed.

    Raises:
      ConfigError: there is no apt, the index lacks a language, or a file cannot be read.
    """
    if path:
        given = Path(path)
        if given.is_dir():
            return pairs(name, given), f"the package index in {given}"
        return stored(given), f"the file {given}"
    file = packages.cache_root() / "debian" / f"{name.replace('/', '-')}.jsonl"
    with packages.lock(f"debian-{file.stem}"):
        if not file.is_file():
            rows = _fetched(name, file.parent)
            lines = (json.dumps(dict(zip(FIELDS, row, strict=True))) for row in rows)
            write_atomic(file, "".join(f"{line}\n" for line in lines).encode())
            log.info("stored %d pairs of %s in %s", len(rows), name, file)
    digest = packages.sha256(file)
    return stored(file), f"Debian's package index, stored in {file} (sha256 {digest})"


def _fetched(name: str, folder: Path) -> list[tuple[str, str, str]]:
    log.info("fetching Debian's package index for %s", name)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".index-") as scratch:
            languages = ("en", *name.split("/")[1:])
            return pairs(name, packages.fetch_index(languages, Path(scratch)))
    except ConfigError as error:
        raise ConfigError(
            f"{name} is made from Debian's package index, which apt-get fetches on a machine with "
            f"Debian, but: {error} Run it on such a machine, which stores "
            f"{folder / name.replace('/', '-')}.jsonl, and give a copy of that file as "
            "--config.dataset.path here."
        ) from None


def stored(file: Path) -> list[tuple[str, str, str]]:
    """The rows of a file of stored pairs.

    Raises:
      ConfigError: it cannot be read, or a line is damaged (with its number).
    """
    try:
        content = documents.decode(file.read_bytes(), str(file))
        rows = [tuple(row[name] for name in FIELDS) for row in json_lines.all_rows(content)]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{file} cannot be read ({error}): expected JSON Lines with {', '.join(FIELDS)}."
        ) from error
    if not rows or not all(isinstance(value, str) for row in rows for value in row):
        raise ConfigError(f"{file}: expected one or more lines of texts {', '.join(FIELDS)}.")
    return rows
