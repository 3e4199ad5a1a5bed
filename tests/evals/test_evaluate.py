"""Means and standard errors over a split: numpy, and a simulation."""

import jax
import jax.numpy as jnp
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


def test_standard_errors_of_numbers_far_from_zero_do_not_cancel(mesh):
    def judge(params, mutable, batch, key):
        x = batch["x"]
        return {"plain": x, "ratio": Ratio(x, jnp.ones_like(x) * 2)}

    sums = make_evaluate(Method(None, (), judge, None, ()), mesh)
    rng = np.random.default_rng(2)
    x = (1234.567 + 0.01 * rng.choice([-1.0, 1.0], 10_000)).astype(np.float32)
    valid = np.ones(500, bool)
    batches = [({"x": rows}, valid) for rows in x.reshape(-1, 500)]
    with jax.set_mesh(mesh):
        found = evaluate(sums, {}, {}, batches, jax.random.key(0), mesh)
    exact = x.astype(np.float64)
    assert found["plain"] == pytest.approx(exact.mean(), rel=1e-9)
    assert found["plain_se"] == pytest.approx(exact.std(ddof=1) / 100, rel=1e-4)
    assert found["plain_se"] == pytest.approx(1.0e-4, rel=1e-2)
    assert found["ratio"] == pytest.approx(exact.mean() / 2, rel=1e-9)
    assert found["ratio_se"] == pytest.approx(exact.std(ddof=1) / 200, rel=1e-4)


def test_batches_of_different_means_and_infinite_values(sums, mesh):
    total = np.concatenate([np.full(4, 1000.0), np.full(4, 1001.0), np.full(2, 1003.0)])
    found = run(sums, mesh, total, np.arange(1, 11))
    assert found["plain"] == pytest.approx(total.mean(), rel=1e-9)
    assert found["plain_se"] == pytest.approx(total.std(ddof=1) / np.sqrt(10), rel=1e-6)
    total[3] = np.inf
    assert run(sums, mesh, total, np.arange(1, 11))["plain"] == np.inf


def test_one_example_has_a_mean_and_no_standard_error(sums, mesh):
    found = run(sums, mesh, np.array([1234.5]), np.array([3]))
    assert found["plain"] == 1234.5
    assert found["ratio"] == 411.5
    assert not [name for name in found if name.endswith("_se")]
