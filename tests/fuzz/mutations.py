"""Seeded damage to files: to their bytes, to members of archives, to values of JSON."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

Rng = np.random.Generator

NUMBERS = (0, 1, 2, 127, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
VALUES = (None, True, -1, 0, 1.5, 1e308, 2**31, 2**63, 10**40, "", "a", "\0", "é" * 300, [], {})
DIGITS = (b"0", b"1", b"9", b"-1", b"99999999", b"1125899906842624", b"9" * 30, b"1e9")


def of_bytes(content: bytes, rng: Rng) -> bytes:
    """A few bytes flipped, cut, doubled, or numbers in them replaced."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            return bytes(data)
        kind, at = int(rng.integers(8)), int(rng.integers(len(data)))
        length = int(rng.integers(1, 9))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = rng.bytes(length)
        elif kind == 5:
            end = min(len(data), at + int(rng.integers(1, 65)))
            data[at:at] = data[at:end]
        elif kind == 6:
            number = NUMBERS[int(rng.integers(len(NUMBERS)))]
            size = (1, 2, 4, 8)[int(rng.integers(4))]
            order = ("little", "big")[int(rng.integers(2))]
            data[at : at + size] = (number % 256**size).to_bytes(size, order)
        else:
            digits = [i for i, byte in enumerate(data) if 48 <= byte < 58]
            if digits:
                at = digits[int(rng.integers(len(digits)))]
                data[at : at + 1] = DIGITS[int(rng.integers(len(DIGITS)))]
    return bytes(data)


def of_zip(content: bytes, rng: Rng) -> bytes:
    """Damage inside the members of a zip archive, whose checksums are right; or to its bytes."""
    if rng.random() < 0.3:
        return of_bytes(content, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as made:
        infos = archive.infolist()
        chosen = int(rng.integers(len(infos)))
        for i, info in enumerate(infos):
            body = archive.read(info)
            form = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else info.compress_type
            if i == chosen:
                if rng.random() < 0.1:
                    continue
                body = of_bytes(body, rng)
            made.writestr(info.filename, body, form)
    whole = out.getvalue()
    return of_bytes(whole, rng) if rng.random() < 0.1 else whole


def of_json(content: bytes, rng: Rng) -> bytes:
    """One or two values of a JSON document replaced, removed or nested; or damage to its bytes."""
    if rng.random() < 0.2:
        return of_bytes(content, rng)
    state = json.loads(content)
    for _ in range(int(rng.integers(1, 3))):
        places = list(_places(state))
        if not places:
            break
        holder, key = places[int(rng.integers(len(places)))]
        kind = rng.random()
        if kind < 0.15 and isinstance(holder, dict):
            del holder[key]
        elif kind < 0.25:
            holder[key] = [holder[key]] * 3
        elif kind < 0.35 and len(places) > 1:
            other, name = places[int(rng.integers(len(places)))]
            holder[key] = json.loads(json.dumps(other[name]))
        else:
            holder[key] = VALUES[int(rng.integers(len(VALUES)))]
    return json.dumps(state).encode()


def _places(value):
    """Every (container, key or index) of a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inside in list(items):
        yield value, key
        if isinstance(inside, dict | list):
            yield from _places(inside)


def of_lines(content: bytes, rng: Rng) -> bytes:
    """Damage to lines of JSON, or to the bytes of a text."""
    lines = content.split(b"\n")
    at = int(rng.integers(len(lines)))
    if rng.random() < 0.1:
        lines[at] = b"[" * 200_000
    elif rng.random() < 0.5:
        try:
            lines[at] = of_json(lines[at], rng)
        except ValueError:
            lines[at] = of_bytes(lines[at], rng)
    else:
        return of_bytes(content, rng)
    return b"\n".join(lines)


def of_png(content: bytes, rng: Rng) -> bytes:
    """Damage inside the chunks of a PNG, whose checksums are right; of other pictures anywhere."""
    if not content.startswith(b"\x89PNG") or rng.random() < 0.2:
        return of_bytes(content, rng)
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        at += 12 + length
        if rng.random() < 0.4:
            body = of_bytes(body, rng)
        chunk = struct.pack(">I", len(body)) + kind + body
        parts.append(chunk + struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join(parts)


def of_safetensors(content: bytes, rng: Rng) -> bytes:
    """Damage to the header, whose length is right; or anywhere."""
    if rng.random() < 0.3:
        return of_bytes(content, rng)
    length = int.from_bytes(content[:8], "little")
    header = of_json(content[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


Mutation = Callable[[bytes, Rng], bytes]
