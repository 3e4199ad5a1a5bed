"""The model of a few-step generator and its losses: see `methods/consistency.py`."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.checks import Finite, Positive, Range, Rate, Share, Width
from genjax.method import Aux, Batch, Stage, Tree
from genjax.methods.denoiser import Denoiser, Known
from genjax.networks.conditioning import Conditioning
from genjax.sampling import consistency as noise_levels
from genjax.sampling.bound import per_example, stratified_uniform
from genjax.sampling.consistency import identity, levels_of, time_inputs
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.paths import Levels, Path, like

TANGENT = 0.1  # c of the normalised tangent (Lu & Song 2025, section 4.1)
ADAPTIVE = 1e-3  # c of the adaptive weight (Geng et al. 2025, eq. 22)
Steps = Annotated[int, Range(1, 1_000_000)]  # N in a curriculum


class Options(NamedTuple):
    """The `consistency` section of a config, with the defaults of iCT.

    Attributes:
      kind: "training", "distillation" (of `config.stages.teacher`), "continuous" (of the teacher,
        if there is one) or "mean_flow".
      path: path of x_t, in continuous time: see `methods.diffusion.Options`; "flow" for a mean
        flow.
      shift: factor of the noise at every time.
      prediction: output of the network: see there; "velocity" for a mean flow, "edm" for
        "continuous". TrigFlow is path="cosine" with shift=sigma_data and "edm".
      sigma_data: standard deviation of the data, for "edm".
      times: distribution of the noise levels sigma / alpha: "lognormal" (for a mean flow, t is then
        logit-normal), or "uniform" over the steps.
      times_mean: mean of the normal distribution.
      times_std: its standard deviation.
      grid: pairs of levels: "karras", neighbours on a grid of N steps, or "ratio" (ECT).
      curriculum: growth of N: "doubling" or "square_root"; see `sampling.consistency.intervals`.
      curriculum_length: the part of the run in which N grows.
      fewest: s_0, the first N.
      most: s_1, the last N; equal to `fewest` for a constant N.
      distance: "pseudo_huber" or "squared".
      huber: c of "pseudo_huber" divided by the square root of the number of dimensions.
      weighting: weight of the distance: "inverse_gap", 1 / (s - r); "simple"; "uncertainty",
        learned.
      target_decay: mu_0 of the averaged network that the online one is compared with (Song et al.
        2023, appendix C); 0 compares it with itself.
      solver: solver of the teacher's step: "heun" or "euler".
      tangent_warmup: for "continuous": the part of the run in which the unstable part of the
        tangent is phased in.
      different_times: for a mean flow: share of examples with r != t.
      adaptive_power: for a mean flow: p of the weight (|error|^2 + c)^-p.
      guidance: scale of the learned guidance: the teacher's, or omega of a mean flow.
      guidance_mixing: kappa of a mean flow.
      class_conditional: whether the network is conditioned on the label.
      conditions: names of other fields that the network is conditioned on: see
        `methods.diffusion.Options`.
      context_width: see there.
      context_depth: see there.
      context_heads: see there.
      label_dropout: share of training examples with all of their conditions hidden.
      eval_levels: number of noise levels in an evaluation.
      steps: default number of sampling steps.
    """

    kind: str = "training"
    path: str = "edm"
    shift: Positive = 1.0
    prediction: str = "edm"
    sigma_data: Positive = 0.5
    times: str = "lognormal"
    times_mean: Finite = -1.1
    times_std: Positive = 2.0
    grid: str = "karras"
    curriculum: str = "doubling"
    curriculum_length: str = "100_percent"
    fewest: Steps = 10
    most: Steps = 1280
    distance: str = "pseudo_huber"
    huber: Positive = 0.00054
    weighting: str = "inverse_gap"
    target_decay: Rate = 0.0
    solver: str = "heun"
    tangent_warmup: str = "10_percent"
    different_times: Share = 0.25
    adaptive_power: Finite = 1.0
    guidance: Finite = 1.0
    guidance_mixing: Finite = 0.0
    class_conditional: bool = False
    conditions: tuple[str, ...] = ()
    context_width: Width = 128
    context_depth: Annotated[int, Range(0, 1000)] = 0
    context_heads: Width = 4
    label_dropout: Rate = 0.0
    eval_levels: Annotated[int, Range(2, 10_000)] = 18
    steps: Annotated[int, Range(1, 10_000)] = 2


class Teacher(NamedTuple):
    """A trained diffusion model.

    Attributes:
      stage: its run.
      path: the path that it was trained on.
      conditions: the names of its conditions.
    """

    stage: Stage
    path: Path
    conditions: tuple[str, ...]

    def pair(self, params: dict, mutable: dict, y: Array, s: Array, known: Known) -> Prediction:
        """The (x_0, epsilon) that it predicts at y = x_0 + s epsilon."""
        at = levels_of(self.path, s)
        batch = {"x": like(at.alpha, y) * y, "level": at}
        batch |= {name: known.values[name] for name in self.conditions}
        if known.hidden is not None:
            batch["hidden"] = known.hidden
        return self.stage.apply(params, mutable, batch)

    def guided(
        self, params: dict, mutable: dict, y: Array, s: Array, known: Known, scale: float
    ) -> Prediction:
        """`pair` with classifier-free guidance (Ho & Salimans 2022, eq. 6)."""
        good = self.pair(params, mutable, y, s, known)
        if scale == 1:
            return good
        bad = self.pair(params, mutable, y, s, known.all_hidden())
        return jax.tree.map(lambda g, b: b + scale * (g - b), good, bad)


class Model(NamedTuple):
    """The network and settings that every function of the family needs.

    Attributes:
      denoiser: the network, data and parametrisation, as in a diffusion model.
      options: options of the family.
      least: s_min.
      highest: s_max, where sampling begins.
      length: training steps of the curriculum.
      warmup: training steps of the tangent's warm-up.
      teacher: a trained diffusion model, or None.
    """

    denoiser: Denoiser
    options: Options
    least: float
    highest: float
    length: int
    warmup: int
    teacher: Teacher | None = None

    def jump(
        self, params: Tree, mutable: Tree, x: Array, at: Levels, cond: Conditioning, **training
    ) -> tuple[Float[Array, "B H W C"], Tree]:
        """f(x_t), and the network's new mutable state."""
        output, _, changed = self.denoiser(params, mutable, x, at, cond, **training)
        pair = self.denoiser.interpret(output, at, x)
        return pair.x0 + self.least * pair.epsilon, changed

    def draw(self, u: Float[Array, "B"]) -> Float[Array, "B"]:
        """Maps numbers that are uniform on [0, 1) to noise levels."""
        o = self.options
        if o.times == "uniform":
            return noise_levels.karras(u, self.least, self.highest)
        return noise_levels.lognormal(u, o.times_mean, o.times_std, self.least, self.highest)


