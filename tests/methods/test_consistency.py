"""Consistency models and mean flows on Gaussian data, of which the whole flow is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax import config as configs
from genjax.method import DataSpec, Field, Method, Stage
from genjax.methods import consistency
from genjax.methods.consistency import Options
from genjax.networks import unet
from genjax.networks.conditioning import Conditioning
from genjax.nn.functional import Functional, functional
from genjax.sampling import draw, paths
from genjax.sampling.consistency import ends, levels_of
from genjax.sampling.parametrisation import KINDS, Prediction

MEAN, STD = 0.3, 0.6
SHAPE = (1, 1, 1)
SPEC = DataSpec("gaussian", {"x": Field("code", SHAPE, np.dtype(np.float32))}, "x", {"train": 1000})


def data(count, seed=0):
    """Gaussian numbers whose mean and variance are exact, each beside its mirror image."""
    z = np.random.default_rng(seed).normal(size=count // 2)
    z = np.concatenate([z, -z])
    return {"x": jnp.asarray(MEAN + STD * z / z.std(), jnp.float32).reshape(-1, *SHAPE)}


def column(value):
    return jnp.reshape(value, (-1, 1, 1, 1))


def exact_jump(y, s, to):
    """The point at noise level `to` of the trajectory through y at s."""
    return MEAN + jnp.sqrt((to**2 + STD**2) / (s**2 + STD**2)) * (y - MEAN)


def exact_pair(y, s):
    """E[x_0 | y] and the epsilon that goes with it."""
    x0 = MEAN + STD**2 / (s**2 + STD**2) * (y - MEAN)
    return Prediction(x0, (y - x0) / s)


def level(path, told):
    """s of what the network is told."""
    t = told / 1000
    return {"edm": jnp.exp(told / 250), "flow": t / (1 - t), "cosine": jnp.tan(0.5 * jnp.pi * t)}[
        path
    ]


def affine(path, least, sigma_data=1.0, slower=1.0):
    """A network of "edm" whose f is the exact one at (a, b) = (1, 0), and at the least noise."""

    def apply(params, mutable, u, told, label=None, **training):
        s = level(path, told / slower)
        s = column(sigma_data * s if path == "cosine" else s)
        root = jnp.sqrt(s**2 + sigma_data**2)
        y = u * root  # u is c_in x
        f = exact_jump(y, s, least)
        f = f + (s - least) / (s + 1) * ((params["a"] - 1) * f + params["b"])
        # f = (sigma_data^2 + least s) / root^2 y + (s - least) sigma_data / root F
        output = (f - (sigma_data**2 + least * s) / root**2 * y) * root
        return output / (sigma_data * jnp.maximum(s - least, 1e-9)), mutable

    return Functional(lambda key: ({"a": jnp.float32(1), "b": jnp.float32(0)}, {}), apply)


def teacher():
    """A stage whose denoiser is exact, of the path "edm"."""
    method = Method(None, (), None, None, (), apply=exact_apply)
    config = configs.base()
    stage = Stage("teacher", config, SPEC, method, ("denoiser",))
    return consistency.Teacher(stage, paths.edm(), ())


def exact_apply(params, mutable, batch):
    at = batch["level"]
    assert batch["x"].shape[1:] == SHAPE
    return exact_pair(batch["x"] / column(at.alpha), column(at.sigma / at.alpha))


def loss_of(model, params, batch, **options):
    """The loss and its gradient in (a, b)."""
    model = model._replace(options=model.options._replace(**options))

    def total(own):
        every = {"denoiser": own, "teacher": {}, "target": own}
        mutable = {"denoiser": {}, "teacher": {}}
        return consistency.loss(model, every, mutable, batch, jax.random.key(3), jnp.int32(0))

    (value, aux), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return value, aux.metrics, np.asarray([slope["a"], slope["b"]])


EXACT = {"a": jnp.float32(1), "b": jnp.float32(0)}


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_exact_function_has_no_loss_but_that_of_the_teachers_steps(solver, order):
    """One step of order p errs by h^(p + 1): the loss falls with h^(2 p + 2)."""
    o = Options(
        "distillation", solver=solver, distance="squared", weighting="simple", sigma_data=1.0
    )
    least, _ = ends(paths.edm())
    model = consistency.model_of(affine("edm", least), o, SPEC, teacher=teacher())
    found = [loss_of(model, EXACT, data(4096), fewest=n, most=n)[0] for n in (20, 40)]
    assert math.log2(found[0] / found[1]) == pytest.approx(2 * order + 2, abs=0.6)
    beside = {"a": jnp.float32(1), "b": jnp.float32(1)}
    assert loss_of(model, beside, data(4096), fewest=40, most=40)[0] > 20 * found[1]


def test_without_a_teacher_the_gradient_vanishes_at_the_exact_function():
    """In the mean over noise, as the levels come together."""
    least, _ = ends(paths.edm())
    o = Options(distance="squared", sigma_data=1.0, times_mean=0.0, times_std=1.0)
    model = consistency.model_of(affine("edm", least), o, SPEC)
    batch = data(2**16)
    beside = {"a": jnp.float32(0.5), "b": jnp.float32(0.2)}
    coarse, fine, other = (
        np.linalg.norm(loss_of(model, params, batch, fewest=n, most=n)[2])
        for params, n in ((EXACT, 10), (EXACT, 200), (beside, 200))
    )
    assert fine < 0.1 * other
    assert fine < 0.3 * coarse


@pytest.mark.parametrize("path", ["cosine", "flow", "edm"])
def test_the_tangent_of_the_exact_function_is_zero(path):
    """df/dt along the ODE, of every example (Lu & Song 2025, eq. 5), on any path."""
    shift = {"shift": 1.3} if path == "cosine" else {}
    o = Options("continuous", path=path, prediction="edm", weighting="simple", **shift)
    o = o._replace(sigma_data=1.3, times_mean=-1.0, times_std=1.0)
    model = consistency.model_of(
        affine(path, 0.0, 1.3, consistency.SLOWER), o, SPEC, teacher=teacher()
    )
    _, metrics, slope = loss_of(model, EXACT, data(256))
    assert metrics["tangent_norm"] < 3e-3
    assert np.all(np.abs(slope) < 0.05)
    moved = {"a": jnp.float32(0.9), "b": jnp.float32(0)}
    _, metrics, slope = loss_of(model, moved, data(256))
    assert metrics["tangent_norm"] > 0.02
    assert slope[0] < -0.05  # a wants to grow


def test_the_tangent_without_its_unstable_part_is_that_of_the_first_term():
    """With r = 0, of Lu & Song 2025, algorithm 1, the output's derivative does not come in."""
    o = Options("continuous", path="flow", weighting="simple", sigma_data=1.3)
    model = consistency.model_of(affine("flow", 0.0, 1.3, consistency.SLOWER), o, SPEC, warmup=10)
    _, first, _ = loss_of(model, EXACT, data(256))
    _, other, _ = loss_of(model._replace(warmup=0), EXACT, data(256))
    assert abs(first["tangent_norm"] - other["tangent_norm"]) > 0.02


