"""Codes in the cache: whole, or made again."""

import numpy as np
import pytest

from genjax.training import codes

ROWS = {"code": np.arange(12).reshape(4, 3), "log_likelihood": np.arange(4.0)}


def test_what_is_written_is_read(tmp_path):
    left = tmp_path / ".place.killed"
    left.mkdir()
    codes._write(tmp_path / "place", ROWS)
    found = codes._kept(tmp_path / "place", list(ROWS), 4)
    assert all((found[name] == rows).all() for name, rows in ROWS.items())
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert codes._kept(tmp_path / "other", list(ROWS), 4) is None


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", None, "few", "zeros"])
def test_what_is_damaged_is_said_and_replaced(tmp_path, caplog, content):
    place = tmp_path / "place"
    codes._write(place, ROWS)
    if content is None:
        (place / "code.npy").unlink()
    elif content == "few":
        np.save(place / "code.npy", ROWS["code"][:3])
    elif content == "zeros":  # of the right shape
        np.save(place / "code.npy", 0 * ROWS["code"])
    else:
        (place / "code.npy").write_bytes(content)
    assert codes._kept(place, list(ROWS), 4) is None
    assert "the codes are made again" in caplog.text
    codes._write(place, ROWS)
    assert codes._kept(place, list(ROWS), 4) is not None


def test_moments_far_from_zero_do_not_cancel():
    rng = np.random.default_rng(0)
    rows = (1e8 + rng.normal(size=(10_000, 2))).astype(np.float64)
    found = codes.moments(rows)
    np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], rows.std(0), rtol=1e-6)
