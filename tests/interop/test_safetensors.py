"""Files that the official library wrote (make_huggingface.py), and files that lie."""

from __future__ import annotations

import json
import pathlib
import re
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.interop import safetensors

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "huggingface.npz")
OFFICIAL = GOLDEN["safetensors/file"].tobytes()
DTYPES = {  # what the peer's types of the same number are called here
    **{"float8_e4m3fn": "float8_e4m3fn", "bool": "bool", "naïve scalar": "float32"},
    **{"empty": "float32", "wide": "float32"},
}


def file(header, data=b"", length=None):
    """A file of this header, a dictionary or text, that claims `length`."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def place(tmp_path):
    """Writes bytes to a file; gives its path."""

    def place(content, name="model.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return place


def test_tensors_are_those_that_the_official_library_wrote(place):
    found = safetensors.read(place(OFFICIAL))
    expected = {
        name.removeprefix("safetensors/"): GOLDEN[name]
        for name in GOLDEN.files
        if name.startswith("safetensors/") and name != "safetensors/file"
    }
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype.name == DTYPES.get(name, name)
        assert value.shape == expected[name].shape
        assert not value.flags.writeable
        exact = value.astype(expected[name].dtype)
        np.testing.assert_array_equal(exact, expected[name], err_msg=name)


def test_files_are_byte_for_byte_what_the_official_library_writes(place, tmp_path):
    found = safetensors.read(place(OFFICIAL))
    path = tmp_path / "again.safetensors"
    given = {name: found[name] for name in sorted(found)}
    given["float32"] = jnp.asarray(found["float32"])
    given["wide"] = np.asfortranarray(found["wide"])
    given["int32"] = found["int32"].astype(">i4")
    safetensors.write(path, given, {"format": "pt"})
    assert path.read_bytes() == OFFICIAL
    safetensors.write(path, {})
    assert path.read_bytes() == bytes([8, 0, 0, 0, 0, 0, 0, 0]) + b"{}      "
    assert safetensors.read(path) == {}
    assert {p.name for p in tmp_path.iterdir()} == {"again.safetensors", "model.safetensors"}


def test_what_the_format_has_not_is_not_written(tmp_path):
    path = tmp_path / "model.safetensors"
    for arrays in (
        {"w": np.zeros(2, "c16")},
        {"w": np.zeros(2, "U3")},
        {"__metadata__": np.ones(1)},
    ):
        with pytest.raises(ConfigError, match=r"cannot be written as safetensors: expected a name"):
            safetensors.write(path, arrays)
    assert not path.exists()


LIES = {
    "ends in the length": (b"\1\0\0", "3 bytes"),
    "is empty": (b"", "empty"),
    "ends in the header": (file({"w": tensor(0, 4, [1])}, length=900), "900 bytes is too long"),
    "has a length of 64 bits": (file({}, length=2**64 - 1), f"{2**64 - 1} bytes is too long"),
    "has a negative length": (file({}, length=2**63), "is too long"),
    "has a list": (file([1, 2]), "begins with"),
    "begins with blanks": (file(b"  {}"), "begins with"),
    "is no JSON": (file(b"{'a': 1}"), "property name"),
    "has two objects": (file(b"{} {}"), "Extra data"),
    "is not UTF-8": (file(b'{"\xff": 1}'), "can't decode byte 0xff"),
    "is deep": (file(b'{"a":' + b"[" * 10**5), "nested too deeply"),
    "has a long number": (file(b'{"a":' + b"9" * 5000 + b"}"), "4300 digits"),
    "names a tensor twice": (
        file(b'{"w":' + json.dumps(tensor(0, 4, [1])).encode() + b',"w":{}}', bytes(4)),
        "the key 'w' appears twice",
    ),
    "says a field twice": (file(b'{"w":{"shape":[],"shape":[]}}'), "the key 'shape' appears twice"),
    "has no offsets": (file({"w": {"dtype": "F32", "shape": [1]}}), "expected dtype, shape, data"),
    "has a name that is no text": (file({"\ud800": tensor(0, 0, [0])}), "surrogates not allowed"),
    "has a number for a tensor": (file({"w": 3}), "tensor 'w' is 3"),
    "has metadata of numbers": (file({"__metadata__": {"a": 1}}), "object of strings"),
    "has an unknown dtype": (file({"w": tensor(0, 4, [1], "F24")}, bytes(4)), "dtype 'F24'"),
    "has a packed dtype": (file({"w": tensor(0, 1, [2], "F4")}, bytes(1)), "dtype 'F4'"),
    "has a list for a dtype": (file({"w": tensor(0, 4, [1], ["F32"])}, bytes(4)), r"dtype \['F32'"),
    "has a negative size": (file({"w": tensor(0, 4, [-1, -1])}, bytes(4)), "integers from 0 on"),
    "has a size of a half": (file({"w": tensor(0, 4, [1.0])}, bytes(4)), "integers from 0 on"),
    "has a size of true": (file({"w": tensor(0, 4, [True])}, bytes(4)), "integers from 0 on"),
    "has a size of 64 bits": (file({"w": tensor(0, 4, [2**63])}, bytes(4)), "integers from 0 on"),
    "has a string for a shape": (file({"w": tensor(0, 4, "1")}, bytes(4)), "integers from 0 on"),
    "has 65 dimensions": (file({"w": tensor(0, 4, [1] * 65)}, bytes(4)), "integers from 0 on"),
    "overflows": (file({"w": tensor(0, 0, [2**32, 2**32])}), "is too large"),
    "overflows to nothing": (file({"w": tensor(0, 0, [0, 2**62, 4])}), "is too large"),
    "has a negative offset": (file({"w": tensor(-4, 0, [1])}, bytes(4)), "integers from 0 on"),
    "has three offsets": (
        file({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(8)),
        r"expected \[begin, end\]",
    ),
    "has offsets backwards": (file({"w": tensor(4, 0, [1])}, bytes(4)), r"expected \[begin, end\]"),
    "has fewer bytes than the shape": (file({"w": tensor(0, 4, [2])}, bytes(4)), "expected 8"),
    "has more bytes than the shape": (file({"w": tensor(0, 8, [1])}, bytes(8)), "expected 4"),
    "ends in a tensor": (file({"w": tensor(0, 8, [2])}, bytes(7)), "take 8 bytes, and it has 7"),
    "has bytes of no tensor": (
        file({"w": tensor(0, 8, [2])}, bytes(9)),
        "take 8 bytes, and it has 9",
    ),
    "begins with a hole": (file({"w": tensor(4, 8, [1])}, bytes(8)), "a hole before it"),
    "has a hole": (
        file({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, bytes(12)),
        "tensor 'b' begins at 8, not 4: it leaves a hole before it",
    ),
    "has tensors over each other": (
        file({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)),
        "tensor 'b' begins at 4, not 8: it overlaps the one before it",
    ),
    "has one tensor under two names": (
        file({"a": tensor(0, 4, [1]), "b": tensor(0, 4, [1])}, bytes(4)),
        "overlaps",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_contradicts_itself_is_refused(place, lie):
    content, reason = LIES[lie]
    with pytest.raises(ConfigError, match=rf"model\.safetensors cannot be read.*{reason}.*again"):
        safetensors.read(place(content))


def test_the_longest_header_is_bounded(place, monkeypatch):
    monkeypatch.setattr(safetensors, "LONGEST", 63)
    header = json.dumps({"w": tensor(0, 4, [1])}).encode()
    assert len(header) <= 63
    path = place(file(header.ljust(63), bytes(4)))
    np.testing.assert_array_equal(safetensors.read(path)["w"], [0.0])
    with pytest.raises(ConfigError, match=r"header of 64 bytes is too long.*at most 63"):
        safetensors.read(place(file(header.ljust(64), bytes(4))))


def small():
    header = {
        "__metadata__": {"format": "pt"},
        "a": tensor(8, 16, [2, 2], "BF16"),
        "b": tensor(0, 8, [2]),
        "c": tensor(16, 16, [0, 3], "I64"),
    }
    return file(header, bytes(range(16)))


def damaged(rng, content):
    """A file with some bytes changed, taken out or put in, or cut short; most keep the length."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        content = content or bytearray(1)
        at = int(rng.integers(len(content)))
        match rng.integers(5):
            case 0:
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                content[at] = int(rng.choice(list(b'0123456789-+.eE[]{}",: tn\\')))
            case 2:
                del content[at : at + int(rng.integers(1, 9))]
            case 3:
                content[at:at] = bytes(rng.choice(list(b"01239[]{},"), int(rng.integers(1, 9))))
            case 4:
                content = content[: at + 1]
    return bytes(content)


