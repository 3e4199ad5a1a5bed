"""Averages put together from kept ones, against quadrature, a grid, and averages made directly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from genjax import config as configs
from genjax.config import ConfigError
from genjax.training import ema, snapshots

# Karras et al. 2024, section 3.1, give 16.97 and 6.94; with all digits, as the paper's code has it.
EXPONENTS = {0.05: 16.9722, 0.1: 6.9372, 0.15: 3.5579, 0.2: 1.8262}


@pytest.mark.parametrize("deviation", EXPONENTS)
def test_exponents_are_the_published_ones(deviation):
    assert ema.exponent(deviation) == pytest.approx(EXPONENTS[deviation], abs=5e-5)


def profile(t, step, gamma):
    return np.where(t <= step, (gamma + 1) * t**gamma / step ** (gamma + 1), 0.0)


@pytest.mark.parametrize(("a", "b"), [((100, 6.9), (40, 17.0)), ((40, 17.0), (100, 1.8))])
def test_inner_products_are_those_of_quadrature(a, b):
    expected, _ = quad(lambda t: profile(t, *a) * profile(t, *b), 0, 40)
    found = ema.inner(*(np.float64(x) for x in (*a, *b)))
    assert found == pytest.approx(expected, rel=1e-7)


def grid_of(deviations, per_profile, last):
    """Profile by profile, at `per_profile` even steps up to `last`."""
    steps = [last * (i + 1) // per_profile for i in range(per_profile)]
    return zip(*((d, s) for s in steps for d in deviations), strict=True)


def test_coefficients_are_the_least_squares_of_functions_on_a_fine_grid():
    deviations, steps = grid_of((0.05, 0.1), 8, 1000)
    t = (np.arange(200_000) + 0.5) / 200
    columns = [profile(t, s, ema.exponent(d)) for d, s in zip(deviations, steps, strict=True)]
    wanted = profile(t, 1000, ema.exponent(0.08))
    expected = np.linalg.lstsq(np.stack(columns, 1), wanted)[0]
    found, missed = ema.coefficients(deviations, steps, 0.08, 1000)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected / expected.sum(), atol=2e-5)
    share = np.linalg.norm(np.stack(columns, 1) @ found - wanted) / np.linalg.norm(wanted)
    assert missed == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("kept", [(0.05, 0.1), (0.05, 0.1, 0.15, 0.2, 0.25)])
@pytest.mark.parametrize("count", [1, 7, 100])
def test_what_was_kept_is_found_again_and_coefficients_sum_to_one(kept, count):
    deviations, steps = grid_of(kept, count, 10_000)
    for deviation in (0.1, 0.03, 0.08, 0.2, 0.28):
        found, missed = ema.coefficients(deviations, steps, deviation, 10_000)
        assert found.sum() == pytest.approx(1, abs=1e-12)
        rounded = np.abs(found).sum() * 2**-24  # what float32 adds at most: no singular system
        assert rounded < max(missed, 1e-5)
        if deviation in kept:
            assert missed < 1e-6
            if count < 100:  # beyond that, other sums give the same weights
                one = [
                    (d, s) == (deviation, 10_000) for d, s in zip(deviations, steps, strict=True)
                ]
                np.testing.assert_allclose(found, one, atol=1e-6)


def walk(steps):
    return np.cumsum(np.random.default_rng(0).normal(size=(steps, 16)), 0)


def square(steps):
    return np.linspace(0, 1, steps)[:, None] ** 2


@pytest.mark.parametrize("trajectory", [walk, square])
def test_averages_put_together_are_those_accumulated_directly(trajectory):
    config, steps = configs.base(), 4000
    config.ema.update({"decay": (), "power": (0.05, 0.1, 0.08, 0.15)})
    history = {"net": jnp.asarray(trajectory(steps), jnp.float32)}

    def one(averages, given):
        step, params = given
        averages = ema.update(config, averages, params, step)
        return averages, averages

    start = ema.init(config, jax.tree.map(lambda x: x[0], history), ["net"])
    _, kept = jax.lax.scan(one, start, (jnp.arange(steps), history))
    kept = {d: np.asarray(kept[f"power_{d}"]["net"], np.float64) for d in config.ema.power}
    for deviation, bound in ((0.08, 1e-2), (0.15, 3e-2)):
        errors, direct = [], kept[deviation][-1]
        for count in (2, 5, 20, 80):
            deviations, at = grid_of((0.05, 0.1), count, steps)
            factors, _ = ema.coefficients(deviations, at, deviation, steps)
            rows = np.stack([kept[d][s - 1] for d, s in zip(deviations, at, strict=True)])
            errors.append(np.linalg.norm(factors @ rows - direct) / np.linalg.norm(direct))
        assert errors[2] < bound, errors
        assert errors[3] < errors[2] / 2 < errors[0] / 4, errors


def run_with(**values):
    config = configs.base()
    config.ema.update({"decay": (0.999, 0.1), "power": (0.05, 0.15)} | values)
    return config


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("none", "none"),
        ("0.999", "0.999"),
        (".9990", "0.999"),
        ("0.1", "0.1"),  # a decay that was kept, and no standard deviation
        ("0.15", "power_0.15"),
        ("power_0.05", "power_0.05"),
        ("power_.050", "power_0.05"),
        ("0.08", 0.08),
        ("0.28", 0.28),
    ],
)
def test_what_a_user_asks_for(given, expected):
    assert snapshots.find(run_with(), [5], given, "--ema") == expected


@pytest.mark.parametrize(
    ("given", "steps", "values", "said"),
    [
        ("0.9", [5], {}, ["any relative standard", "config.ema.decay=(0.9,)"]),
        ("1", [5], {}, ["0.999, 0.1, power_0.05, power_0.15, none", "Give one of these names"]),
        ("0.2887", [5], {}, ["config.ema.decay=(0.2887,)"]),
        ("power_0.08", [5], {}, ["config.ema.power=(0.08,)"]),
        ("power_0.9", [5], {}, ["Give one of these names"]),
        ("best", [5], {}, ["--guide_ema=best", "Give one of these names"]),
        ("nan", [5], {}, ["Give one of these names"]),
        (
            "0.08",
            [],
            {},
            ["no snapshots up to this checkpoint", "config.ema.snapshots='5_percent'"],
        ),
        ("0.08", [5], {"power": (0.05,)}, ["config.ema.power=(0.08,)", "two values"]),
    ],
)
def test_what_was_not_kept_is_refused_with_what_is_there(given, steps, values, said):
    with pytest.raises(ConfigError) as error:
        snapshots.find(run_with(**values), steps, given, "--guide_ema")
    for part in said:
        assert part in str(error.value)
