"""Checksums of the files in a cached folder, so that damage is detected and repaired."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from genjax.files import parse_json

FILE = "sums.json"
BLOCK = 2**20  # bytes per checksum
READ = 1024  # blocks of a folder that are checked, evenly spread; all if it has fewer


def _blocks(path: Path, numbers: Iterator[int] | range) -> Iterator[int]:
    with path.open("rb") as file:
        for number in numbers:
            file.seek(number * BLOCK)
            yield zlib.crc32(file.read(BLOCK))


def _count(size: int) -> int:
    return -(-size // BLOCK)


def _spread(count: int, chosen: int) -> list[int]:
    """`chosen` evenly spread numbers below `count`, with the first and last if there are two."""
    return [i * (count - 1) // max(chosen - 1, 1) for i in range(chosen)]


def write(folder: Path) -> None:
    """Writes the checksums of all files in a folder next to them, and syncs the files to disk."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            size = path.stat().st_size
            blocks = list(_blocks(path, range(_count(size))))
            sums[path.relative_to(folder).as_posix()] = {"size": size, "crc32": blocks}
    (folder / FILE).write_text(json.dumps(sums))


def damage(folder: Path) -> str:
    """The damage in the files of a folder; "" if there is none.

    If the folder has more than `READ` blocks, only about that many are read: from each file a
    proportional number, evenly spread, and at least one.
    """
    try:
        sums = parse_json((folder / FILE).read_bytes())
        total = sum(len(entry["crc32"]) for entry in sums.values())
        share = min(1.0, READ / max(total, 1))
        for name, entry in sums.items():
            path, expected = folder / name, entry["crc32"]
            if not path.is_file() or path.stat().st_size != entry["size"]:
                return f"{name} is missing or has a different size"
            chosen = _spread(len(expected), math.ceil(len(expected) * share))
            if list(_blocks(path, iter(chosen))) != [expected[i] for i in chosen]:
                return f"{name} has different content"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{FILE}: {error}"
    return ""
