"""The times of a sampler's steps, and the levels at them."""

from __future__ import annotations

import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.sampling import grids, paths

TEN = paths.make("cosine", 10)


@pytest.mark.parametrize(
    ("steps", "spacing", "expected"),
    [
        (1, "trailing", [9]),
        (3, "trailing", [2, 6, 9]),
        (5, "trailing", [1, 3, 5, 7, 9]),
        (9, "trailing", [0, 1, 2, 3, 5, 6, 7, 8, 9]),  # round(10 - 10 i / 9) - 1
        (10, "trailing", list(range(10))),
        (5, "uniform", [1, 3, 5, 7, 9]),
        (5, "leading", [0, 2, 4, 6, 8]),
        (4, "leading", [0, 2, 4, 6]),
        (3, "linspace", [3, 6, 9]),
    ],
)
def test_whole_timesteps(steps, spacing, expected):
    """Lin et al. 2024, table 2."""
    found = grids.times(TEN, steps, spacing)
    assert found[::-1].tolist() == expected
    grid, whole = grids.grid(TEN, found), paths.levels(TEN, np.arange(10))
    np.testing.assert_array_equal(grid.time_input[:-1], found)
    np.testing.assert_array_equal(grid.alpha[::-1], [1.0, *whole.alpha[expected]])
    np.testing.assert_array_equal(grid.sigma[::-1], [0.0, *whole.sigma[expected]])


def test_trailing_steps_are_rounded_as_in_the_paper_and_in_diffusers():
    found = grids.times(paths.make("linear", 1000), 3, "trailing")
    assert found.tolist() == [999, 666, 332]


def test_the_end():
    found = grids.times(TEN, 5, "trailing")
    data, first = (grids.grid(TEN, found, end) for end in ("data", "first"))
    assert (data.alpha[-1], data.sigma[-1]) == (1, 0)
    assert first.alpha[-1] == paths.levels(TEN, 0).alpha < 1
    # A grid that is at the first level already stays there, or ends a step earlier.
    stays = grids.grid(TEN, grids.times(TEN, 5, "leading"), "first")
    assert stays.sigma[-1] == stays.sigma[-2] > 0
    path = paths.make("edm")
    for spacing in ("linspace", "lambda", "karras"):
        times = grids.times(path, 9, spacing)
        assert (times[0], times[-1]) == (80.0, 0.002)
        assert len(grids.grid(path, times, "first").alpha) == 9
        assert len(grids.grid(path, times, "data").alpha) == 10


def test_spacings_in_continuous_time():
    path = paths.make("edm")
    N, rho = 18, 5.0
    i = np.arange(N) / (N - 1)
    want = (80.0 ** (1 / rho) + i * (0.002 ** (1 / rho) - 80.0 ** (1 / rho))) ** rho
    np.testing.assert_allclose(grids.times(path, N, "karras", rho=rho), want, rtol=1e-10)
    want = np.exp(np.linspace(np.log(80.0), np.log(0.002), N))
    np.testing.assert_allclose(grids.times(path, N, "lambda"), want, rtol=1e-10)
    np.testing.assert_allclose(grids.times(path, N, "linspace"), np.linspace(80.0, 0.002, N))
    even = np.append(grids.times(path, N, "uniform"), 0.002)
    np.testing.assert_allclose(even, np.linspace(80.0, 0.002, N + 1))


@pytest.mark.parametrize("spacing", ["linspace", "lambda", "karras"])
@pytest.mark.parametrize("name", paths.NAMES)
def test_grids_go_from_the_last_level_to_the_first(name, spacing):
    path = paths.make(name)
    times = grids.times(path, 12, spacing)
    assert (times[0], times[-1]) == (path.last, path.first)
    assert np.all(np.diff(times) < 0)
    grid = grids.grid(path, times)
    assert np.all(np.diff(grid.sigma) < 0)


def test_a_shift_is_esser_s_of_a_flow():
    s = 3.0
    times = grids.times(paths.make("flow"), 10, shift=s)
    plain = np.linspace(1.0, 1e-3, 11)[:-1]
    np.testing.assert_allclose(times, s * plain / (1 + (s - 1) * plain), rtol=1e-10)


def test_times_by_hand():
    """As the table of Sabour et al. (2024) for Stable Diffusion 1.5 in ten steps."""
    path = paths.make("linear", 1000)
    given = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)
    assert grids.times(path, 3, given=given).tolist() == list(given)
    for wrong in ((10, 20), (5, 5), (1000, 3), (3, -1)):
        with pytest.raises(ConfigError, match="decreasing times of the path, from 999 to 0"):
            grids.times(path, 3, given=wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TEN, 11), "steps=11.*between 1 and 10"),
        ((TEN, 0), "steps=0.*1 to 16384"),
        ((TEN, -1), "steps=-1.*1 to 16384"),
        ((TEN, 2, "middle"), "trailing, leading"),
        ((paths.make("flow"), 2**14 + 1), "steps=16385.*1 to 16384"),
        (
            (paths.make("flow"), 2, "leading"),
            "whole timesteps.*Use uniform, linspace, lambda or karras",
        ),
    ],
)
def test_times_that_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        grids.times(*arguments)


def test_grids_that_are_refused():
    with pytest.raises(ConfigError, match="shift=0"):
        grids.times(paths.make("flow"), 2, shift=0)
    with pytest.raises(ConfigError, match="shift=2"):
        grids.times(TEN, 2, "leading", shift=2)
    with pytest.raises(ConfigError, match="data, first"):
        grids.grid(TEN, np.array([3.0, 1.0]), "middle")
    with pytest.raises(ConfigError, match="same noise twice"):
        grids.grid(TEN, np.array([3.0, 3.0]))