@pytest.mark.parametrize("name", ["edm", "flow", "cosine", "linear", "sigmoid"])
@pytest.mark.parametrize("prediction", KINDS)
def test_at_the_least_noise_f_is_the_point_itself(name, prediction):
    """The boundary condition (Song et al. 2023, section 3), whatever the network says."""

    def apply(params, mutable, x, told, label=None, **training):
        return 3.0 * jnp.cos(5.0 * x + told[:, None, None, None]), mutable

    o = Options(path=name, prediction=prediction)
    model = consistency.model_of(Functional(None, apply), o, SPEC)
    x = jnp.linspace(-2.0, 2.0, 8).reshape(-1, *SHAPE)
    at = levels_of(model.denoiser.path, jnp.full(8, model.least, jnp.float32))
    found, _ = model.jump({}, {}, x, at, Conditioning())
    np.testing.assert_allclose(found, x / column(at.alpha), atol=3e-5)
    far = levels_of(model.denoiser.path, jnp.full(8, 3.0, jnp.float32))
    assert np.abs(model.jump({}, {}, x, far, Conditioning())[0] - x / column(far.alpha)).max() > 0.1


def test_the_factor_of_the_network_is_c_out():
    """Song et al. 2023, appendix C: c_out = sd (t - eps) / sqrt(sd^2 + t^2)."""
    constant = Functional(None, lambda params, mutable, x, told, label: (params + 0 * x, mutable))
    model = consistency.model_of(constant, Options(), SPEC)
    s = jnp.asarray([0.002, 0.1, 2.0, 80.0], jnp.float32)
    x, at = jnp.ones((4, *SHAPE)), levels_of(model.denoiser.path, s)
    one, zero = (model.jump(jnp.float32(value), {}, x, at, Conditioning())[0] for value in (1, 0))
    s = np.asarray(s, np.float64)
    expected = 0.5 * (s - 0.002) / np.sqrt(0.25 + s**2)
    np.testing.assert_allclose((one - zero).ravel(), expected, atol=1e-6)


