"""Matrices of MATLAB files, as scipy writes and reads them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.io

from genjax.data import matlab

DTYPES = ("u1", "i1", "u2", "i2", "i4", "u4", "i8", "u8", "f4", "f8")


@pytest.mark.parametrize("compressed", [False, True])
def test_matrices_are_those_of_scipy(tmp_path, compressed):
    rng = np.random.default_rng(0)
    made = {f"a_{d}": rng.integers(0, 99, (3, 5)).astype(d) for d in DTYPES}
    made |= {"x": np.arange(24.0).reshape(2, 3, 4), "one": np.ones((1, 1)), "b": np.ones((3, 2))}
    cells = np.empty((2, 2), object)
    for i, (row, column) in enumerate(np.ndindex(2, 2)):
        cells[row, column] = rng.integers(0, 2, (i + 1, 4)).astype(np.uint8)
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, made | {"cells": cells, "t": "text"}, do_compression=compressed)
    found = matlab.read(path, lambda names: [name for name in names if name != "t"])
    theirs = scipy.io.loadmat(path)
    for name in made:
        np.testing.assert_array_equal(found[name], theirs[name])
    for own, other in zip(found["cells"], theirs["cells"].ravel(order="F"), strict=True):
        np.testing.assert_array_equal(own, other)


def test_what_contradicts_itself_is_refused(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": np.ones((2, 3))})
    whole = path.read_bytes()
    for cut in (0, 100, 130, 140, 190, len(whole) - 8):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"MATLAB 5|cut short|longer than|bytes of"):
            matlab.read(path, list)
