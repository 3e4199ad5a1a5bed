"""Samples that begin with a picture instead of noise: SDEdit, and the noise of an inverted picture.

SDEdit (Meng et al. 2022, algorithm 1) adds noise up to a level and removes it for new conditions.
Inversion (Song et al. 2021, section 4.3; Ramesh et al. 2022, section 3) follows the ODE from a
picture to its noise, for the conditions that describe it. The same conditions lead back to it;
others change what they name and keep the rest. The noises of two pictures can be mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.checks import require
from genjax.config import ConfigError
from genjax.method import Field
from genjax.methods.denoiser import Denoiser, Known, fields_of, shape_of
from genjax.networks.conditioning import scaled, text_of
from genjax.sampling import grids, noise, paths, solvers
from genjax.sampling.conditions import SHARE, UNLISTED, Condition, complete
from genjax.sampling.embeddings import slerp, unit
from genjax.sampling.guidance import clipped
from genjax.sampling.paths import Levels, Path
from genjax.sampling.table import Table, solve

START, OTHER, MIX = "start", "other_start", "mix"
FACTS = {**UNLISTED, "of_start": True}  # of conditions that concern a picture to begin with


def given(fields: Mapping[str, Field], picture: Field) -> dict[str, Field]:
    """What a user may give, by name: pictures, and of each the conditions that describe it.

    Args:
      fields: the conditions of the network.
      picture: the generated field.
    """
    picture = picture._replace(facts={**picture.facts, **FACTS})
    pictures = {START: picture, OTHER: picture}
    share = Field("real", (), np.dtype(np.float32), SHARE)
    return pictures | described(fields) | {MIX: share}


def described(fields: Mapping[str, Field]) -> dict[str, Field]:
    """The conditions that describe each of the pictures, by name."""
    return {
        of(start, name): field._replace(facts={**field.facts, **FACTS})
        for start in (START, OTHER)
        for name, field in fields.items()
    }


def of(start: str, name: str) -> str:
    """The name of a condition that describes the picture `start` or `other_start`."""
    return f"{start}_{name}"


def split(
    condition: Condition, fields: Mapping[str, Field]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The conditions of the samples, and those of `given` for a network with these fields."""
    names = {START, OTHER, MIX, *described(fields)} - fields.keys()
    own = {name: value for name, value in condition.items() if name in names}
    return {name: value for name, value in condition.items() if name not in own}, own


def last_steps(path: Path, t: Float[np.ndarray, "N"], strength: float) -> Float[np.ndarray, "n"]:
    """The times of the last steps, for a share `strength` of all of them.

    Raises:
      ConfigError: the share is not above 0 and at most 1, or leaves only a step without noise.
    """
    require(0 < strength <= 1, "strength", strength, "above 0, and at most 1: all steps")
    left = t[len(t) - max(1, round(strength * len(t))) :]
    if strength < 1 and left[0] <= path.first:
        raise ConfigError(
            f"strength={strength:g} of {len(t)} steps leaves one that begins without noise. Give "
            "more strength or more steps."
        )
    return left


def inverse(path: Path, table: Table, first: float, steps: int, spacing: str, rho: float) -> Table:
    """DDIM from a picture to where a sampler begins.

    Args:
      path: of the model.
      table: of the sampler.
      first: the time of its first step.
      steps: the number of DDIM's steps for the whole path; below the last level fewer are needed.
      spacing: see `grids.times`.
      rho: see there.

    Raises:
      ConfigError: too many steps, or a sampler that adds noise before its first call.
    """
    most = path.steps or grids.MOST_STEPS
    require(0 < steps <= most, "inversion", steps, f"0, for none, to {most} steps")
    if not np.isclose(table.at.sigma[0], paths.levels(path, np.float64(first)).sigma, rtol=1e-6):
        raise ConfigError(
            "inversion: the sampler adds noise before its first step, so that it would not begin "
            "with that of the picture. Give churn=0, or another sampler."
        )
    t = grids.times(path, steps, spacing, rho=rho)
    below = np.append(first, t[t < first - 1e-6 * (path.last - path.first)])
    return solvers.inverse(path, grids.grid(path, below, "first"))


class Beginning(NamedTuple):
    """Where sampling begins, as its options say.

    Attributes:
      strength: share of the steps; below 1 a picture is needed.
      pure: whether the first step is at the path's last level, where nothing of a picture is left.
    """

    strength: float
    pure: bool


