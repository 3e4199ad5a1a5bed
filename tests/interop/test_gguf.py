"""The reader of GGUF against the package gguf (make_gguf.py), and what it refuses."""

import json
import pathlib
import struct

import numpy as np
import pytest
from gguf_files import content

from genjax.config import ConfigError
from genjax.interop import gguf

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "gguf.npz")
ONE = {"a": np.arange(8, dtype=np.float32).reshape(2, 4)}


def written(folder, *given, **options):
    """A file of its own."""
    path = folder / "model.gguf"
    path.write_bytes(content(*given, **options))
    return path


@pytest.mark.parametrize("kind", gguf.KINDS)
def test_random_blocks_are_what_the_package_makes_of_them(kind, monkeypatch):
    blocks = GOLDEN[f"blocks/{kind}"]
    shape = (len(blocks), gguf.KINDS[kind].values)
    for piece in (gguf.PIECE, 5 * gguf.KINDS[kind].values):  # all at once, and in pieces
        monkeypatch.setattr(gguf, "PIECE", piece)
        found = gguf.dequantised(gguf.Tensor(kind, shape, blocks.reshape(-1)))
        np.testing.assert_array_equal(found, GOLDEN[f"values/{kind}"], strict=True)


def test_a_file_of_the_package_has_its_metadata_and_tensors(tmp_path):
    path = tmp_path / "whole.gguf"
    path.write_bytes(GOLDEN["whole"].tobytes())
    file = gguf.read(path)
    metadata = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in file.metadata.items()}
    assert metadata == json.loads(str(GOLDEN["whole/metadata"]))
    assert {type(file.metadata[f"number.{kind}"]) for kind in ("u8", "i64")} == {int}
    assert file.metadata["number.bool"] is True
    assert list(file.tensors)[:-1] == [f"tensor.{k}" for k in np.array(list(gguf.KINDS))[ORDER]]
    for name, tensor in file.tensors.items():
        found = gguf.dequantised(tensor)
        expected = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        if name != "axes":
            expected = GOLDEN[f"whole/{tensor.kind}"]
        np.testing.assert_array_equal(found, expected, strict=True)


ORDER = [4, 5, 6, 7, 3, 8, 9, 10, 0, 1, 2]  # of the types in the file


def test_a_file_of_ours_is_read_without_copies(tmp_path):
    tensors = ONE | {
        "scalar": ("F32", (), struct.pack("<f", 2.5)),
        "half": ("F16", (3,), np.array([1, -2, 0.5], "<f2").tobytes()),
    }
    for version, alignment in ((2, 32), (3, 64)):
        metadata = {"general.alignment": alignment, "names": ["x", "y"], "flag": True}
        path = written(tmp_path, metadata, tensors, version=version, alignment=alignment)
        file = gguf.read(path)
        assert file.metadata == metadata
        np.testing.assert_array_equal(gguf.dequantised(file.tensors["a"]), ONE["a"])
        assert gguf.dequantised(file.tensors["scalar"]).tolist() == 2.5
        assert gguf.dequantised(file.tensors["half"]).tolist() == [1, -2, 0.5]
        assert isinstance(file.tensors["a"].data.base.base, np.memmap)
        assert not file.tensors["a"].data.flags.writeable


def replaced(old, new):
    return lambda body: body.replace(old, new, 1)


@pytest.mark.parametrize(
    ("metadata", "tensors", "change", "message"),
    [
        ({}, ONE, lambda body: b"GGML" + body[4:], "begins with b'GGML'"),
        ({}, ONE, lambda body: body[:4] + struct.pack(">I", 3) + body[8:], "version is 50331648"),
        ({}, ONE, lambda body: body[:4] + struct.pack("<I", 1) + body[8:], "version is 1: exp"),
        ({}, ONE, lambda body: body[:-4], r"'a', F32 of shape \[2, 4\], ends at 32.*cut short"),
        ({}, ONE, lambda body: body[:30], "it has 1 tensors, but its header has only 14"),
        (
            {"x": "abc"},
            ONE,
            replaced(b"\3" + bytes(7) + b"abc", b"\xff" * 8 + b"abc"),
            "it says that 18446744073709551615 bytes follow byte",
        ),
        ({}, ONE, lambda body: body[:8] + struct.pack("<Q", 2**60) + body[16:], "2?1152.* tensors"),
        ({}, ONE, lambda body: body[:16] + struct.pack("<Q", 2**60) + body[24:], "values of meta"),
        ({}, {"a": ("Q4_0", (2, 16), bytes(18))}, None, "multiple of 32 values"),
        ({}, {"a": ("F32", (1,) * 5, bytes(4))}, None, "has 5 axes: expected at most 4"),
        ({}, {"a": ("F32", (0, 3), b"")}, None, r"shape \[0, 3\] is empty"),
        ({}, {"a": ("F32", (2**40, 2**40), bytes(4))}, None, "cut short"),
        ({}, ONE | {"b": ONE["a"]}, replaced(struct.pack("<IQ", 0, 32), bytes(12)), "overlaps"),
        (
            {},
            ONE | {"b": ONE["a"]},
            replaced(struct.pack("<IQ", 0, 32), b"\0" * 4 + b"\x10" * 8),
            "multiple of 32",
        ),
        ({}, ONE | {"b": ONE["a"]}, replaced(b"b", b"a"), "'a' comes twice"),
        ({"x": 1, "y": 2}, ONE, replaced(b"y", b"x"), "the key 'x' comes twice"),
        ({"x": "abc"}, ONE, replaced(b"abc", b"a\xff!"), "utf-8"),
        ({"x": "abc"}, ONE, replaced(struct.pack("<I", 8), struct.pack("<I", 13)), "type 13"),
        ({"x": ["a"]}, ONE, replaced(struct.pack("<I", 8), struct.pack("<I", 9)), "of type 9: exp"),
        (
            {"x": [7]},
            ONE,
            replaced(struct.pack("<Qi", 1, 7), struct.pack("<Qi", 2**62, 7)),
            "4611686018427387904 values of 'x'",
        ),
        ({"general.alignment": 0}, ONE, None, "alignment is 0: expected a number from 1"),
        ({"general.alignment": "x"}, ONE, None, "alignment is 'x'"),
    ],
)
def test_what_contradicts_itself_is_refused(metadata, tensors, change, message, tmp_path):
    path = written(tmp_path, metadata, tensors)
    if change:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ConfigError, match=rf"model\.gguf cannot be read as GGUF: .*{message}"):
        gguf.read(path)


@pytest.mark.parametrize(("kind", "name"), [("Q2_K", r"10 \(Q2_K\)"), ("none", r"99 \(unknown\)")])
def test_a_type_that_is_not_read_is_named_with_those_that_are(kind, name, tmp_path):
    message = rf"model\.gguf: tensor 'a' is of type {name}: expected F32, F16, BF16, Q8_0, Q4_0, "
    message += r"Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K\. Fetch the model in one of these types\.$"
    with pytest.raises(ConfigError, match=message):
        gguf.read(written(tmp_path, {}, {"a": (kind, (256,), bytes(84))}))


def test_a_missing_file_and_an_empty_one_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*none\.gguf"):
        gguf.read(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"empty\.gguf cannot be read as GGUF"):
        gguf.read(tmp_path / "empty.gguf")
