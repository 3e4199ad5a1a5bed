"""Writes files of GGUF, from the format's description."""

import struct

import numpy as np

NUMBERS = {
    **{"u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I")},
    **{"i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q")},
    "f64": (12, "<d"),
}
KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "BF16": 30}
KINDS |= {"Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "Q2_K": 10, "none": 99}


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(given):
    """A str, a bool, a float, an int (32 bits), (type, number), or a list of them."""
    if isinstance(given, list):
        kinds = [value(one)[:4] for one in given]
        count = struct.pack("<Q", len(given))
        return struct.pack("<I", 9) + kinds[0] + count + b"".join(value(v)[4:] for v in given)
    if isinstance(given, str):
        return struct.pack("<I", 8) + text(given)
    if not isinstance(given, tuple):
        given = ({bool: "bool", float: "f32", int: "i32"}[type(given)], given)
    number, form = NUMBERS[given[0]]
    return struct.pack("<I", number) + struct.pack(form, given[1])


def content(metadata, tensors, version=3, alignment=32):
    """The bytes of a file; `tensors` are name -> float32 array, or (kind, shape, bytes)."""
    table, data = b"", b""
    for name, given in tensors.items():
        if isinstance(given, np.ndarray):
            given = ("F32", given.shape, given.astype("<f4").tobytes())
        kind, shape, body = given
        table += text(name) + struct.pack("<I", len(shape))
        table += b"".join(struct.pack("<Q", n) for n in reversed(shape))
        table += struct.pack("<IQ", KINDS[kind], len(data))
        data += body + bytes(-len(body) % alignment)
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    header += b"".join(text(key) + value(v) for key, v in metadata.items()) + table
    return header + bytes(-len(header) % alignment) + data
