"""Checksums of a folder in the cache, so that a damaged one is known and made again."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from genjax.files import parse_json

FILE = "sums.json"
BLOCK = 2**20  # bytes that have a checksum of their own
READ = 1024  # blocks of a folder that are looked at, spread over it; all of a smaller one


def _blocks(path: Path, numbers: Iterator[int] | range) -> Iterator[int]:
    with path.open("rb") as file:
        for number in numbers:
            file.seek(number * BLOCK)
            yield zlib.crc32(file.read(BLOCK))


def _count(size: int) -> int:
    return -(-size // BLOCK)


def _spread(count: int, chosen: int) -> list[int]:
    """So many of the numbers below `count`, the first and the last among them if there are two."""
    return [i * (count - 1) // max(chosen - 1, 1) for i in range(chosen)]


def write(folder: Path) -> None:
    """Writes the checksums of all files in a folder beside them, and all of them to the disk."""
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
    """What is wrong with the files of a folder; "" if nothing is.

    Of a folder beyond `READ` blocks about so many of them are read: of each file its share, spread
    over it, and at least one.
    """
    try:
        sums = parse_json((folder / FILE).read_bytes())
        total = sum(len(known["crc32"]) for known in sums.values())
        share = min(1.0, READ / max(total, 1))
        for name, known in sums.items():
            path, expected = folder / name, known["crc32"]
            if not path.is_file() or path.stat().st_size != known["size"]:
                return f"{name} is missing or has another length"
            chosen = _spread(len(expected), math.ceil(len(expected) * share))
            if list(_blocks(path, iter(chosen))) != [expected[i] for i in chosen]:
                return f"{name} has another content"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{FILE}: {error}"
    return ""
