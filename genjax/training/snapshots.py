"""Snapshots of averaged parameters during a run, and other averages computed from them later.

`config.ema.snapshots` says how often the averages of `config.ema.power` are saved, in `ema/<step>/`
of the workdir. An average of any other length is a weighted sum of these (Karras et al. 2024,
section 3.2).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
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
from genjax.training.checkpoint import Checkpoints, Saved

Tree = Any
logger = logging.getLogger("genjax")

FOLDER = "ema"
NONE = "none"  # the name of the parameters without averaging
POOR = 0.1  # a relative error of an average's weights above this is warned of


# ---- in training ---------------------------------------------------------------------------------


def opened(config: ConfigDict, workdir: epath.Path, step: int) -> Checkpoints | None:
    """Opens the snapshots of a run at `step` for writing; None if it keeps none.

    Snapshots of later steps are removed: the run makes them again.
    """
    if not config.ema.snapshots and not (workdir / FOLDER).exists():
        return None
    checkpoints = Checkpoints(workdir, config, FOLDER)
    checkpoints.remove_after(step)
    return checkpoints


def of(config: ConfigDict, state: TrainState) -> dict[str, Tree]:
    """Returns what a snapshot holds: the averages of `config.ema.power`, by their names."""
    return {name: state.ema[name] for name in ema.powers(config)}


# ---- after training ------------------------------------------------------------------------------


def find(config: ConfigDict, steps: Sequence[int], given: str, flag: str) -> str | float:
    """Returns which average a user asks for.

    Args:
      config: the run's config.
      steps: the snapshots up to the checkpoint that is used.
      given: "none"; the name of an average in the state; or a number: the decay of one of these, or
        else a relative standard deviation.
      flag: the flag that it was given to.

    Returns:
      The average's name in the state, NONE, or the relative standard deviation of an average to be
      computed from snapshots.

    Raises:
      ConfigError: the average was not kept and cannot be computed from snapshots.
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
    available = [*ema.profiles(config), NONE]
    also = ". There are no snapshots up to this checkpoint"
    if steps and several:
        also = "; from its snapshots, any relative standard deviation above 0 and below 0.288"
    message = (
        f"{flag}={given}: the run has no such average. Available: {', '.join(available)}{also}."
    )
    if short:
        message += (
            f" Train with config.ema.power=({number},) to keep it. Or train with two values there, "
            "such as (0.05, 0.1), and config.ema.snapshots='5_percent': any average can then be "
            "computed from the snapshots."
        )
    elif not is_power and 0 < number < 1:
        message += f" Train with config.ema.decay=({number},) to keep it."
    else:
        message += " Give one of these names, a decay, or a relative standard deviation."
    raise ConfigError(message)


def parameters(
    run: Assembly, workdir: epath.Path, state: TrainState, given: str, flag: str
) -> dict[str, Tree]:
    """Returns a checkpoint's parameters, with an average in place of the networks averaged.

    Args:
      run: the run.
      workdir: its folder.
      state: the checkpoint's state, or the part that `read` returns.
      given: as for `find`; "" is the average that evaluations use.
      flag: the flag that it was given to.

    Raises:
      ConfigError: the average was not kept and cannot be computed from snapshots.
    """
    if not given:
        return ema.evaluation_params(run.config, state.params, state.ema)
    checkpoints = Checkpoints(workdir, name=FOLDER)
    step = int(state.step)
    steps = [saved for saved in checkpoints.steps() if saved <= step]
    average = find(run.config, steps, given, flag)
    if average == NONE:
        return state.params
    if isinstance(average, str):
        return {**state.params, **state.ema[average]}
    before = [saved for saved in steps if saved < step]
    return {**state.params, **_combined(run, checkpoints, before, state, average, flag)}


def read(run: Assembly, checkpoints: Checkpoints, step: int) -> TrainState:
    """Reads the trained networks and averages of a checkpoint, as a state with nothing else.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    step = checkpoints.find(step)
    trained = {name: run.state.params[name] for name in game.trained(run.method)}
    arrays = _read(checkpoints, step, {"params": trained, "ema": run.state.ema})
    empty = {"opt_state": {}, "mutable": {}}
    return run.state.replace(step=jnp.int32(step), **arrays, **empty)


def _read(
    checkpoints: Checkpoints, step: int, like: Tree, arrays: Mapping[str, Saved] | None = None
) -> Tree:
    """Reads some of the arrays saved at `step`, with the shapes and shardings of `like`."""
    leaves = jax.tree_util.tree_leaves_with_path(like)
    found = checkpoints.read(step, {path_name(path): leaf for path, leaf in leaves}, arrays)
    return jax.tree_util.tree_map_with_path(lambda path, _: found[path_name(path)], like)


def _combined(
    run: Assembly,
    checkpoints: Checkpoints,
    steps: Sequence[int],
    state: TrainState,
    deviation: float,
    flag: str,
) -> dict[str, Tree]:
    """Returns the average of relative standard deviation `deviation` up to the step of `state`.

    It is a weighted sum of the snapshots at `steps` and the averages in `state`. They are read one
    at a time, sharded as the parameters are.
    """
    deviations, last = ema.powers(run.config), int(state.step)
    sources = [(step, name) for step in (*steps, last) for name in deviations]
    factors, error = ema.coefficients(
        [deviations[name] for _, name in sources], [step for step, _ in sources], deviation, last
    )
    say = logger.warning if error > POOR else logger.info
    say(
        "%s=%g is computed from %d averages at %d steps; the relative error of its weights is %.2g",
        *(flag, deviation, len(sources), len(steps) + 1, error),
    )
    like = run.state.ema[next(iter(deviations))]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)

    @functools.partial(jax.jit, out_shardings=shardings)
    def zeros() -> Tree:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    @functools.partial(jax.jit, out_shardings=shardings, donate_argnums=0)
    def add(total: Tree, average: Tree, factor: jax.Array) -> Tree:
        return jax.tree.map(lambda a, b: a + factor * b, total, average)

    with jax.set_mesh(run.mesh):
        total, weights = zeros(), iter(factors)
        for step in steps:
            arrays = checkpoints.arrays(step)
            for name in deviations:
                average = _read(checkpoints, step, {name: like}, arrays)[name]
                total = add(total, average, next(weights))
        for name in deviations:
            total = add(total, state.ema[name], next(weights))
    return total
