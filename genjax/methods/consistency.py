"""Few-step generators: consistency models and mean flows.

A consistency function f maps a point on the probability-flow ODE to the end of its trajectory (Song
et al. 2023). Here f(x_t) = x_0 + s_min epsilon, with the pair (x_0, epsilon) that a network in any
parametrisation predicts at x_t. This is the DDIM step to the lowest noise level, where f is
x / alpha for any network. With "edm" the network's factor is c_out of their appendix C.

  training      pairs of noise levels that share one noise (Song et al. 2023; Song & Dhariwal 2024,
                iCT; Geng et al. 2024, ECT)
  distillation  the less noisy point by a step of a trained diffusion model's ODE (Song et al. 2023)
  continuous    the limit of either, by a forward-mode derivative (Lu & Song 2025, sCM)
  mean_flow     the average velocity between two times (Geng et al. 2025)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from genjax.config import ConfigError, one_of, read_options, require
from genjax.durations import steps_within
from genjax.method import Batch, DataSpec, Follow, Method, Phase, Rules, Stage, Tree
from genjax.methods import diffusion
from genjax.methods.consistency_losses import Model, Options, Teacher, loss
from genjax.methods.denoiser import Known, check_conditions, fields_of, network, shape_of
from genjax.methods.diffusion_options import guidable, path_of
from genjax.nn.functional import Functional
from genjax.sampling import consistency as noise_levels
from genjax.sampling import grids, parametrisation, paths, solvers
from genjax.sampling.bound import per_example, stratified_uniform
from genjax.sampling.conditions import Condition, complete
from genjax.sampling.consistency import identity, levels_of, time_inputs
from genjax.sampling.logits import whole_number
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.paths import Levels, like
from genjax.sampling.table import Table, solve

KINDS = ("training", "distillation", "continuous", "mean_flow")
STEPS = ("karras", "ratio")
TIMES = ("lognormal", "uniform")
DISTANCES = ("pseudo_huber", "squared")
WEIGHTINGS = ("inverse_gap", "simple", "uncertainty")
TEACHER = "teacher"  # name of the stage
SLOWER = 0.01  # factor of the time input of a network in continuous time


def options_from_config(section: ConfigDict, spec: DataSpec) -> Options:
    """Reads and checks the `consistency` section.

    Raises:
      ConfigError: an unknown key or choice, a number out of range, a kind that is not available on
        that path, or a condition that the data do not have or that a network cannot take.
    """
    o = read_options(section, "consistency", Options)
    for name, choices in {
        "kind": KINDS,
        "path": paths.NAMES,
        "prediction": parametrisation.KINDS,
        "times": TIMES,
        "grid": STEPS,
        "curriculum": noise_levels.CURRICULA,
        "distance": DISTANCES,
        "weighting": WEIGHTINGS,
        "solver": ("heun", "euler"),
    }.items():
        one_of(f"consistency.{name}", getattr(o, name), choices)
    at_least_fewest = f"at least fewest={o.fewest}"
    require(o.most >= o.fewest, "consistency.most", o.most, at_least_fewest)
    needed = {"mean_flow": ("flow", "velocity"), "continuous": (o.path, "edm")}.get(o.kind)
    if needed and (o.path, o.prediction) != needed:
        raise ConfigError(
            f"consistency.kind={o.kind!r} needs path={needed[0]!r} and prediction={needed[1]!r}, "
            f"got {o.path!r} and {o.prediction!r}."
        )
    if o.kind == "mean_flow":
        require(o.shift == 1, "consistency.shift", o.shift, "1 with kind='mean_flow'")
    if o.kind in ("continuous", "mean_flow"):
        expected = "0 with kind='continuous' and 'mean_flow', whose target is the network itself"
        require(o.target_decay == 0, "consistency.target_decay", o.target_decay, expected)
    if o.weighting == "inverse_gap" and o.kind in ("continuous", "mean_flow"):
        raise ConfigError(
            f"consistency.weighting='inverse_gap' needs pairs of levels, which kind={o.kind!r} "
            "does not have. Set weighting='simple' or 'uncertainty'."
        )
    if o.kind == "mean_flow" and o.guidance != 1:
        expected = "1, or class_conditional=True or conditions, and label_dropout > 0"
        require(guidable(o), "consistency.guidance", o.guidance, expected)
    check_conditions(o, "consistency", spec)
    return o


def build(config: ConfigDict, spec: DataSpec, stages: Mapping[str, Stage]) -> Method:
    """The family with the network of `config.model` on the images or latents of `spec`.

    Raises:
      ConfigError: the data are neither, `config.consistency` asks for something that does not
        exist, or the teacher is missing or was trained on other data.
    """
    options = options_from_config(config.consistency, spec)
    extra = {"times": 2} if options.kind == "mean_flow" else {}
    chosen = network(config, spec, shape_of(spec)[-1], options, **extra)
    examples, lengths = spec.sizes.get("train", 0), []
    for name in ("curriculum_length", "tangent_warmup"):
        duration = getattr(options, name)
        lengths.append(steps_within(config, examples, f"consistency.{name}", duration))
    teacher = teacher_of(options, spec, stages)
    method = from_network(chosen.net, options, spec, chosen.rules, *lengths, teacher)
    return method._replace(project={**chosen.project, **method.project})


def teacher_of(o: Options, spec: DataSpec, stages: Mapping[str, Stage]) -> Teacher | None:
    """The teacher among the stages, or None if there is none.

    Raises:
      ConfigError: the teacher is missing or not needed, is not a diffusion model, was trained on
        other data, or cannot be guided.
    """
    stage = stages.get(TEACHER)
    if o.kind == "distillation" and stage is None:
        raise ConfigError(
            "consistency.kind='distillation' needs config.stages.teacher: the workdir of a trained "
            "diffusion model, or a config such as configs/ddpm.py."
        )
    if stage is None:
        if o.guidance != 1 and o.kind != "mean_flow":
            raise ConfigError(
                f"consistency.guidance={o.guidance:g}: without a teacher, kind={o.kind!r} has no "
                "guidance to learn. Use 1."
            )
        return None
    if o.kind not in ("distillation", "continuous"):
        raise ConfigError(
            f"config.stages.teacher is not used by consistency.kind={o.kind!r}: remove it, or "
            "choose 'distillation' or 'continuous'."
        )
    if stage.config.method != "diffusion" or stage.spec.generated.shape != spec.generated.shape:
        raise ConfigError(
            f"config.stages.teacher is a run of method {stage.config.method!r} on "
            f"{stage.spec.generated.shape}: expected 'diffusion' on {spec.generated.shape}."
        )
    for name in ("embedding", "low_resolution", "text_encoder"):
        value = stage.config.diffusion.get(name)
        expected = "none: a teacher has no conditions that stages make"
        require(not value, f"config.stages.teacher: its diffusion.{name}", value, expected)
    moments = [
        {k: f.facts.get(k) for k in ("mean", "std")} for f in (stage.spec.generated, spec.generated)
    ]
    if stage.spec.name != spec.name or moments[0] != moments[1]:
        raise ConfigError(
            f"config.stages.teacher was trained on {stage.spec.name}, this run is on {spec.name}"
            + ", or on other latents" * (stage.spec.name == spec.name)
            + ". Give a teacher trained on these data."
        )
    teacher_options = diffusion.options_from_config(stage.config.diffusion, stage.spec)
    conditions, own_fields = fields_of(teacher_options, stage.spec), fields_of(o, spec)
    if teacher_options.class_conditional and not o.class_conditional:
        raise ConfigError(
            "config.stages.teacher is conditioned on labels: set "
            "consistency.class_conditional=True."
        )
    if missing := [name for name in conditions if name not in own_fields]:
        raise ConfigError(
            f"config.stages.teacher is conditioned on {', '.join(missing)}: name them in "
            f"consistency.conditions, which is {o.conditions}."
        )
    for name, field in conditions.items():
        if (field.kind, field.shape) != (own_fields[name].kind, own_fields[name].shape):
            raise ConfigError(
                f"config.stages.teacher is conditioned on {name} of kind {field.kind!r} and shape "
                f"{field.shape}; in this run it is of kind {own_fields[name].kind!r} and shape "
                f"{own_fields[name].shape}. Give a teacher trained on these data."
            )
    if o.guidance != 1 and not guidable(teacher_options):
        raise ConfigError(
            f"consistency.guidance={o.guidance:g}: the teacher was not trained for guidance, with "
            "class_conditional=True or conditions, and label_dropout > 0. Use 1."
        )
    return Teacher(stage, path_of(teacher_options), tuple(conditions))


def from_network(
    net: Functional,
    options: Options,
    spec: DataSpec,
    rules: Rules,
    length: int = 1,
    warmup: int = 0,
    teacher: Teacher | None = None,
) -> Method:
    """The family with any network `apply(params, mutable, x, t, label)`.

    Args:
      net: the network; for a mean flow, its time input is [B, 2]: t and t - r.
      options: options of the family.
      spec: description of the data.
      rules: how the network's parameters shard.
      length: training steps of the curriculum.
      warmup: training steps of the tangent's warm-up.
      teacher: the teacher for distillation.
    """
    model = model_of(net, options, spec, length, warmup, teacher)
    method = diffusion.from_network(net, model.denoiser.options, spec, rules)
    decay = partial(target_decay, options, length)
    evaluation = evaluate_mean_flow if options.kind == "mean_flow" else evaluate
    return method._replace(
        phases=(Phase(method.phases[0].trains, partial(loss, model)),),
        evaluate=partial(evaluation, model),
        sample=partial(sample, model),
        plan=partial(plan, model),
        follows={"target": Follow("denoiser", decay)} if options.target_decay else {},
        apply=None,
        guided=False,
    )


def model_of(
    net: Functional,
    o: Options,
    spec: DataSpec,
    length: int = 1,
    warmup: int = 0,
    teacher: Teacher | None = None,
) -> Model:
    """The model of a network: see `from_network`. Its levels all lie on the teacher's path."""
    diffusion_options = diffusion.Options(
        path=o.path,
        num_timesteps=0,
        shift=o.shift,
        prediction=o.prediction,
        sigma_data=o.sigma_data,
        weighting="uncertainty" if o.weighting == "uncertainty" else "simple",
        class_conditional=o.class_conditional,
        conditions=o.conditions,
        context_width=o.context_width,
        context_depth=o.context_depth,
        context_heads=o.context_heads,
        label_dropout=o.label_dropout,
    )
    denoiser = diffusion.denoiser_of(net, diffusion_options, spec)
    if o.kind == "continuous":  # the derivative of the time input is part of the tangent
        time_input = denoiser.path.time_input
        slower = denoiser.path._replace(time_input=lambda t: SLOWER * time_input(t))
        denoiser = denoiser._replace(path=slower)
    level_ranges = [
        noise_levels.ends(p) for p in (denoiser.path, *([teacher.path] if teacher else []))
    ]
    return Model(
        *(denoiser, o),
        least=max(least for least, _ in level_ranges),
        highest=min(most for _, most in level_ranges),
        length=length,
        warmup=warmup,
        teacher=teacher,
    )


