"""Rewards of answers: functions (tokens, batch) -> one number per row, named by `rl_lm.reward`.

- tokens: int32 [N, P + A], a prompt, padded with -1 on the left, and the answer to it, from column
  P on, with its end token; -1 after its end.
- batch: the rows of the data that the prompts are from, and `prompt` [N, P].
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.checks import ConfigError, require
from genjax.method import Batch, DataSpec, Stage, Tree, find_module
from genjax.methods import answers

log = logging.getLogger("genjax")

# (params, mutable, tokens, batch) -> [N]
Reward = Callable[[Mapping[str, Tree], Mapping[str, Tree], Array, Batch], Array]


def exact(tokens: Int[Array, "N S"], batch: Batch) -> Float[Array, "N"]:
    """1 for the answer of the data, token by token to its end, and 0 for any other.

    The data mark it: `token` [N, R], `loss_mask` [N, R].
    """
    answer = tokens[:, batch["prompt"].shape[1] :]
    mask = batch["loss_mask"].astype(bool)
    place = jnp.argmax(mask, axis=1)[:, None] + jnp.arange(answer.shape[1])
    inside = jnp.minimum(place, mask.shape[1] - 1)
    counts = (place < mask.shape[1]) & jnp.take_along_axis(mask, inside, axis=1)
    right = jnp.where(counts, jnp.take_along_axis(batch["token"], inside, axis=1), -1)
    whole = counts.sum(1) == mask.sum(1)  # else the answer of the data is longer than any here
    return ((answer == right).all(1) & whole).astype(jnp.float32)


def checked(found: Any, count: int, key: str) -> Any:
    """`found` if it is one number for each of `count` answers; else ConfigError, naming `key`."""
    shape = tuple(getattr(found, "shape", np.shape(found)))
    if shape != (count,):
        raise ConfigError(
            f"config.{key} returned an array of shape {shape} for {count} answers: expected one "
            f"number for each, ({count},)."
        )
    return found


def by_function(function: Callable, host: bool, path: str) -> Reward:
    """A reward of tokens and batch: traced, or called on the host.

    Raises:
      ConfigError, when it is traced: the result is not one number per row.
    """
    key = f"rl_lm.reward={path!r}"

    def on_host(tokens: np.ndarray, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """NaN if anything is wrong: an exception in a callback would end the process."""
        arrays = {name: np.asarray(rows) for name, rows in batch.items()}
        try:
            found = checked(function(np.asarray(tokens), arrays), len(tokens), key)
            found = np.asarray(found, np.float32)
        except Exception:
            log.exception("config.%s failed; the step is skipped", key)
            return np.full(len(tokens), np.nan, np.float32)
        if wrong := int((~np.isfinite(found)).sum()):
            log.error("config.%s returned NaN or infinity for %d answers", key, wrong)
        return found

    def reward(params: Tree, mutable: Tree, tokens: Array, batch: Batch) -> Array:
        if not host:
            return checked(function(tokens, batch), len(tokens), key).astype(jnp.float32)
        result = jax.ShapeDtypeStruct((len(tokens),), jnp.float32)
        return jax.pure_callback(on_host, result, tokens, dict(batch))

    return reward


def by_stage(stage: Stage) -> Reward:
    """The reward of a stage that is a reward model.

    Raises:
      ConfigError, when it is traced: the stage does not give one number per row.
    """

    def reward(params: Tree, mutable: Tree, tokens: Array, batch: Batch) -> Array:
        made = answers.rows(tokens, batch["prompt"].shape[1])
        return checked(stage.apply(params, mutable, made), len(tokens), "stages.reward")

    return reward


def find(name: str, host: bool, stages: Mapping[str, Stage], spec: DataSpec) -> Reward:
    """The reward of this name, see `rl_lm.Options`.

    Raises:
      ConfigError: there is no such function or stage, or the stage has another tokenizer or is no
        reward model.
    """
    if name:
        module, _, function = name.rpartition(".")
        expected = "the dotted path of a function, such as rewards.exact or mine.reward"
        require(bool(module and function), "config.rl_lm.reward", name, expected)
        found = find_module("rl_lm.reward", module, "genjax.methods", function)
        return by_function(getattr(found, function), host, name)
    if "reward" not in stages:
        raise ConfigError(
            "config.rl_lm.reward is empty and config.stages has no 'reward': give the dotted path "
            "of a function, such as rewards.exact, or a run of configs/reward_model.py as "
            "--config.stages.reward=RUNDIR."
        )
    stage = stages["reward"]
    answers.same_tokenizer("reward", stage, spec)
    if any(answers.output_shape(stage, n) != (2,) for n in (2, spec.generated.shape[0])):
        raise ConfigError(
            f"config.stages.reward is a run of method {stage.config.method!r}: expected a model "
            "that gives one number for each row, such as a run of configs/reward_model.py."
        )
    return by_stage(stage)
