"""Averages of the parameters kept over a run, and what is put together from them after it.

`config.ema.snapshots` says how often the averages of `config.ema.power` are kept, in `ema/<step>/`
of the workdir. An average of any other length is then a weighted sum of these (Karras et al. 2024,
section 3.2).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.parallel.rules import path_name
from genjax.train_state import TrainState
from genjax.training import ema, game
from genjax.training.assemble import Assembly
from genjax.training.checkpoint import Checkpoints

Tree = Any
logger = logging.getLogger("genjax")

FOLDER = "ema"
NONE = "none"  # the name of the parameters themselves
POOR = 0.1  # share of the norm of its weights that a good average does not miss


# ---- in training ---------------------------------------------------------------------------------


def opened(config: ConfigDict, workdir: epath.Path, step: int) -> Checkpoints | None:
    """The snapshots of a run that goes on from `step`, to write; None if it keeps none.

    Those of later steps are removed: the run makes them again.
    """
    if not config.ema.snapshots and not (workdir / FOLDER).exists():
        return None
    kept = Checkpoints(workdir, config, FOLDER)
    kept.remove_after(step)
    return kept


def of(config: ConfigDict, state: TrainState) -> dict[str, Tree]:
    """What a snapshot holds: the averages of `config.ema.power`, by their names."""
    return {name: state.ema[name] for name in ema.powers(config)}


# ---- after it ------------------------------------------------------------------------------------


def find(config: ConfigDict, steps: Sequence[int], given: str, flag: str) -> str | float:
    """Which average a user asks for.

    Args:
      config: of the run.
      steps: of the snapshots up to the checkpoint that is used.
      given: "none"; the name of an average in the state; or a number: the decay of one of these, or
        else a relative standard deviation.
      flag: what it was given to.

    Returns:
      The average's name in the state, NONE, or the relative standard deviation of one that is to be
      put together from snapshots.

    Raises:
      ConfigError: it was not kept, nor what it could be put together from.
    """
    if given == NONE:
        return NONE
    is_power = given.startswith("power_")
    try:
        number = float(given.removeprefix("power_"))
    except ValueError:
        number = 0.0
    if not is_power and number in config.ema.decay:
        return str(number)
    if number in config.ema.power:
        return f"power_{number}"
    short, several = 0 < number < ema.LONGEST, len(ema.powers(config)) > 1
    if short and not is_power and several and steps:
        return number
    there = [*ema.profiles(config), NONE]
    made = "; of snapshots there are none up to this checkpoint"
    if steps and several:
        made = "; from its snapshots, any relative standard deviation above 0 and below 0.288"
    message = f"{flag}={given}: the run did not keep that. There are {', '.join(there)}{made}."
    if short:
        message += (
            f" With config.ema.power=({number},) training keeps this one; with two others there, "
            "such as (0.05, 0.1), and config.ema.snapshots='5_percent' what any is put together "
            "from."
        )
    elif not is_power and 0 < number < 1:
        message += f" With config.ema.decay=({number},) training keeps it."
    else:
        message += " Give one of these names, a decay, or a relative standard deviation."
    raise ConfigError(message)


def parameters(
    run: Assembly, workdir: epath.Path, state: TrainState, given: str, flag: str
) -> dict[str, Tree]:
    """The parameters of a checkpoint, with an average in the place of those that it is of.

    Args:
      run: the run.
      workdir: its folder.
      state: the checkpoint, or what `read` reads of it.
      given: as for `find`; "" is what evaluations use.
      flag: what it was given to.

    Raises:
      ConfigError: the average was not kept, nor what it could be put together from.
    """
    if not given:
        return ema.evaluation_params(run.config, state.params, state.ema)
    kept = Checkpoints(workdir, name=FOLDER)
    step = int(state.step)
    steps = [found for found in kept.steps() if found <= step]
    which = find(run.config, steps, given, flag)
    if which == NONE:
        return state.params
    if isinstance(which, str):
        return {**state.params, **state.ema[which]}
    before = [found for found in steps if found < step]
    return {**state.params, **_combined(run, kept, before, state, which, flag)}


def read(run: Assembly, checkpoints: Checkpoints, step: int) -> TrainState:
    """The trained networks and the averages of a checkpoint, as if they were all of it.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    step = checkpoints.find(step)
    trained = {name: run.state.params[name] for name in game.trained(run.method)}
    found = _read(checkpoints, step, {"params": trained, "ema": run.state.ema})
    none = {"opt_state": {}, "mutable": {}}
    return run.state.replace(step=jnp.int32(step), **found, **none)


def _read(kept: Checkpoints, step: int, like: Tree) -> Tree:
    """Some of the arrays kept at `step`, with the shapes and shardings of `like`."""
    leaves = jax.tree_util.tree_leaves_with_path(like)
    found = kept.read(step, {path_name(path): leaf for path, leaf in leaves})
    return jax.tree_util.tree_map_with_path(lambda path, _: found[path_name(path)], like)


def _combined(
    run: Assembly,
    kept: Checkpoints,
    steps: Sequence[int],
    state: TrainState,
    deviation: float,
    flag: str,
) -> dict[str, Tree]:
    """The average of relative standard deviation `deviation` up to the step of `state`.

    It is a sum over the snapshots of `steps` and the averages of `state`. One of them is read at a
    time, and lies on the devices as the parameters do.
    """
    known, last = ema.powers(run.config), int(state.step)
    sources = [(step, name) for step in (*steps, last) for name in known]
    factors, missed = ema.coefficients(
        [known[name] for _, name in sources], [step for step, _ in sources], deviation, last
    )
    say = logger.warning if missed > POOR else logger.info
    say(
        "%s=%g is put together from %d averages at %d steps; its weights miss %.2g of those asked "
        "for",
        *(flag, deviation, len(sources), len(steps) + 1, missed),
    )
    like = run.state.ema[next(iter(known))]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)

    @functools.partial(jax.jit, out_shardings=shardings)
    def nothing() -> Tree:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    @functools.partial(jax.jit, out_shardings=shardings, donate_argnums=0)
    def add(total: Tree, average: Tree, factor: jax.Array) -> Tree:
        return jax.tree.map(lambda a, b: a + factor * b, total, average)

    with jax.set_mesh(run.mesh):
        total = nothing()
        for (step, name), factor in zip(sources, factors, strict=True):
            here = step == last
            average = state.ema[name] if here else _read(kept, step, {name: like})[name]
            total = add(total, average, factor)
    return total