def test_damaged_files_are_read_or_refused_and_take_no_memory(place):
    rng, content, refused = np.random.default_rng(0), small(), 0
    files = [damaged(rng, content) for _ in range(1500)]
    files += [content[:n] for n in range(len(content))]
    tracemalloc.start()
    for damage in files:
        path = place(damage)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            found = safetensors.read(path)
        except ConfigError:
            refused += 1
        else:
            assert sum(value.nbytes for value in found.values()) <= len(damage)
        assert tracemalloc.get_traced_memory()[1] - before < 10**5, damage
    tracemalloc.stop()
    assert len(files) > refused > len(files) // 2


def test_a_tensor_is_not_read_before_it_is_looked_at(place):
    path = place(file({"a": tensor(0, 4 * 10**6, [10**6])}, bytes(4 * 10**6)))
    tracemalloc.start()
    found = safetensors.read(path)
    assert tracemalloc.get_traced_memory()[1] < 10**5
    tracemalloc.stop()
    assert not np.any(found["a"])


def test_several_files_are_one_by_their_index(place):
    safetensors.write(place(b"", "one.safetensors"), {"a": np.arange(3), "unlisted": np.ones(1)})
    safetensors.write(place(b"", "two.safetensors"), {"b": np.ones((2, 2), np.float16)})
    weight_map = {"b": "two.safetensors", "a": "one.safetensors"}

    def read(index):
        content = index if isinstance(index, bytes) else json.dumps(index).encode()
        return safetensors.read(place(content, "model.safetensors.index.json"))

    found = read({"metadata": {"total_size": 32}, "weight_map": weight_map})
    assert list(found) == ["b", "a"]
    np.testing.assert_array_equal(found["a"], [0, 1, 2])
    np.testing.assert_array_equal(found["b"], np.ones((2, 2)))
    for lie, reason in (
        (b"[]", "not an object"),
        (b"\xff", "can't decode"),
        ({}, "weight_map is None"),
        ({"weight_map": {"a": 1}}, "expected an object of strings"),
        ({"weight_map": {"a": "../one.safetensors"}}, "safetensors file in its folder"),
        ({"weight_map": {"a": "/etc/hostname"}}, "safetensors file in its folder"),
        ({"weight_map": {"a": "model.safetensors.index.json"}}, "safetensors file in its folder"),
        ({"weight_map": {"c": "one.safetensors"}}, "'c' is not in one.safetensors"),
    ):
        with pytest.raises(ConfigError, match=rf"index\.json cannot be read.*{reason}"):
            read(lie)
    with pytest.raises(ConfigError, match=r"no file .*three\.safetensors"):
        read({"weight_map": weight_map | {"a": "three.safetensors"}})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(f"no file {tmp_path}")):
        safetensors.read(tmp_path)