def target_decay(o: Options, length: int, step: Array) -> Float[Array, ""]:
    """mu(k) = exp(s_0 log mu_0 / N(k)) (Song et al. 2023, appendix C)."""
    count = 1 + noise_levels.intervals(o.curriculum, step, length, o.fewest, o.most)
    return jnp.exp(o.fewest * math.log(o.target_decay) / count)


# ---- evaluation ----------------------------------------------------------------------------------


def evaluate(
    model: Model, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"]]:
    """`consistency_error`: the change of f from one noise level to the next, with the same noise.

    It is the root mean square over an image's values, averaged over the steps of a grid from s_min
    to s_max: the unweighted loss of kind="training" with N = `eval_levels`.
    """
    o, path = model.options, model.denoiser.path
    x0 = model.denoiser.data(batch)
    noise = jax.random.normal(key, x0.shape)
    variables = (params["denoiser"], mutable["denoiser"])
    cond = model.denoiser.conditioning(variables[0], model.denoiser.known(batch))
    share = np.linspace(0.0, 1.0, o.eval_levels)
    s = jnp.asarray(noise_levels.karras(share, model.least, model.highest), jnp.float32)

    def climb(before: Array, s: Array) -> tuple[Array, Array]:
        at = levels_of(path, s)
        here, _ = model.jump(*variables, at.alpha * (x0 + s * noise), at, cond)
        return here, jnp.sqrt(per_example(jnp.square(here - before)))

    _, changes = jax.lax.scan(climb, x0 + s[0] * noise, s[1:])
    return {"consistency_error": changes.mean(0)}


def evaluate_mean_flow(
    model: Model, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"]]:
    """Squared errors, averaged over t: of the velocity (r = t), and of the identity (r = 0).

    `velocity_mse` is the error of flow matching. `mean_flow_mse` uses the velocity of each example
    and noise, without guidance.
    """
    o = model.options
    x0 = model.denoiser.data(batch)
    key_t, key_noise = (jax.random.fold_in(key, i) for i in range(2))
    variables = (params["denoiser"], mutable["denoiser"])
    cond = model.denoiser.conditioning(variables[0], model.denoiser.known(batch))
    K, B = o.eval_levels, len(x0)

    def velocity(z: Array, r: Array, t: Array) -> tuple[Array, Tree]:
        return model.denoiser.run(*variables, z, time_inputs(t, r), cond)

    def term(count: Array, t: Float[Array, "B"]) -> tuple[Array, tuple[Array, Array]]:
        noise = jax.random.normal(jax.random.fold_in(key_noise, count), x0.shape)
        v, z = noise - x0, like(1 - t, x0) * x0 + like(t, x0) * noise
        u, target, _ = identity(velocity, z, jnp.zeros_like(t), t, v)
        errors = (velocity(z, t, t)[0] - v, u - target)
        return count + 1, tuple(per_example(jnp.square(e)) for e in errors)

    t = (jnp.arange(K)[:, None] + stratified_uniform(key_t, B)[None]) / K
    _, (instantaneous, average) = jax.lax.scan(term, 0, t)
    return {"velocity_mse": instantaneous.mean(0), "mean_flow_mse": average.mean(0)}


# ---- sampling ------------------------------------------------------------------------------------


def plan(model: Model, *, steps: int | None = None, times: tuple = ()) -> dict[str, Any]:
    """Turns the sampling options into the keywords of `sample`.

    Args:
      model: model of the run.
      steps: network calls; None uses the value in the config.
      times: decreasing times of the calls on the path, instead of a number of steps; on "edm" they
        are values of sigma. By default times are even in t for a mean flow, and even in
        sigma^(1/7) otherwise (Karras et al. 2022, eq. 5).

    Raises:
      ConfigError: `steps` is not a positive whole number, or `times` do not decrease or lie outside
        the path.
    """
    count, path = model.options.steps if steps is None else steps, model.denoiser.path
    valid = whole_number(count) and count >= 1
    require(valid, "steps", count, "a whole number, at least 1")
    if model.options.kind == "mean_flow":
        t = np.linspace(1.0, 0.0, count + 1)[:-1]
        if times:
            t = grids.times(path, count, given=times)
        table = solvers.ddim(path, grids.grid(path, t))
        both = noise_levels.HUNDREDTHS * np.stack([t, t - np.append(t[1:], 0.0)], axis=1)
        table = table._replace(at=table.at._replace(time_input=both))
    else:
        share = np.linspace(1.0, 0.0, count + 1)[:-1]
        s = noise_levels.karras(share, model.least, model.highest)
        if times:
            s = np.exp(-path.lam(grids.times(path, count, given=times)))
            s = np.clip(s, model.least, model.highest)
        table = noise_levels.multistep(path, s, model.least)
    return {"table": table, "stochastic": table.stochastic}


def sample(
    model: Model,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
    *,
    table: Table,
    stochastic: bool,
) -> Array:
    """Draws `num` samples, in the data's own format; see `plan` for the options.

    Each sample depends on its own key, and not on how many are drawn with it.
    """
    o, denoiser = model.options, model.denoiser
    fields, setting = fields_of(o, denoiser.spec), "consistency.class_conditional=True"
    key_label = jax.random.fold_in(key, 2)
    known = Known(complete(denoiser.spec, fields, num, condition, key_label, setting))
    variables = (params["denoiser"], mutable["denoiser"])
    cond = denoiser.conditioning(variables[0], known)

    def jump(x: Array, at: Levels, memory: tuple) -> tuple[Prediction, tuple]:
        x0, _ = model.jump(*variables, x, at, cond)
        return Prediction(jnp.clip(x0, -1, 1) if denoiser.clips else x0, x), memory

    def flow(x: Array, at: Levels, memory: tuple) -> tuple[Prediction, tuple]:
        output, _ = denoiser.run(*variables, x, jnp.broadcast_to(at.time_input, (num, 2)), cond)
        return denoiser.interpret(output, at, x), memory

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(3 + jnp.arange(num))
    shape = shape_of(denoiser.spec)
    call = flow if o.kind == "mean_flow" else jump
    return denoiser.output(solve(call, table, keys, shape, stochastic=stochastic))
