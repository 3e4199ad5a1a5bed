"""Samples of a diffusion model: the options of a sampler, guidance, and the call of a solver."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from genjax.checks import is_number
from genjax.config import ConfigError, one_of, require
from genjax.method import Field
from genjax.methods import starts
from genjax.methods.composition import NO_PROMPTS, Prompts, others_of, parsed_prompts
from genjax.methods.denoiser import Denoiser, Known, fields_of, shape_of
from genjax.methods.diffusion_options import Options, guidable
from genjax.sampling import grids, solvers
from genjax.sampling import guidance as guiding
from genjax.sampling.conditions import Condition, complete
from genjax.sampling.guidance import Guidance
from genjax.sampling.logits import whole_number
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.paths import Levels, Path
from genjax.sampling.table import Denoise, Table, solve

PAIR_ALONE = ("euler", "ddim", "ddpm", "euler_ancestral", "dpm++_1s")


def check_guidance(o: Options, guided: bool, by_weights: bool) -> None:
    """Raises ConfigError if guidance has neither worse weights nor conditions to leave out.

    Also raises it for worse weights without guidance.
    """
    derived = (o.embedding or o.low_resolution) and o.label_dropout
    if guided and not by_weights and not (guidable(o) or derived):
        raise ConfigError(
            "guidance: the model must have been trained with diffusion.class_conditional=True or "
            "diffusion.conditions, and diffusion.label_dropout > 0, to be guided, or --guide_ema "
            "or --guide_checkpoint must name worse weights to guide away from. Use guidance=1."
        )
    if by_weights and not guided:
        raise ConfigError(
            "guidance=1 is none, but --guide_ema or --guide_checkpoint name weights for guidance: "
            "give --mode=sample --guidance=2, or remove them."
        )


def plan(
    o: Options,
    path: Path,
    prompt: Field | None = None,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    times: tuple = (),
    grid_shift: float = 1.0,
    rho: float = 7.0,
    end: str = "data",
    eta: float | None = None,
    order: int | None = None,
    churn: float | None = None,
    warmup: str | None = None,
    guidance: float | None = None,
    guidance_kind: str = "linear",
    guidance_interval: tuple = (0.0, math.inf),
    guidance_rescale: float = 0.0,
    guidance_radius: float = math.inf,
    guidance_parallel: float = 1.0,
    guidance_momentum: float = 0.0,
    negative_prompt: str = "",
    more_prompts: tuple = (),
    threshold: float = 0.0,
    strength: float = 1.0,
    inversion: int = 0,
) -> dict[str, Any]:
    """Turns options into keywords of `sample`; None takes the value of the `diffusion` section.

    Args:
      o: the section.
      path: path of the model.
      prompt: field of the text that the network is conditioned on.
      sampler: a name in `solvers.SOLVERS`.
      steps: number of steps; in discrete time 0 uses all T.
      spacing: spacing of the steps: see `grids.times`.
      times: the times of the steps, instead of `steps`.
      grid_shift: see `grids.times`.
      rho: parameter of the spacing "karras".
      end: where the last step ends: "data" or the path's "first" level.
      eta: noise, for solvers with this option.
      order: order, for solvers with this option.
      churn: noise that sampler "edm" adds and removes again, over all steps.
      warmup: first steps of sampler "pndm": "runge_kutta" or "multistep".
      guidance: scale; 1 is none and does not double the network's batch.
      guidance_kind: "linear", "projected" (APG) or "cfg++".
      guidance_interval: (low, high) of sigma / alpha where guidance is used.
      guidance_rescale: phi of Lin et al. 2024.
      guidance_radius: parameter of "projected".
      guidance_parallel: parameter of "projected".
      guidance_momentum: parameter of "projected".
      negative_prompt: a text to guide away from, in place of none.
      more_prompts: pairs (text, weight). Each adds guidance towards its text, of the scale times
        its weight, or away from it (Liu et al. 2022, eq. 11).
      threshold: percentile of dynamic thresholding, such as 99.5; 0 clips to the data's range.
      strength: share of the steps, the last ones, for samples that begin with a picture.
      inversion: steps of DDIM from that picture to its noise, for the whole path; 0 adds noise
        instead.

    Raises:
      ConfigError: an option that does not exist or that this model does not support.
    """
    overrides = dict(sampler=sampler, steps=steps, spacing=spacing, eta=eta, guidance=guidance)
    numbers = dict(grid_shift=grid_shift, rho=rho, threshold=threshold, strength=strength)
    numbers |= dict(guidance_rescale=guidance_rescale, guidance_parallel=guidance_parallel)
    numbers |= dict(guidance_momentum=guidance_momentum)
    optional = dict(eta=eta, guidance=guidance, churn=churn)
    numbers |= {name: value for name, value in optional.items() if value is not None}
    for name, value in numbers.items():
        require(is_number(value), name, value, "a finite number")
    for name, value in {"steps": steps, "order": order, "inversion": inversion}.items():
        require(value is None or whole_number(value), name, value, "a whole number")
    radius_ok = is_number(guidance_radius, infinite=True)
    require(radius_ok, "guidance_radius", guidance_radius, "a number")
    interval_ok = isinstance(guidance_interval, tuple | list) and len(guidance_interval) == 2
    interval_ok = interval_ok and all(is_number(end, infinite=True) for end in guidance_interval)
    require(interval_ok, "guidance_interval", guidance_interval, 'two numbers, such as "(0.3, 5)"')
    require(rho > 0, "rho", rho, "more than 0")
    if times and steps:
        raise ConfigError(f"steps={steps} and times={times} are both given: remove one.")
    o = o._replace(**{k: v for k, v in overrides.items() if v is not None})
    one_of("sampler", o.sampler, tuple(solvers.SOLVERS))
    solver = solvers.SOLVERS[o.sampler]
    options = (
        {"eta": float(o.eta)} if eta is not None or (o.eta and "eta" in solver.options) else {}
    )
    options |= {"order": order} if order is not None else {}
    options |= {"variance": o.variance} if o.sampler == "ddpm" else {}
    options |= {"churn": float(churn)} if churn is not None else {}
    options |= {"warmup": warmup} if warmup is not None else {}
    for name in options:
        if name not in solver.options:
            samplers = ", ".join(n for n, s in solvers.SOLVERS.items() if name in s.options)
            raise ConfigError(
                f"{name}={options[name]}: sampler {o.sampler} has no such option; these have: "
                f"{samplers}."
            )
    count = o.steps or path.steps
    every = grids.times(path, count, o.spacing, rho=rho, shift=grid_shift, given=times)
    t = starts.last_steps(path, every, strength)
    table = solver.table(path, grids.grid(path, t, end), **options)
    low, high = guidance_interval
    g = Guidance(
        *(float(o.guidance), float(low), float(high), float(guidance_rescale)),
        *(float(guidance_parallel), float(guidance_radius), float(guidance_momentum)),
    )
    guiding.check(guidance_kind, g)
    if guidance_kind == "cfg++":  # its pair does not give back x_t, which other samplers also use
        one_of("sampler (with guidance_kind=cfg++)", o.sampler, PAIR_ALONE)
    require(0 <= threshold <= 100, "threshold", threshold, "a percentile, or 0")
    if threshold and guidance_kind == "cfg++":
        raise ConfigError(
            f"threshold={threshold:g}: with guidance_kind='cfg++' epsilon does not match x_0. "
            "Remove one."
        )
    guided = g.scale != 1 or guidance_kind == "cfg++" or bool(more_prompts)
    if negative_prompt and not guided:
        raise ConfigError(
            f"negative_prompt={negative_prompt!r} has no effect without guidance: give guidance=2, "
            "for example, or leave it out."
        )
    return {
        "table": table,
        "guidance": Guidance(*map(np.float64, g)),
        "prompts": parsed_prompts(prompt, negative_prompt, more_prompts),
        "guided": guided,
        "kind": guidance_kind,
        "stochastic": table.stochastic,
        "threshold": float(threshold),
        "inversion": (
            starts.inverse(path, table, t[0], inversion, o.spacing, rho) if inversion else None
        ),
        "beginning": starts.Beginning(float(strength), bool(t[0] == path.last)),
    }


def denoiser(
    model: Denoiser,
    params: dict,
    mutable: dict,
    known: Known,
    *,
    guidance: Guidance,
    prompts: Prompts = NO_PROMPTS,
    guided: bool,
    kind: str,
    threshold: float,
) -> Denoise:
    """The model as solvers call it: with guidance, and x_0 within the data's range.

    The conditions are encoded once, before all steps.
    """
    variables, by_weights = (params["denoiser"], mutable["denoiser"]), "guide/denoiser" in params
    check_guidance(model.options, guided, by_weights)
    if by_weights and any(part is not None for part in prompts):
        raise ConfigError(
            "negative_prompt, more_prompts: with --guide_ema or --guide_checkpoint both networks "
            "have the same text. Remove one."
        )
    cond = model.conditioning(variables[0], known)
    if by_weights:
        worse = (params["guide/denoiser"], mutable["denoiser"])
        cond_worse = model.conditioning(worse[0], known)
    elif guided:
        others = [
            model.conditioning(variables[0], other) for other in others_of(model, known, prompts)
        ]
        every = jax.tree.map(lambda *parts: jnp.concatenate(parts), cond, *others)

    def unguided(x: Array, at: Levels, memory: Any) -> tuple[Prediction, Any]:
        return model.predict(*variables, x, at, cond), memory

    def both(x: Array, at: Levels) -> tuple[Prediction, Prediction]:
        if by_weights:
            return model.predict(*variables, x, at, cond), model.predict(*worse, x, at, cond_worse)
        count = 1 + len(others)
        all_at_once = model.predict(*variables, jnp.concatenate([x] * count), at, every)
        split = [[None] * count if y is None else jnp.split(y, count) for y in all_at_once]
        good, bad, *further = (Prediction(*parts) for parts in zip(*split, strict=True))
        return guiding.composed(good, bad, further, prompts.weights), bad

    denoise = guiding.guided(both, guidance, kind) if guided else unguided
    if threshold:
        kind_of = model.spec.generated.kind
        require(model.clips, "threshold", threshold, f"0: the data are of kind {kind_of!r}")
        return guiding.thresholded(denoise, threshold)
    return guiding.clipped(denoise) if model.clips and kind != "cfg++" else denoise


def sample(
    model: Denoiser,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
    *,
    table: Table,
    guidance: Guidance,
    prompts: Prompts = NO_PROMPTS,
    guided: bool,
    kind: str,
    stochastic: bool,
    threshold: float,
    inversion: Table | None,
    beginning: starts.Beginning,
) -> Array:
    """Draws `num` samples, in the data's own format; see `plan` for the options.

    Each sample depends on its own key, and not on how many are drawn with it.
    """
    fields, setting = fields_of(model.options, model.spec), "diffusion.class_conditional=True"
    condition, own = starts.split(condition, fields)
    key_label = jax.random.fold_in(key, 2)
    known = Known(complete(model.spec, fields, num, condition, key_label, setting))
    denoise = denoiser(
        model,
        params,
        mutable,
        known,
        guidance=guidance,
        prompts=prompts,
        guided=guided,
        kind=kind,
        threshold=threshold,
    )
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(3 + jnp.arange(num))
    shape = shape_of(model.spec)
    memory = jnp.zeros((num, *shape)) if kind == "projected" else ()
    at = Levels(*(jnp.float32(a[0]) for a in table.at))
    first = {"at": at, "inversion": inversion, "beginning": beginning}
    start = starts.point(model, params, mutable, own, keys, **first)
    x = solve(denoise, table, keys, shape, stochastic=stochastic, memory=memory, start=start)
    return model.output(x)