# ---- samples and evaluations ---------------------------------------------------------------------


def drawn(method, num, params=EXACT, **options):
    fixed, arrays = draw.planned(method, options)

    @jax.jit
    def sample(params, arrays):
        own = {"denoiser": params}, {"denoiser": {}}
        return method.sample(*own, jax.random.key(0), num, {}, **fixed, **arrays)

    return sample(params, arrays)


@pytest.mark.parametrize("path", ["edm", "flow"])
def test_samples_of_the_exact_function_are_of_the_data(path):
    least, _ = ends(paths.make(path))
    o = Options(path=path, prediction="edm", sigma_data=1.0)
    method = consistency.from_network(affine(path, least), o, SPEC, ())
    times = (paths.make(path).last, 0.5, 0.1)
    found = [
        np.asarray(drawn(method, 4096, **options)).ravel()
        for options in ({"steps": 1}, {"times": times})
    ]
    assert np.corrcoef(*found)[0, 1] < 0.9  # noise is drawn anew
    for x in found:
        assert x.mean() == pytest.approx(MEAN, abs=4 * STD / 64)
        assert x.std() == pytest.approx(STD, rel=0.05)
    few, many = (drawn(method, n) for n in (2, 5))
    np.testing.assert_allclose(few, many[:2], rtol=1e-5)


def average(factor=1.0):
    """A network that is the exact average velocity times a factor."""

    def apply(params, mutable, z, told, label=None, **training):
        t, r = (column(v) for v in (told[:, 0] / 100, (told[:, 0] - told[:, 1]) / 100))
        spread = [jnp.sqrt(jnp.square((1 - w) * STD) + jnp.square(w)) for w in (t, r)]
        slope = (t - (1 - t) * STD**2) / spread[0] ** 2
        instantaneous = -MEAN + slope * (z - (1 - t) * MEAN)
        earlier = (1 - r) * MEAN + spread[1] / spread[0] * (z - (1 - t) * MEAN)
        apart = t - r > 1e-4
        u = jnp.where(apart, (z - earlier) / jnp.where(apart, t - r, 1.0), instantaneous)
        return params["a"] * u, mutable

    return Functional(lambda key: ({"a": jnp.float32(factor)}, {}), apply)


FLOW = Options("mean_flow", path="flow", prediction="velocity", weighting="simple")


def test_a_mean_flow_of_the_exact_average_velocity_has_no_gradient():
    """Unweighted, in the mean over data and noise, and its samples are of the data."""
    o = FLOW._replace(times_mean=-0.4, times_std=1.0, different_times=0.5, adaptive_power=0.0)
    model = consistency.model_of(average(), o, SPEC)
    one, other = (loss_of_mean_flow(model, {"a": jnp.float32(a)}, data(2**16)) for a in (1.0, 0.8))
    assert abs(one) < 0.06 * abs(other)
    method = consistency.from_network(average(), o, SPEC, ())
    for steps in (1, 3):
        x = np.asarray(drawn(method, 4096, {"a": jnp.float32(1)}, steps=steps)).ravel()
        assert x.mean() == pytest.approx(MEAN, abs=4 * STD / 64)
        assert x.std() == pytest.approx(STD, rel=0.05)


def loss_of_mean_flow(model, own, batch):
    def total(own):
        every = {"denoiser": own}, {"denoiser": {}}
        return consistency.loss(model, *every, batch, jax.random.key(3), jnp.int32(0))[0]

    return jax.jit(jax.grad(total))(own)["a"]


# ---- what is learned -----------------------------------------------------------------------------


def bumps(value, low, high, count):
    """Smooth functions of a number, a row of `count` each."""
    centres = jnp.linspace(low, high, count)
    found = jnp.exp(-0.5 * jnp.square((value[:, None] - centres) / (centres[1] - centres[0])))
    return found / found.sum(1, keepdims=True)