def check(own: Condition, beginning: Beginning, inverts: bool) -> None:
    """Raises ConfigError if a picture is missing, or if something that is given has no effect."""
    describe = [name for name in own if name not in (START, OTHER, MIX)]
    of_other = [name for name in describe if name.startswith(f"{OTHER}_")]
    if START not in own:
        if named := [name for name in own if name != MIX]:
            raise ConfigError(f"--{named[0]} needs --start=FILE, the picture to begin with.")
        if inverts or beginning.strength < 1:
            raise ConfigError(
                "strength and inversion are for samples that begin with a picture: give "
                "--start=FILE, or leave them out."
            )
    elif not inverts and beginning.pure:
        raise ConfigError(
            "--start has no effect on samples that begin with noise alone: give --strength=0.6 "
            "to keep part of the picture, or --inversion=100 for the noise that leads to it."
        )
    elif not inverts and (OTHER in own or describe):
        raise ConfigError(
            f"--{OTHER if OTHER in own else describe[0]} is for inversion only: give "
            "--inversion=100, or leave it out."
        )
    if OTHER not in own and (of_other or MIX in own):
        raise ConfigError(
            f"--{of_other[0] if of_other else MIX} needs --other_start=FILE, a second picture. "
            "Give it, or leave the other out."
        )


def point(
    model: Denoiser,
    params: dict,
    mutable: dict,
    own: Condition,
    keys: Array,
    *,
    at: Levels,
    inversion: Table | None,
    beginning: Beginning,
) -> Float[Array, "B H W C"] | None:
    """The point at which sampling begins; None for noise.

    Args:
      model: the model.
      params: of its networks.
      mutable: of its networks.
      own: the conditions of `given` that a user gave.
      keys: one for each sample [B].
      at: the level of the first step.
      inversion: the table from a picture to its noise; None if noise is added instead.
      beginning: where sampling begins.

    Raises:
      ConfigError: see `check` and `inverted`.
    """
    check(own, beginning, inversion is not None)
    if START not in own:
        return None
    if inversion is None:
        x0 = scaled(model.spec.generated, own[START])
        return paths.noised(at, x0, noise.normals(keys, 0, shape_of(model.spec)))
    first = inverted(model, params, mutable, own, keys, START, inversion)
    if OTHER not in own:
        return first
    second = inverted(model, params, mutable, own, keys, OTHER, inversion)
    return between(first, second, jnp.asarray(own.get(MIX, 0.5), jnp.float32))


def inverted(
    model: Denoiser,
    params: dict,
    mutable: dict,
    own: Condition,
    keys: Array,
    name: str,
    table: Table,
) -> Float[Array, "B H W C"]:
    """The noise of a picture, by the ODE without guidance.

    Raises:
      ConfigError: some conditions of the picture are given and others are not, or none, and the
        network was never trained without.
    """
    o, spec = model.options, model.spec
    fields, shape = fields_of(o, spec), shape_of(spec)
    x0 = scaled(spec.generated, own[name])
    values = {n: own[of(name, n)] for n in fields if of(name, n) in own}
    # What a user gives for the vectors of a text is the text.
    asked = {n: "text" if text_of(field) else n for n, field in fields.items()}
    missing = ", ".join(f"--{of(name, asked[n])}" for n in fields if n not in values)
    hides = not values and o.label_dropout
    if missing and not hides:
        raise ConfigError(
            f"{missing} missing: inversion needs the conditions that describe the picture."
        )
    if hides and fields:
        count = len(x0)
        values = {n: jnp.zeros((count, *f.shape), f.dtype) for n, f in fields.items()}
        known = Known(values, jnp.ones((count,), bool))
    else:
        known = Known(complete(spec, fields, len(x0), values, keys[0]))
    variables = params["denoiser"], mutable["denoiser"]
    cond = model.conditioning(variables[0], known)

    def plain(x: Array, at: Levels, memory: Any) -> tuple[Any, Any]:
        return model.predict(*variables, x, at, cond), memory

    denoise = clipped(plain) if model.clips else plain
    x = jnp.float32(table.at.alpha[0]) * x0
    return solve(denoise, table, keys, shape, stochastic=False, start=x)


def between(
    a: Float[Array, "B ..."], b: Float[Array, "B ..."], share: Float[Array, "B"]
) -> Float[Array, "B ..."]:
    """Noise at this share of the great circle from a to b, with a length between theirs."""
    flat = [x.reshape(len(x), -1) for x in (a, b)]
    lengths = [jnp.linalg.norm(x, axis=1, keepdims=True) for x in flat]
    share = jnp.broadcast_to(share, (len(a),))
    length = (1 - share[:, None]) * lengths[0] + share[:, None] * lengths[1]
    return (slerp(*map(unit, flat), share) * length).reshape(a.shape)
