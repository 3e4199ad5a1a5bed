"""Means and standard errors over a split: numpy, and a simulation."""

import jax
import numpy as np
import pytest

from genjax.config import base
from genjax.evals.evaluate import evaluate, make_evaluate
from genjax.method import Method, Ratio
from genjax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(base(), jax.devices()[:1])


@pytest.fixture(scope="module")
def sums(mesh):
    def judge(params, mutable, batch, key):
        return {
            "plain": batch["total"],
            "ratio": Ratio(batch["total"], batch["weight"]),
            "state": params["x"] + batch["total"][0] * 0,
            "nothing": Ratio(batch["total"], 0 * batch["weight"]),
        }

    return make_evaluate(Method(None, (), judge, None, ()), mesh)


def run(sums, mesh, total, weight):
    """Over batches of four, the last of which is padded with what does not count."""
    rows = -(-len(total) // 4) * 4
    padded = {
        "total": np.resize(total, rows).astype(np.float32),
        "weight": np.resize(weight, rows).astype(np.float32),
    }
    valid = np.arange(rows) < len(total)
    batches = [
        ({k: v[i : i + 4] for k, v in padded.items()}, valid[i : i + 4]) for i in range(0, rows, 4)
    ]
    with jax.set_mesh(mesh):
        return evaluate(sums, {"x": 0.3}, {}, batches, jax.random.key(0), mesh)


def test_means_are_of_all_examples_and_ratios_of_the_sums(sums, mesh):
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 9, 10)
    total = rng.normal(size=10) + 3 * weight
    found = run(sums, mesh, total, weight)
    assert found["plain"] == pytest.approx(total.mean(), rel=1e-6)
    assert found["state"] == pytest.approx(0.3, rel=1e-6)
    assert "state_se" not in found
    assert found["plain_se"] == pytest.approx(total.std(ddof=1) / np.sqrt(10), rel=1e-5)
    assert found["ratio"] == pytest.approx(total.sum() / weight.sum(), rel=1e-6)
    assert "nothing" not in found


def test_the_standard_error_of_a_ratio_is_its_spread_over_splits(sums, mesh):
    rng = np.random.default_rng(1)

    def split():
        weight = rng.integers(1, 20, 200)
        return weight * (2 + rng.normal(size=200)), weight

    found = [run(sums, mesh, *split()) for _ in range(200)]
    spread = np.std([f["ratio"] for f in found], ddof=1)
    assert np.mean([f["ratio_se"] for f in found]) == pytest.approx(spread, rel=0.15)