def tabled(features):
    """A network that is affine in its input, with factors that are linear in features of told."""

    def init(key):
        size = features(jnp.zeros((1, 2))).shape[1]
        return {"factor": jnp.zeros(size), "shift": jnp.zeros(size)}, {}

    def apply(params, mutable, x, told, label=None, **training):
        rows = features(told)
        return column(rows @ params["factor"]) * x + column(rows @ params["shift"]), mutable

    return Functional(init, apply)


def trained(method, steps, rate=0.03):
    """The averaged parameters of a run on Gaussian numbers."""
    params, _ = method.init(jax.random.key(0), {})
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, index):
        params, average, state = carry
        key = jax.random.fold_in(jax.random.key(1), index)
        x = MEAN + STD * jax.random.normal(jax.random.fold_in(key, 7), (256, *SHAPE))

        def total(params):
            return method.phases[0].loss(params, {"denoiser": {}}, {"x": x}, key, index)[0]

        updates, state = optimizer.update(jax.grad(total)(params), state, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: a + 0.02 * (p - a), average, params)
        return (params, average, state), None

    run = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps))[0][1])
    return run((params, params, optimizer.init(params)))["denoiser"]


@pytest.mark.parametrize(
    "options",
    [
        {"distance": "squared", "most": 320},
        {"grid": "ratio", "fewest": 2, "most": 128, "distance": "squared"},
        {"kind": "continuous", "path": "cosine", "weighting": "simple"},
    ],
    ids=["ict", "ect", "continuous"],
)
def test_a_small_network_learns_the_exact_function(options):
    """From the most noise, and from where two-step sampling comes back to."""
    o = Options(**{"times_mean": 0.0, "times_std": 1.8, "sigma_data": 1.0, "steps": 1, **options})
    steps = 8000 if o.kind == "continuous" else 2000  # steps of unit length take longer

    def features(told):
        slower = consistency.SLOWER if o.kind == "continuous" else 1.0
        s = level(o.path, told.reshape(-1)[: len(told)] / slower)
        return bumps(jnp.log(s), -6.5, 5.0, 24)

    method = consistency.from_network(tabled(features), o, SPEC, (), steps, steps // 4)
    own = trained(method, steps)
    model = consistency.model_of(tabled(features), o, SPEC)
    for s in (70.0, 1.5):
        y = MEAN + math.sqrt(s**2 + STD**2) * jnp.asarray([-1.5, 0.0, 1.5]).reshape(3, *SHAPE)
        at = levels_of(model.denoiser.path, jnp.full(3, s, jnp.float32))
        found, _ = model.jump(own, {}, column(at.alpha) * y, at, Conditioning())
        expected = exact_jump(y, s, 0.0)
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_a_small_network_learns_the_average_velocity():
    o = FLOW._replace(times_mean=0.0, times_std=1.5, different_times=0.6, adaptive_power=0.0)

    def features(told):
        t, gap = told[:, 0] / 100, told[:, 1] / 100
        rows = bumps(t, 0.0, 1.0, 7), bumps(t - gap, 0.0, 1.0, 7)
        return (rows[0][:, :, None] * rows[1][:, None]).reshape(len(told), -1)

    method = consistency.from_network(tabled(features), o, SPEC, ())
    own = trained(method, 3000)
    z = jnp.asarray([-1.5, 0.0, 1.5]).reshape(3, *SHAPE)
    found, _ = tabled(features).apply(own, {}, z, jnp.full((3, 2), 100.0))
    np.testing.assert_allclose(z - found, MEAN + STD * z, atol=0.08)


# ---- networks and configs ------------------------------------------------------------------------


def small_unet(**more):
    sizes = {"channels": 4, "multipliers": (1,), "blocks": 1, "attention": (), "heads": 1}
    return functional(
        lambda rngs: unet.Network(
            **{"shape": (2, 2, 1), "out_channels": 1, **sizes, "dropout": 0.0, "patch_size": 1},
            **{"dtype": jnp.float32, "rngs": rngs, **more},
        )
    )


def test_the_unets_forward_derivative_is_the_limit_of_differences():
    """In the image and in both times at once, as mean flows and continuous time need it."""
    net = small_unet(times=2)
    params, mutable = jax.jit(net.init)(jax.random.key(0))
    noisy = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )
    keys = jax.random.split(jax.random.key(1), 2)
    x, dx = (jax.random.normal(key, (3, 2, 2, 1)) for key in keys)
    told, slope = jnp.asarray([[5.0, 2.0], [3.0, 0.0], [9.0, 9.0]]), jnp.ones((3, 2))

    @jax.jit
    def call(share):
        return net.apply(noisy, mutable, x + share * dx, told + share * slope)[0]

    exact = jax.jit(lambda: jax.jvp(call, (0.0,), (1.0,))[1])()
    step = 3e-3
    difference = (call(step) - call(-step)) / (2 * step)
    assert np.abs(exact).mean() > 0.05
    np.testing.assert_allclose(exact, difference, atol=0.01 * float(np.abs(exact).max()))
    apply = jax.jit(lambda told: net.apply(noisy, mutable, x, told)[0])
    assert np.abs(apply(told.at[:, 1].add(1.0)) - apply(told)).max() > 1e-3  # it hears the second


