"""Writes the files of the corpus that were made by hand; others were found by the fuzzers.

python tests/fuzz/make_corpus.py
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

CORPUS = Path(__file__).with_name("corpus")


def put(name: str, content: bytes) -> None:
    """Writes one file."""
    path = CORPUS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def zipped(members: dict[str, bytes], form: int = zipfile.ZIP_STORED) -> bytes:
    """An archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", form) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(header: str, body: bytes = b"") -> bytes:
    """An .npy file with a header of one's own."""
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def header(shape: object, descr: str = "|u1") -> str:
    """What the header of an array says."""
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}\n"


def torch_file(data: bytes, storage: bytes, form: int = zipfile.ZIP_STORED) -> bytes:
    """A state dict whose pickle is given."""
    members = {"a/data.pkl": data, "a/byteorder": b"little", "a/data/0": storage}
    return zipped(members, form)


def tensor(shape: tuple, strides: tuple, count: int, before: bytes = b"") -> bytes:
    """The pickle of {"w": a tensor of a storage}."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    storage += pickle.dumps(count, 2)[2:-1] + b"tQ"
    numbers = pickle.dumps(0, 2)[2:-1] + b"".join(
        pickle.dumps(x, 2)[2:-1] for x in (shape, strides)
    )
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"\x89NtR"
    return b"\x80\x02" + before + b"}X\x01\0\0\0w" + call + b"s."


def main() -> None:
    """Writes them all."""
    large = zipped({"image.npy": npy(header("(1125899906842624,)"))})
    put("npz/claims_a_pebibyte.npz", large)
    put("npz/broken_header.npz", zipped({"image.npy": npy("{'descr': '|u1', 'shape'")}))
    put("npz/bare_member.npz", zipped({"image": b"hello", "image.npy": b"hello"}))
    put("npz/negative_shape.npz", zipped({"a.npy": npy(header("(-1, -6)"), bytes(6))}))
    put("npz/records.npz", zipped({"a.npy": npy(header("(1,)", "V8"), bytes(8))}))
    put("npz/nothing_a_number.npz", zipped({"a.npy": npy(header("(1000000000000,)", "|S0"))}))
    put("npz/nested.npz", zipped({"a.npy": npy("(" * 5000)}))
    bomb = bytearray(zipped({"a.npy": npy(header("(9,)"), bytes(9))}, zipfile.ZIP_DEFLATED))
    at = bomb.index(b"PK\x01\x02")
    bomb[at + 24 : at + 28] = (2**31).to_bytes(4, "little")  # the size that the directory claims
    put("npz/directory_claims_more.npz", bytes(bomb))

    ones = np.ones(4, np.float32).tobytes()
    put("torch/memo_index.pth", torch_file(tensor((4,), (1,), 4, b"Nr\xff\xff\xff\x3f0"), ones))
    put("torch/strides_of_nothing.pth", torch_file(tensor((2**40,), (0,), 4), ones))
    put("torch/strides_overflow.pth", torch_file(tensor((2,), (2**62,), 4), ones))
    put("torch/more_elements.pth", torch_file(tensor((4,), (1,), 2**40), ones))
    zeros = torch_file(tensor((4,), (1,), 2**26), bytes(2**20), zipfile.ZIP_DEFLATED)
    put("torch/compressed.pth", zeros)
    nested = b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"."
    put("torch/nested_tuples.pth", torch_file(nested, ones))
    put("torch/key_of_nested_tuples.pth", torch_file(b"\x80\x02}" + nested[2:-1] + b"Ns.", ones))
    put("torch/long_string.pth", torch_file(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00.", ones))
    put("torch/huge_decimal.pth", torch_file(b"\x80\x02I" + b"9" * 5000 + b"\n.", ones))

    buffer = io.BytesIO()
    Image.new("L", (6, 4)).save(buffer, "PNG")
    plain = buffer.getvalue()
    at = plain.index(b"IDAT") - 4
    body = b"Comment\0\0" + zlib.compress(bytes(3_000_000))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    put("picture/long_text.png", plain[:at] + chunk + plain[at:])
    size = bytearray(plain)
    size[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    size[29:33] = struct.pack(">I", zlib.crc32(bytes(size[12:29])))
    put("picture/claims_to_be_large.png", bytes(size))
    for name, entry in (
        ("orientation_nine", struct.pack("<HHII", 0x0112, 3, 1, 9)),
        ("orientation_of_text", struct.pack("<HHI4s", 0x0112, 2, 3, b"abc")),
    ):
        buffer = io.BytesIO()
        exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
        Image.new("L", (6, 4)).save(buffer, "JPEG", exif=exif)
        put(f"picture/{name}.jpg", buffer.getvalue())

    put("lines/nested.jsonl", b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n")
    put("lines/surrogate.jsonl", b'{"q": "", "text": "\\ud83d"}\n')
    put("lines/digits.jsonl", b'{"q": "", "text": "a", "n": ' + b"9" * 5000 + b"}\n")
    key, one = struct.pack("<Q", 1) + b"k", struct.pack("<Q", 1) + b"t"

    def gguf(name: str, tensors: int, values: int, body: bytes) -> None:
        put(f"gguf/{name}.gguf", b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + body)

    gguf("long_string", 0, 1, key + struct.pack("<IQ", 8, 2**64 - 1))
    gguf("many_values", 0, 2**64 - 1, key)
    gguf("many_tensors", 2**64 - 1, 0, key * 9)
    gguf("long_array", 0, 1, key + struct.pack("<IIQ", 9, 12, 2**61) + bytes(64))
    gguf("nested_arrays", 0, 1, key + struct.pack("<IIQ", 9, 9, 4) * 40)
    gguf("alignment", 0, 1, struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 0))
    gguf("product_of_axes", 1, 0, one + struct.pack("<I4QIQ", 4, *(2**16,) * 4, 0, 0) + bytes(64))
    gguf("far_tensor", 1, 0, one + struct.pack("<IQIQ", 1, 8, 0, 2**64 - 32) + bytes(64))
    put("json/nested.json", b"[" * 200_000)
    put("json/twice.json", json.dumps({"a": 1}).encode()[:-1] + b', "a": 2}')


if __name__ == "__main__":
    main()
