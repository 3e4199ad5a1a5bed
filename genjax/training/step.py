"""The one generic training step: it plays any game of phases.

For each phase in order, `repeat` times: the gradient of its loss over its slice of the batch,
accumulated over microbatches by weight, then the optimizer; then the averages. An update whose
loss or gradient is not finite is skipped, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from genjax.method import Batch, Method, Phase
from genjax.train_state import TrainState, stream
from genjax.training import ema
from genjax.training.accumulate import Metrics, gradient, part

Tree = Any
Apply = Callable[..., tuple[Tree, Tree]]  # (grads, params, opt_state) -> the new ones


class StepOutput(NamedTuple):
    """What a step leaves beside the state: its metrics, and how many updates it skipped."""

    metrics: Metrics
    skipped: jax.Array


def slices(method: Method) -> int:
    """How many batches of `batch_size` one step takes from the loader."""
    return max(phase.repeat for phase in method.phases)


def prefixes(method: Method) -> list[str]:
    """What each phase's metrics are called: nothing for a lone one, else by what it trains."""
    if len(method.phases) == 1:
        return [""]
    names = [phase.trains for phase in method.phases]
    return [
        f"{name}_{names[:i].count(name) + 1}/" if name in names[:i] else f"{name}/"
        for i, name in enumerate(names)
    ]


def chosen(finite: jax.Array, new: Tree, old: Tree) -> Tree:
    """The new arrays where `finite`, else the old."""
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)


def by_choice(apply: Apply, finite: jax.Array, grads: Tree, *old: Tree) -> tuple[Tree, Tree]:
    """`apply(grads, *old)` where `finite`, else `old`."""
    return chosen(finite, apply(grads, *old), old)


def by_branch(apply: Apply, finite: jax.Array, grads: Tree, *old: Tree) -> tuple[Tree, Tree]:
    """The same, computed if it is needed.

    On the CPU XLA then updates everything in place, in half the time of a choice; an accelerator
    would have to wait for the branch to be known.
    """
    return jax.lax.cond(finite, apply, lambda grads, *old: old, grads, *old)


def make_step(
    config: ConfigDict,
    method: Method,
    optimizers: Mapping[str, optax.GradientTransformationExtraArgs],
) -> Callable[[TrainState, Batch], tuple[TrainState, StepOutput]]:
    """The pure function (state, batch) -> (next state, StepOutput), to be jitted and donated.

    The batch has `slices(method) * config.batch_size` examples.
    """
    repeats = slices(method)

    def update(phase: Phase, state: TrainState, batch: Batch, key: jax.Array):
        name = phase.trains
        grads, metrics, mutable = gradient(
            phase, state.params, state.mutable, batch, key, state.step, config.accumulation
        )
        norm, weight = optax.tree.norm(grads), metrics["loss"][1]
        metrics["grad_norm"] = jnp.stack([norm * weight, weight])
        finite = jnp.isfinite(metrics["loss"][0] + norm)
        old = state.params[name], state.opt_state[name]

        def apply(grads: Tree, params: Tree, opt_state: Tree) -> tuple[Tree, Tree]:
            updates, opt_state = optimizers[name].update(grads, opt_state, params, step=state.step)
            return optax.apply_updates(params, updates), opt_state

        params, opt_state = jax.lax.platform_dependent(
            finite,
            grads,
            *old,
            cpu=partial(by_branch, apply),
            default=partial(by_choice, apply),
        )
        state = state.replace(
            params={**state.params, name: params},
            opt_state={**state.opt_state, name: opt_state},
            mutable=chosen(finite, mutable, state.mutable),
        )
        return state, StepOutput(metrics, 1 - finite.astype(jnp.int32))

    def play(index: int, phase: Phase, state: TrainState, batch: Batch):
        key = jax.random.fold_in(stream(state.key, "train"), state.step)
        key = jax.random.fold_in(key, index)
        outputs = []
        for r in range(phase.repeat):
            state, output = update(
                phase, state, part(batch, repeats, r), jax.random.fold_in(key, r)
            )
            outputs.append(output)
        return state, jax.tree.map(lambda *leaves: sum(leaves), *outputs)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepOutput]:
        metrics, skipped = {}, jnp.int32(0)
        for index, (phase, prefix) in enumerate(zip(method.phases, prefixes(method), strict=True)):

            def run(state: TrainState, index=index, phase=phase):
                return play(index, phase, state, batch)

            if phase.every == 1 and not phase.start:
                state, output = run(state)
            else:
                nothing = jax.tree.map(
                    lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(run, state)[1]
                )
                due = (state.step >= phase.start) & (state.step % phase.every == 0)
                state, output = jax.lax.cond(due, run, lambda s, n=nothing: (s, n), state)
            metrics |= {prefix + name: value for name, value in output.metrics.items()}
            skipped += output.skipped
        averages = ema.update(config, state.ema, state.params, state.step)
        return state.replace(step=state.step + 1, ema=averages), StepOutput(metrics, skipped)

    return step
