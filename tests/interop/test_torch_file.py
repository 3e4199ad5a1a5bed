"""Files that torch wrote (make_torch_file.py), and files that nobody should have written."""

from __future__ import annotations

import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.interop import torch_file

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "torch_file.npz")
FORMATS = ("zip", "stream")


@pytest.fixture
def write(tmp_path):
    """Writes bytes to a file; gives its path."""

    def write(content):
        path = tmp_path / "weights.pth"
        path.write_bytes(bytes(content))
        return path

    return write


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("group", ["tensors", "module"])
def test_tensors_are_those_that_torch_saved(write, group, form):
    found = torch_file.read(write(GOLDEN[f"file/{group}/{form}"]))
    names = [name for name in GOLDEN.files if name.startswith(f"{group}/")]
    assert [f"{group}/{name}" for name in found] == names
    for name, value in found.items():
        expected = GOLDEN[f"{group}/{name}"]
        assert value.shape == expected.shape, name
        assert value.flags.c_contiguous
        if name == "bfloat16":
            assert value.dtype.name == "bfloat16"
            value = value.astype(np.float32)
        assert value.dtype == expected.dtype, name
        np.testing.assert_array_equal(value, expected, err_msg=name)


@pytest.mark.parametrize("form", FORMATS)
def test_a_pickled_module_is_refused_and_nothing_of_it_runs(write, form):
    with pytest.raises(ConfigError, match=r"asks for torch\.nn\.modules.*state_dict\(\)"):
        torch_file.read(write(GOLDEN[f"file/whole_module/{form}"]))


@pytest.mark.parametrize("form", FORMATS)
def test_a_dictionary_of_more_than_tensors_is_refused(write, form):
    with pytest.raises(ConfigError, match=r"'state_dict' is a .*'epoch' is a int.*state_dict\(\)"):
        torch_file.read(write(GOLDEN[f"file/nested/{form}"]))


class Evil:
    """Runs a command when a careless reader unpickles it."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def zipped(content, members=(), name="archive"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{name}/data.pkl", content)
        for member, data in members:
            archive.writestr(f"{name}/{member}", data)
    return buffer.getvalue()


def test_code_in_a_file_does_not_run(write, tmp_path):
    evil = Evil(f"touch {tmp_path / 'owned'}")
    stream = b"".join(
        pickle.dumps(part, 2)
        for part in (torch_file.MAGIC, 1001, {"little_endian": True}, evil, [])
    )
    for content in (zipped(pickle.dumps(evil, 2)), stream, pickle.dumps(evil, 2)):
        with pytest.raises(ConfigError, match=r"asks for (posix|os)\.system"):
            torch_file.read(write(content))
    assert not (tmp_path / "owned").exists()


def crafted(offset, shape, strides):
    """An archive whose one tensor, `w`, has these numbers, over a storage of four floats.

    Written opcode by opcode, as the classes that it names are torch's.
    """
    storage = b"((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ"
    numbers = b"".join(pickle.dumps(n, 2)[2:-1] for n in (offset, shape, strides))
    call = b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + numbers + b"\x89NtR"
    members = [("data/0", np.arange(4, dtype="<f4").tobytes())]
    return zipped(b"\x80\x02}U\x01w" + call + b"s.", members)


def test_a_tensor_lies_within_its_storage(write):
    found = torch_file.read(write(crafted(1, (3,), (1,))))
    np.testing.assert_array_equal(found["w"], [1.0, 2.0, 3.0])
    for offset, shape, strides in (
        (2, (3,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (10**12,), (0,)),
        (5, (1,), (1,)),
    ):
        with pytest.raises(
            ConfigError, match=r"does not fit its storage of 4 elements|a tensor of \("
        ):
            torch_file.read(write(crafted(offset, shape, strides)))


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_is_cut_short_is_refused(write, form):
    content = bytes(GOLDEN[f"file/tensors/{form}"])
    for size in (0, 1, 30, len(content) // 2, len(content) - 3):
        with pytest.raises(ConfigError, match=r"weights\.pth cannot be read.*Fetch it again"):
            torch_file.read(write(content[:size]))


def test_other_byte_orders_and_missing_files_are_refused(write, tmp_path):
    with pytest.raises(ConfigError, match="byte order is b'big'"):
        torch_file.read(write(zipped(pickle.dumps({}, 2), [("byteorder", b"big")])))
    with pytest.raises(ConfigError, match=r"no file .*nothing\.pth"):
        torch_file.read(tmp_path / "nothing.pth")
