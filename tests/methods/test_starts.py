"""Samples that begin with pictures: the noise of Gaussian data in closed form, and refusals."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specs import images

from genjax.config import ConfigError
from genjax.methods import diffusion, starts
from genjax.methods.denoiser import Denoiser, fields_of
from genjax.nn.functional import Functional
from genjax.nn.pixels import to_float
from genjax.sampling import paths, solvers
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.table import PAIRS

SHAPE, CLASSES, N = (4, 4, 1), 3, 6
SPEC = images(SHAPE, classes=CLASSES, train=1)
KEY = jax.random.key(3)
STD = 0.3
EMPTY = {"denoiser": {}}
SHIFTS = jnp.array([-0.2, 0.3, 0.1, 0.0])  # the mean of each class; the last: of the hidden label


class Exact(Denoiser):
    """A model that is exact for pixels N(mean of the label, STD^2)."""

    def predict(self, params, mutable, x, at, cond):
        mean = 0.0 if cond.label is None else SHIFTS[cond.label].reshape(-1, 1, 1, 1)
        score = (x - at.alpha * mean) / (at.alpha**2 * STD**2 + at.sigma**2)
        return Prediction(mean + at.alpha * STD**2 * score, at.sigma * score)


def method_of(**options):
    """Its method, its path and its options."""
    o = diffusion.Options(**{"num_timesteps": 0} | options)
    model = Exact(*diffusion.denoiser_of(Functional(None, None), o, SPEC))
    method = diffusion.from_network(model.net, o, SPEC, ())
    return method._replace(sample=partial(diffusion.sample, model)), model.path, o


def pictures(seed=0):
    """Pictures far from white and black, so that nothing is clipped."""
    x = np.random.default_rng(seed).normal(0.0, STD, (N, *SHAPE))
    return ((np.clip(x, -0.9, 0.9) + 1) * 127.5).round().astype(np.uint8)


def samples(method, condition=None, **options):
    return np.asarray(
        method.sample(EMPTY, EMPTY, KEY, N, condition or {}, **method.plan(**options)), np.float64
    )


def noise_of(x0, path, mean=0.0, at=None):
    """The noise to which the probability-flow ODE takes x0: both ends have the same rank."""
    first, last = (paths.levels(path, t) for t in (path.first, path.last if at is None else at))
    deviation = [np.sqrt(level.alpha**2 * STD**2 + level.sigma**2) for level in (first, last)]
    return last.alpha * mean + (first.alpha * (x0 - mean)) * deviation[1] / deviation[0]


def start_of(method, o, path, condition, **options):
    """The first point of sampling."""
    plan = method.plan(**options)
    net = method.sample.args[0]
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(3 + jnp.arange(N))
    _, own = starts.split(condition, fields_of(o, SPEC))
    at = type(plan["table"].at)(*(jnp.float32(a[0]) for a in plan["table"].at))
    first = {"at": at, "inversion": plan["inversion"], "beginning": plan["beginning"]}
    return starts.point(net, EMPTY, EMPTY, own, keys, **first)


@pytest.mark.parametrize("path_name", ["cosine", "flow", "edm"])
def test_the_noise_of_a_picture_is_that_of_the_ode(path_name):
    method, path, o = method_of(path=path_name, class_conditional=True)
    x = pictures()
    spacing = {"spacing": "karras"} if path_name == "edm" else {}
    options = {"inversion": 1000, "sampler": "heun", "steps": 10, **spacing}
    scale = float(paths.levels(path, path.last).sigma)
    for label, mean in (({}, 0.0), ({"start_label": jnp.full(N, 1)}, 0.3)):
        found = start_of(method, o, path, {"start": x, **label}, **options)
        expected = noise_of(np.asarray(to_float(x)), path, mean)
        np.testing.assert_allclose(found / scale, expected / scale, atol=0.02)


def test_the_conditions_of_the_picture_lead_back_to_it_and_others_change_it():
    method, _, _ = method_of(path="cosine", class_conditional=True)
    x = pictures()
    described = {"start": x, "start_label": jnp.full(N, 1)}
    options = {"sampler": "dpm++_2m", "steps": 50, "inversion": 500}
    back = samples(method, described | {"label": jnp.full(N, 1)}, **options)
    assert np.abs(back - x).mean() < 1
    other = samples(method, described | {"label": jnp.full(N, 0)}, **options)
    np.testing.assert_allclose((other - x).mean(), (-0.2 - 0.3) * 127.5, atol=2)
    half = samples(method, described | {"label": jnp.full(N, 1)}, strength=0.5, **options)
    assert np.abs(half - x).mean() < 1


def test_strength_keeps_the_last_steps_and_adds_the_noise_of_their_first_level():
    method, path, o = method_of(path="cosine")
    x = pictures()
    plan = method.plan(strength=0.3, steps=10)
    assert plan["table"].calls == 3
    np.testing.assert_allclose(plan["table"].at.alpha, method.plan(steps=10)["table"].at.alpha[-3:])
    found = np.asarray(start_of(method, o, path, {"start": x}, strength=0.3, steps=10))
    at = plan["table"].at
    keys = [jax.random.fold_in(jax.random.fold_in(KEY, 3 + i), 0) for i in range(N)]
    drawn = np.stack([jax.random.normal(key, SHAPE) for key in keys])
    expected = at.alpha[0] * np.asarray(to_float(x)) + at.sigma[0] * drawn
    np.testing.assert_allclose(found, expected, atol=1e-6)
    few = samples(method, {"start": x}, strength=0.05, steps=40)
    most = samples(method, {"start": x}, strength=0.9, steps=40)
    correlations = [np.corrcoef(y.ravel(), x.ravel())[0, 1] for y in (few, most)]
    assert correlations[0] > 0.95
    assert abs(correlations[1]) < 0.4


@pytest.mark.parametrize("sampler", solvers.SOLVERS)
def test_inversion_ends_where_the_sampler_begins(sampler):
    for path, options in (("cosine", {}), ("edm", {"spacing": "karras"})):
        method, _, _ = method_of(path=path)
        churn = {"churn": 0.0} if sampler == "edm" else {}
        steps = {"sampler": sampler, "steps": 20, "strength": 0.6, "inversion": 30}
        plan = method.plan(**steps, **options, **churn)
        last, at = plan["inversion"].point[-1], plan["table"].at
        alpha, sigma = last[PAIRS : PAIRS + 2]  # the factors of x_0 and epsilon
        np.testing.assert_allclose((alpha, sigma), (at.alpha[0], at.sigma[0]), rtol=1e-6)


def test_between_two_pictures_lie_noises_of_their_length():
    method, path, o = method_of(path="flow")
    a, b = pictures(1), pictures(2)
    both = {"start": a, "other_start": b}
    options = {"inversion": 50, "steps": 5}
    ends = [start_of(method, o, path, {"start": x}, **options) for x in (a, b)]
    for share, end in ((0.0, ends[0]), (1.0, ends[1])):
        found = start_of(method, o, path, both | {"mix": jnp.full(N, share)}, **options)
        np.testing.assert_allclose(found, end, atol=1e-5)
    middle = start_of(method, o, path, both, **options)
    norms = [np.linalg.norm(np.reshape(x, (N, -1)), axis=1) for x in (*ends, middle)]
    np.testing.assert_allclose(norms[2], (norms[0] + norms[1]) / 2, rtol=1e-4)
    angles = [np.sum(np.reshape(middle * x, (N, -1)), 1) / norms[2] for x in ends]
    np.testing.assert_allclose(angles[0] / norms[0], angles[1] / norms[1], rtol=1e-4)


def test_a_condition_of_the_data_keeps_its_name():
    fields = {"start_frame": SPEC.generated, "mix": SPEC.generated}
    given = {"start_frame": 1, "mix": 2, "start": 3, "start_mix": 4}
    assert starts.split(given, fields) == (
        {"start_frame": 1, "mix": 2},
        {"start": 3, "start_mix": 4},
    )


LABELS = {"class_conditional": True, "label_dropout": 0.0}
FREE = {"class_conditional": True}
LAMBDA = {"spacing": "lambda"}
EDM = {"path": "edm", "spacing": "karras"}


@pytest.mark.parametrize(
    ("model", "condition", "options", "message"),
    [
        ({}, {}, {"strength": 0.5}, "--start=FILE, or leave them out"),
        ({}, {}, {"strength": 0.99}, "--start=FILE, or leave them out"),
        ({}, {}, {"inversion": 10}, "--start=FILE, or leave them out"),
        ({}, {"mix": 0}, {}, "--mix needs --other_start"),
        ({}, {"start": 0, "mix": 0}, {"inversion": 10}, "--mix needs --other_start"),
        (FREE, {"start": 0, "start_label": 0}, {"strength": 0.5}, "--start_label is for inversion"),
        (
            FREE,
            {"start": 0, "start_label": 0, "other_start_label": 0},
            {"inversion": 10},
            "--other_start_label needs --other_start",
        ),
        ({}, {"start": 0}, {"inversion": 2**15}, "inversion=32768: expected 0, for none"),
        ({}, {"start": 0}, {"strength": 0.1, "steps": 8, **LAMBDA}, "begins without noise"),
        (EDM, {"start": 0}, {"inversion": 9, "strength": 0.5, "sampler": "edm"}, "churn=0"),
        ({}, {"start": 0}, {}, "--start has no effect.*--strength=0.6"),
        ({}, {"other_start": 0}, {"inversion": 10}, "--other_start needs --start=FILE"),
        ({}, {"start": 0, "other_start": 0}, {"strength": 0.5}, "--other_start.*--inversion=100"),
        ({}, {"start": 0}, {"strength": 0}, "strength=0: expected above 0, and at most 1"),
        ({}, {"start": 0}, {"strength": 1.5}, "strength=1.5: expected above 0"),
        ({}, {"start": 0}, {"inversion": -1}, "inversion=-1: expected 0, for none"),
        ({}, {"start": 0}, {"inversion": 2.5}, "inversion=2.5: expected a whole number"),
        (LABELS, {"start": 0}, {"inversion": 5}, "--start_label missing.*describe the picture"),
    ],
)
def test_refused(model, condition, options, message):
    method, _, _ = method_of(**model)
    given = {name: pictures() for name in condition}
    with pytest.raises(ConfigError, match=message):
        samples(method, given, **{"steps": 4} | options)
