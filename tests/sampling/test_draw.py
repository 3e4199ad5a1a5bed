"""Drawing in batches, and options from the command line."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from genjax.config import ConfigError
from genjax.method import Method
from genjax.sampling.draw import BATCH, make_draw, parse_options


def sample(params, mutable, key, num, condition=None, *, scale=1.0, name="a"):
    x = scale * jax.random.normal(key, (num, 2))
    return x if condition is None else x.at[:, 1].set(condition)


METHOD = Method(None, (), None, sample, ())
SPEC = SimpleNamespace(num_classes=8)
RUN = SimpleNamespace(method=METHOD, spec=SPEC, mesh=Mesh(np.array(jax.devices()[:1]), ("data",)))


def test_the_first_samples_do_not_depend_on_how_many_follow():
    key = jax.random.key(0)
    many = make_draw(RUN, 2 * BATCH + 5, {})({}, {}, key)
    assert many.shape == (2 * BATCH + 5, 2)
    assert len(np.unique(many[:, 0])) == len(many)
    np.testing.assert_array_equal(make_draw(RUN, BATCH, {})({}, {}, key), many[:BATCH])
    np.testing.assert_array_equal(
        make_draw(RUN, BATCH, {"scale": 2.0})({}, {}, key), 2 * many[:BATCH]
    )


@pytest.mark.parametrize("condition", [7, (1, 2, 3)])
def test_conditions_are_repeated_in_turn_over_batches(condition):
    num = BATCH + 5
    drawn = make_draw(RUN, num, {"condition": condition})({}, {}, jax.random.key(0))
    values = condition if isinstance(condition, tuple) else (condition,)
    np.testing.assert_array_equal(drawn[:, 1], [values[i % len(values)] for i in range(num)])


@pytest.mark.parametrize("condition", [8, -1, "cat", (0, 9), 1.5])
def test_a_condition_that_is_no_class_is_refused(condition):
    with pytest.raises(ConfigError, match="classes from 0 to 7"):
        make_draw(RUN, 4, {"condition": condition})


def test_options_are_values_and_unknown_ones_are_refused():
    given = {"scale": "0.5", "name": "ddim", "condition": "(1, 2)"}
    assert parse_options(METHOD, given) == {"scale": 0.5, "name": "ddim", "condition": (1, 2)}
    with pytest.raises(ConfigError, match=r"--scal=1.*scale"):
        parse_options(METHOD, {"scal": "1"})


def test_samples_are_one_array_on_a_mesh_of_many():
    run = SimpleNamespace(method=METHOD, spec=SPEC, mesh=Mesh(np.array(jax.devices()), ("data",)))
    single = make_draw(RUN, 8, {})({}, {}, jax.random.key(3))
    np.testing.assert_allclose(make_draw(run, 8, {})({}, {}, jax.random.key(3)), single, rtol=1e-6)