# ---- losses --------------------------------------------------------------------------------------


class Losses(NamedTuple):
    """What the loss of each kind returns.

    Attributes:
      each: loss of each example.
      time_input: of each example, as `Path.time_input` gives it.
      mutable: the network's new state.
      metrics: metrics to log.
    """

    each: Float[Array, "B"]
    time_input: Float[Array, "B"]
    mutable: Tree
    metrics: dict[str, Array]


def loss(
    model: Model, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The loss of a microbatch, for the kind that the options name."""
    o, denoiser = model.options, model.denoiser
    x0 = denoiser.data(batch)
    noise = jax.random.normal(jax.random.fold_in(key, 0), x0.shape)
    known = denoiser.known(batch, jax.random.fold_in(key, 1))
    kind = {"continuous": continuous, "mean_flow": mean_flow}.get(o.kind, between_levels)
    draws = jax.random.fold_in(key, 2)
    losses: Losses = kind(model, params, mutable, x0, noise, known, draws, step)
    changed = {"denoiser": losses.mutable}
    return denoiser.summed_up(
        params, mutable, losses.each, losses.time_input, losses.metrics, changed
    )


def between_levels(
    model: Model,
    params: dict,
    mutable: dict,
    x0: Array,
    noise: Array,
    known: Known,
    key: Array,
    step: Array,
) -> Losses:
    """The distance between f at one noise level and f, without a gradient, at a lower one.

    Song et al. 2023, eq. 7 (distillation) and 10 (training). Both networks use the same dropout.
    """
    o, path = model.options, model.denoiser.path
    key_level, key_net = (jax.random.fold_in(key, i) for i in range(2))
    count = noise_levels.intervals(o.curriculum, step, model.length, o.fewest, o.most)
    s = model.draw(stratified_uniform(key_level, len(x0)))
    if o.grid == "karras":
        s, r = noise_levels.steps_of(s, count, model.least, model.highest)
    else:
        r = noise_levels.nearer(s, count, model.least)
    y = x0 + like(s, x0) * noise
    if model.teacher:
        less_noisy = teachers_step(model, params, mutable, y, s, r, known)
    else:
        less_noisy = x0 + like(r, x0) * noise
    online, net_state = params["denoiser"], mutable["denoiser"]
    target = jax.lax.stop_gradient(params["target"] if o.target_decay else online)
    at, to = levels_of(path, s), levels_of(path, r)
    training = {"key": key_net, "train": True}
    cond, cond_target = (model.denoiser.conditioning(params, known) for params in (online, target))
    online_output, changed = model.jump(
        online, net_state, like(at.alpha, y) * y, at, cond, **training
    )
    target_output, _ = model.jump(
        target, net_state, like(to.alpha, y) * less_noisy, to, cond_target, **training
    )
    difference = online_output - jax.lax.stop_gradient(target_output)
    if o.distance == "pseudo_huber":
        each = noise_levels.pseudo_huber(difference, o.huber)
    else:
        each = per_example(jnp.square(difference))
    metrics = {"distance": each.mean(), "intervals": count.astype(jnp.float32)}
    if o.weighting == "inverse_gap":
        each = each / (s - r)
    return Losses(each, at.time_input, changed, metrics)


def teachers_step(
    model: Model, params: dict, mutable: dict, y: Array, s: Array, r: Array, known: Known
) -> Float[Array, "B ..."]:
    """Moves y from level s to level r by a step of the teacher's ODE, dy/ds = epsilon."""
    scale = model.options.guidance
    slope = model.teacher.guided(params, mutable, y, s, known, scale).epsilon
    gap = like(r - s, y)
    moved = y + gap * slope
    if model.options.solver == "heun":
        second = model.teacher.guided(params, mutable, moved, r, known, scale).epsilon
        moved = y + gap * 0.5 * (slope + second)
    return jax.lax.stop_gradient(moved)


def continuous(
    model: Model,
    params: dict,
    mutable: dict,
    x0: Array,
    noise: Array,
    known: Known,
    key: Array,
    step: Array,
) -> Losses:
    """The squared distance of the network from itself, moved against the tangent df/dt.

    Lu & Song 2025, algorithm 1, on any path: with the angle theta = arctan(s / sigma_data) and
    u = c_in x_t = cos(theta) x_0 / sigma_data + sin(theta) epsilon, f / sigma_data is
    cos(theta) u + sin(theta) F, where F is minus their network.
    """
    o, path = model.options, model.denoiser.path
    key_level, key_net = (jax.random.fold_in(key, i) for i in range(2))
    s = model.draw(stratified_uniform(key_level, len(x0)))
    angle = jnp.arctan(s / o.sigma_data)
    sin, cos = like(jnp.sin(angle), x0), like(jnp.cos(angle), x0)
    u = cos * x0 / o.sigma_data + sin * noise
    if model.teacher:
        y = x0 + like(s, x0) * noise
        pair = model.teacher.guided(params, mutable, y, s, known, o.guidance)
        x0, noise = pair.x0, pair.epsilon
    slope = cos * noise - sin * x0 / o.sigma_data  # du / d theta

    variables = (params["denoiser"], mutable["denoiser"])
    cond = model.denoiser.conditioning(variables[0], known)

    def network(u: Array, angle: Array) -> tuple[Array, tuple[Tree, Array]]:
        t = levels_of(path, o.sigma_data * jnp.tan(angle)).time_input
        output, changed = model.denoiser.run(*variables, u, t, cond, key=key_net, train=True)
        return output, (changed, t)

    # cos sin dF / d theta in one product: each factor alone is large where the other is small.
    tangent = (sin * cos * slope, jnp.sin(angle) * jnp.cos(angle))
    output, output_tangent, (changed, t) = jax.jvp(network, (u, angle), tangent, has_aux=True)
    share = jnp.minimum(step / model.warmup, 1.0) if model.warmup else 1.0
    against = -jnp.square(cos) * (output + slope) + share * (cos * sin * u - output_tangent)
    size = like(jnp.sqrt(per_example(jnp.square(against))), x0)
    against = against / (size + TANGENT)
    aim = jax.lax.stop_gradient(output + against)
    metrics = {"tangent_norm": size.mean()}
    return Losses(per_example(jnp.square(output - aim)), t, changed, metrics)


def mean_flow(
    model: Model,
    params: dict,
    mutable: dict,
    x0: Array,
    noise: Array,
    known: Known,
    key: Array,
    step: Array,
) -> Losses:
    """The squared error of the mean-flow identity, weighted by a power of itself.

    Geng et al. 2025, algorithm 1; with guidance, eq. 19 to 21.
    """
    o, B = model.options, len(x0)
    key_t, key_r, key_same, key_net = (jax.random.fold_in(key, i) for i in range(4))
    uniform = (stratified_uniform(key_t, B), jax.random.uniform(key_r, (B,)))
    first, second = (s / (1.0 + s) for s in map(model.draw, uniform))
    t, r = jnp.maximum(first, second), jnp.minimum(first, second)
    r = jnp.where(jax.random.bernoulli(key_same, o.different_times, (B,)), r, t)
    z = like(1 - t, x0) * x0 + like(t, x0) * noise

    variables = (params["denoiser"], mutable["denoiser"])
    cond = model.denoiser.conditioning(variables[0], known)

    def velocity(z: Array, r: Array, t: Array, cond: Conditioning = cond) -> tuple[Array, Tree]:
        training = {"key": key_net, "train": True}
        return model.denoiser.run(*variables, z, time_inputs(t, r), cond, **training)

    v = noise - x0
    if o.guidance != 1:
        null = model.denoiser.conditioning(variables[0], known.all_hidden())
        good, bad = (velocity(z, t, t, conditions)[0] for conditions in (cond, null))
        omega, kappa = o.guidance, o.guidance_mixing
        guided = omega * v + kappa * good + (1 - omega - kappa) * bad
        v = jax.lax.stop_gradient(jnp.where(like(known.hidden, v), v, guided))
    u, target, changed = identity(velocity, z, r, t, v)
    error = jnp.square(u - target).reshape(B, -1)
    total = error.sum(1)
    each = total / jax.lax.stop_gradient((total + ADAPTIVE) ** o.adaptive_power)
    metrics = {"mean_flow_mse": error.mean()}
    return Losses(each, 1000.0 * t, changed, metrics)
