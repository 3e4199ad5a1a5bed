"""Drawing in batches, and options from the command line."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from genjax.config import ConfigError
from genjax.method import DataSpec, Method
from genjax.methods import lm
from genjax.networks import decoder
from genjax.nn.functional import functional
from genjax.sampling.draw import BATCH, draw_from_prompts, make_draw, parse_options


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


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0, "max_new_tokens": 24}, {"beams": 3}],
    ids=["past the window", "as far as beams go"],
)
def test_each_of_several_prompts_is_gone_on_from_as_if_alone(options):
    """With random weights, so that a text tells from what, and where, it was gone on from."""
    rng = np.random.default_rng(0)
    tokens = {"token": jax.ShapeDtypeStruct((13,), np.int32)}
    spec = DataSpec("made", "text", tokens, {"train": 8}, 0, 40, {"start": 0})

    def network(rngs):
        return decoder.Network(40, 12, width=16, depth=1, heads=2, rngs=rngs)

    method = lm.from_network(functional(network), lm.Options(), spec, 12, decoder.RULES)
    run = SimpleNamespace(method=method, spec=spec, mesh=RUN.mesh)
    params, mutable = method.init(jax.random.key(0), None)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    state = (params, mutable, jax.random.key(0))
    given = [rng.integers(40, size=n).astype(np.int32) for n in (9, 2, 9, 5)]
    alone = [draw_from_prompts(run, [prompt], 1, options, *state)[0] for prompt in given]
    assert len(np.unique(np.concatenate(alone))) > 8
    together = draw_from_prompts(run, given, 6, options, *state)
    assert together.dtype == np.int32
    for i, text in enumerate(together):
        expected = alone[i % 4]
        np.testing.assert_array_equal(text[: len(expected)], expected)
        assert (text[len(expected) :] == -1).all()


def test_texts_of_several_prompts_are_drawn_apart():
    """No two lengths share their draws; those of the longest have the draws of one alone."""

    def drawing(params, mutable, key, num, condition=None):
        new = jax.random.randint(key, (num, 1), 0, 2**30)
        return jnp.concatenate([condition, new], 1)

    method, spec = METHOD._replace(sample=drawing), SimpleNamespace(num_classes=0)
    run = SimpleNamespace(method=method, spec=spec, mesh=RUN.mesh)
    given = [np.full(n, n, np.int32) for n in (2, 3, 2, 4)]
    texts = draw_from_prompts(run, given, 8, {}, {}, {}, jax.random.key(0))
    lengths = (texts >= 0).sum(1)
    np.testing.assert_array_equal(lengths, [3, 4, 3, 5] * 2)
    drawn = texts[np.arange(8), lengths - 1]
    assert len(np.unique(drawn)) == 8
    longest = make_draw(run, 2, {"condition": given[3][None]})({}, {}, jax.random.key(0))
    np.testing.assert_array_equal(longest[:, 4], drawn[lengths == 5])