@pytest.mark.parametrize(("times", "told"), [(1, (3,)), (2, (3, 2))])
def test_the_unet_has_an_embedding_for_each_time(times, told):
    """The network of a diffusion model, that is told one, is what it was."""
    net = small_unet(times=times)
    made = jax.eval_shape(net.init, jax.random.key(0))
    assert made[0]["time1"]["kernel"].shape == (4 * times, 16)
    given = jax.ShapeDtypeStruct((3, 2, 2, 1), jnp.float32), jax.ShapeDtypeStruct(told, jnp.float32)
    assert jax.eval_shape(net.apply, *made, *given)[0].shape == (3, 2, 2, 1)
    with pytest.raises(ValueError, match="sizes"):
        jax.eval_shape(net.apply, *made, given[0], jax.ShapeDtypeStruct((3, 3), jnp.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "distil"}, "Nearest: .*distillation"),
        ({"kind": "distillation"}, "config.stages.teacher"),
        ({"kind": "mean_flow"}, "needs path='flow' and prediction='velocity'"),
        ({"kind": "continuous"}, "weighting='simple'"),
        ({"kind": "continuous", "prediction": "v"}, "prediction='edm'"),
        ({"guidance": 2.0}, "without a teacher"),
        ({**FLOW._asdict(), "guidance": 2.0}, "label_dropout > 0"),
        ({"most": 5}, "at least fewest=10"),
        ({"class_conditional": True}, "no labels"),
        ({"curriculum_length": "9_parsecs"}, "curriculum_length"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    config = configs.load("configs/consistency.py:tiny")
    for name, value in options.items():
        config.consistency[name] = value
    spec = SPEC._replace(fields={"x": SPEC.fields["x"]._replace(shape=(8, 8, 1))})
    with pytest.raises(configs.ConfigError, match=message):
        consistency.build(config, spec, {})


@pytest.mark.parametrize("name", ["text_encoder", "embedding"])
def test_a_teacher_with_conditions_of_stages_is_refused(name):
    theirs = configs.load("configs/ddpm.py:tiny", {f"diffusion.{name}": "text"})
    stages = {"teacher": teacher().stage._replace(config=theirs)}
    with pytest.raises(configs.ConfigError, match=rf"its diffusion\.{name}.*text.*expected none"):
        consistency.teacher_of(Options(kind="distillation"), SPEC, stages)


def test_the_target_network_follows_at_the_papers_rate():
    """mu(k) = exp(s0 log mu0 / N(k)) (Song et al. 2023, appendix C), from mu0 on."""
    o = Options(curriculum="square_root", fewest=2, most=150, target_decay=0.9)
    method = consistency.from_network(average(), o, SPEC, (), 1000)
    rule = method.follows["target"]
    assert rule.source == "denoiser"
    for k, count in ((0, 2), (1000, 151)):
        assert rule.decay(jnp.int32(k)) == pytest.approx(math.exp(2 * math.log(0.9) / count))


def test_samples_are_planned_by_steps_or_by_times():
    method = consistency.from_network(average(), Options(), SPEC, ())
    np.testing.assert_allclose(method.plan(times=(80.0, 0.8))["table"].at.sigma, [80.0, 0.8])
    assert not method.plan(steps=1)["stochastic"]
    for wrong in ({"steps": 0}, {"steps": 1.5}, {"times": (0.8, 80.0)}, {"times": (100.0,)}):
        with pytest.raises(configs.ConfigError):
            method.plan(**wrong)
