"""Streaming statistics against numpy.cov for any split of the data, and their files."""

from __future__ import annotations

import os

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.evals import statistics
from genjax.evals.statistics import Reference, Statistics

DIM = 7
RNG = np.random.default_rng(0)
# Means far from zero and a wide range of variances, where sums of squares would lose digits.
X = RNG.standard_normal((301, DIM)) * np.logspace(-2, 2, DIM) + 10.0
COV = np.cov(X, rowvar=False)


def stream(x, bounds):
    stats = statistics.start(DIM)
    for start, stop in zip((0, *bounds), (*bounds, len(x)), strict=True):
        stats = statistics.update(stats, x[start:stop])
    return stats


def assert_close(a: Statistics, b: Statistics, rtol=1e-12):
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol)
    scale = np.sqrt(np.outer(np.diag(b.m2), np.diag(b.m2)))
    np.testing.assert_allclose(a.m2 / scale, b.m2 / scale, rtol=0, atol=rtol)


@pytest.mark.parametrize(
    "bounds",
    [(), (300,), range(1, 301), range(64, 301, 64), (0, 5, 5, 120, 301), (2, 3, 290)],
    ids=str,
)
def test_any_split_gives_numpys_covariance(bounds):
    """A last batch of one, batches of one throughout, empty ones, and unequal ones."""
    stats = stream(X, bounds)
    assert stats.count == 301
    assert stats.mean.dtype == stats.m2.dtype == np.float64
    assert_close(stats, stream(X, ()))
    mean, cov = statistics.finish(stats)
    np.testing.assert_allclose(mean, X.mean(0), rtol=1e-13)
    scale = np.sqrt(np.outer(np.diag(COV), np.diag(COV)))
    np.testing.assert_allclose(cov / scale, COV / scale, rtol=0, atol=1e-12)


def test_merge_is_associative_and_has_a_neutral_element():
    a, b, c = (stream(part, ()) for part in (X[:10], X[10:250], X[250:]))
    merge = statistics.merge
    assert_close(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert_close(merge(merge(c, a), b), stream(X, ()))
    none = statistics.start(DIM)
    chex.assert_trees_all_equal(merge(a, none), a)
    chex.assert_trees_all_equal(merge(none, a), a)
    assert merge(none, none).count == 0


def test_batches_of_float32_are_summed_in_float64():
    x = X.astype(np.float32)
    stats = statistics.start(DIM)
    for start in range(0, 301, 64):
        stats = statistics.update(stats, jnp.asarray(x[start : start + 64]))
    assert_close(stats, stream(x.astype(np.float64), ()))


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (np.zeros((4, DIM + 1)), "shape"),
        (np.zeros(DIM), "shape"),
        (np.full((4, DIM), np.nan), "not finite"),
    ],
)
def test_update_refuses(features, words):
    with pytest.raises(ValueError, match=words):
        statistics.update(statistics.start(DIM), features)


def test_finish_and_merge_refuse():
    with pytest.raises(ValueError, match="1 examples"):
        statistics.finish(stream(X[:1], ()))
    with pytest.raises(ValueError, match="7 and of 3 features"):
        statistics.merge(statistics.start(7), statistics.start(3))


def reference(**changes):
    mean, cov = statistics.finish(stream(X, ()))
    features = X[:20].astype(np.float32)
    return Reference("classifier", "abc", 301, mean, cov, features)._replace(**changes)


@pytest.mark.parametrize("features", [None, X[:20].astype(np.float32)])
def test_a_reference_comes_back_bit_for_bit(tmp_path, features):
    path = tmp_path / "made" / "here.npz"
    kept = reference(features=features)
    statistics.save_reference(path, kept)
    for digest in ("abc", None):
        found = statistics.load_reference(path, name="classifier", digest=digest)
        assert found[:3] == ("classifier", "abc", 301)
        chex.assert_trees_all_equal(found[3:], kept[3:])
    with np.load(path) as file:
        keys = {"mean", "cov", "count", "features_name", "data_digest"}
        assert set(file.files) == keys | ({"features"} if features is not None else set())
    assert os.listdir(path.parent) == ["here.npz"]


def test_another_reference_is_refused_and_named(tmp_path):
    path = tmp_path / "reference.npz"
    statistics.save_reference(path, reference())
    with pytest.raises(ConfigError, match=r"reference.npz.*'classifier': expected 'inception'"):
        statistics.load_reference(path, name="inception", digest=None)
    with pytest.raises(ConfigError, match=r"reference.npz.*'abc': expected 'def'"):
        statistics.load_reference(path, name="classifier", digest="def")
    with pytest.raises(ConfigError, match=r"no reference statistics at .*gone.npz"):
        statistics.load_reference(tmp_path / "gone.npz", name="classifier", digest=None)


def damaged(path, damage):
    """A file of references, damaged in one way."""
    if isinstance(damage, dict):
        statistics.save_reference(path, reference(**damage))
        return
    statistics.save_reference(path, reference())
    content = bytearray(path.read_bytes())
    if damage == "torn":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 3] ^= 255
    elif damage == "text":
        content = b"mean, cov\n"
    elif damage == "empty":
        content = b""
    path.write_bytes(content)
    if damage == "array":
        with open(path, "wb") as file:
            np.save(file, X)
    elif damage == "keys":
        np.savez(path, mean=X, mu=X)
    elif damage == "pickle":
        np.savez(path, mean=np.array([{}], dtype=object))


@pytest.mark.parametrize(
    "damage",
    [
        *("torn", "flipped", "text", "empty", "array", "keys", "pickle"),
        {"cov": np.zeros((3, 3))},
        {"mean": np.full(DIM, np.nan)},
        {"mean": np.zeros((DIM, DIM))},
        {"features": np.zeros((5, 2))},
        {"features": np.zeros((5, DIM), int)},
        {"count": 1},
    ],
    ids=str,
)
def test_a_damaged_reference_is_refused_and_named(tmp_path, damage):
    path = tmp_path / "reference.npz"
    damaged(path, damage)
    with pytest.raises(ConfigError, match=r"reference.npz.*Delete it"):
        statistics.load_reference(path, name="classifier", digest="abc")


def test_a_full_disk_leaves_the_old_reference(tmp_path, monkeypatch):
    path = tmp_path / "reference.npz"
    statistics.save_reference(path, reference())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        statistics.save_reference(path, reference(digest="def"))
    monkeypatch.undo()
    assert statistics.load_reference(path, name="classifier", digest="abc").count == 301
    assert os.listdir(tmp_path) == ["reference.npz"]
