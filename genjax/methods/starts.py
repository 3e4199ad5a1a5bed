"""Samples that begin with a picture instead of noise: SDEdit, and the noise of an inverted picture.

SDEdit (Meng et al. 2022, algorithm 1) adds noise up to a level and removes it for new conditions.
Inversion (Song et al. 2021, section 4.3; Ramesh et al. 2022, section 3) follows the ODE from a
picture to its noise, for the conditions that describe it. The same conditions lead back to it;
others change what they name and keep the rest. Between two pictures' noises lie others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.checks import require
from genjax.config import ConfigError
from genjax.method import Field
from genjax.methods.denoiser import Denoiser, Known, fields_of, shape_of
from genjax.networks.conditioning import scaled
from genjax.sampling import grids, noise, paths, solvers
from genjax.sampling.conditions import SHARE, UNLISTED, Condition, complete
from genjax.sampling.embeddings import slerp, unit
from genjax.sampling.guidance import clipped
from genjax.sampling.paths import Levels, Path
from genjax.sampling.table import Table, solve

START, OTHER, MIX = "start", "other_start", "mix"


def given(fields: Mapping[str, Field], picture: Field) -> dict[str, Field]:
    """What a user may give, by name: pictures, and of each the conditions that describe it.

    Args:
      fields: the conditions of the network.
      picture: the generated field.
    """
    picture = picture._replace(facts={**picture.facts, **UNLISTED})
    pictures = {START: picture, OTHER: picture}
    share = Field("real", (), np.dtype(np.float32), SHARE)
    return pictures | described(fields) | {MIX: share}


def described(fields: Mapping[str, Field]) -> dict[str, Field]:
    """The conditions that describe each of the pictures, by name."""
    return {
        of(start, name): field._replace(facts={**field.facts, **UNLISTED})
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
    names = given(fields, Field("", (), None, {})).keys() - fields.keys()
    own = {name: value for name, value in condition.items() if name in names}
    return {name: value for name, value in condition.items() if name not in own}, own


def last_steps(
    t: Float[np.ndarray, "N"], strength: float, inversion: int
) -> Float[np.ndarray, "n"]:
    """The times of the last steps, for a share `strength` of all of them.

    Raises:
      ConfigError: the share is not above 0 and at most 1, or the steps are none of inversion.
    """
    require(0 < strength <= 1, "strength", strength, "above 0, and at most 1: all steps")
    most = grids.MOST_STEPS
    require(0 <= inversion <= most, "inversion", inversion, f"0, for none, to {most} steps")
    return t[len(t) - max(1, round(strength * len(t))) :]


def inverse(path: Path, first: float, steps: int, spacing: str, rho: float) -> Table:
    """DDIM from a picture to the level of the time `first`, in about this number of steps."""
    t = grids.times(path, min(steps, path.steps or steps), spacing, rho=rho)
    below = np.append(first, t[t < first - 1e-6 * (path.last - path.first)])
    return solvers.inverse(path, grids.grid(path, below, "first"))


def point(
    model: Denoiser,
    params: dict,
    mutable: dict,
    own: Condition,
    keys: Array,
    *,
    at: Levels,
    table: Table | None,
    whole: bool,
) -> Float[Array, "B H W C"] | None:
    """The point at which sampling begins; None for noise.

    Args:
      model: the model.
      params: of its networks.
      mutable: of its networks.
      own: the conditions of `given` that a user gave.
      keys: one for each sample [B].
      at: the level of the first step.
      table: of the inversion; None if noise is added instead.
      whole: whether the first step is that of noise.

    Raises:
      ConfigError: a picture is missing, or has no effect.
    """
    if START not in own:
        if named := [name for name in own if name != MIX]:
            raise ConfigError(f"--{named[0]} needs --start=FILE, the picture to begin with.")
        if table is not None or not whole:
            raise ConfigError(
                "strength, inversion: samples begin with a picture only if there is one: give "
                "--start=FILE, or leave strength and inversion out."
            )
        return None
    if table is None:
        if whole:
            raise ConfigError(
                "--start has no effect on samples that begin with noise alone: give --strength=0.6 "
                "to keep part of the picture, or --inversion=100 for the noise that leads to it."
            )
        if OTHER in own:
            raise ConfigError(
                "--other_start: the noises of two pictures are mixed, so both are inverted. Give "
                "--inversion=100, or leave it out."
            )
        x0 = scaled(model.spec.generated, own[START])
        return paths.noised(at, x0, noise.normals(keys, 0, shape_of(model.spec)))
    first = inverted(model, params, mutable, own, keys, START, table)
    if OTHER not in own:
        return first
    second = inverted(model, params, mutable, own, keys, OTHER, table)
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
    missing = ", ".join(f"--{of(name, n)}" for n in fields if n not in values)
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
