"""The one generic training step: it plays any game of phases.

The batch is prepared. Then each phase, in order, makes `passes` passes over its slices. For each
slice it computes the gradient of its loss, accumulated over microbatches by weight, and applies the
optimizers. Then the followers and the averages are updated. An update whose loss or gradient is not
finite is skipped and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from genjax.method import Batch, Method, Phase
from genjax.train_state import TrainState, stream
from genjax.training import ema, follow
from genjax.training.accumulate import Metrics, gradient, part
from genjax.training.game import prefixes, prepared, slices
from genjax.training.guard import chosen, guarded

Tree = Any


class StepOutput(NamedTuple):
    """What a step returns besides the state: its metrics, and how many updates it skipped."""

    metrics: Metrics
    skipped: jax.Array


def make_step(
    config: ConfigDict,
    method: Method,
    optimizers: Mapping[str, optax.GradientTransformationExtraArgs],
) -> Callable[[TrainState, Batch], tuple[TrainState, StepOutput]]:
    """Returns the pure function (state, batch) -> (next state, StepOutput), to jit and donate.

    The batch has `slices(method) * config.batch_size` examples.
    """
    repeats = slices(method)

    def update(phase: Phase, state: TrainState, batch: Batch, key: jax.Array):
        names = phase.networks
        grads, metrics, mutable = gradient(
            phase, state.params, state.mutable, batch, key, state.step, config.accumulation
        )
        norms, weight = {n: optax.tree.norm(grads[n]) for n in names}, metrics["loss"][1]
        for name, norm in norms.items():
            metric_name = "grad_norm" if len(names) == 1 else f"grad_norm_{name}"
            metrics[metric_name] = jnp.stack([norm * weight, weight])
        finite = jnp.isfinite(metrics["loss"][0] + sum(norms.values()))
        old = ({n: tree[n] for n in names} for tree in (state.params, state.opt_state))

        def apply(grads: Tree, params: Tree, opt_state: Tree) -> tuple[Tree, Tree]:
            new, states = {}, {}
            for n in names:
                updates, states[n] = optimizers[n].update(
                    grads[n], opt_state[n], params[n], step=state.step
                )
                new[n] = optax.apply_updates(params[n], updates)
                if n in method.project:
                    new[n] = method.project[n](new[n])
            return new, states

        params, opt_state = guarded(apply, finite, grads, *old)
        state = state.replace(
            params={**state.params, **params},
            opt_state={**state.opt_state, **opt_state},
            mutable=chosen(finite, mutable, state.mutable),
        )
        return state, StepOutput(metrics, 1 - finite.astype(jnp.int32))

    def play(index: int, phase: Phase, state: TrainState, batch: Batch):
        key = jax.random.fold_in(stream(state.key, "train"), state.step)
        key = jax.random.fold_in(key, index)

        def one_pass(state: TrainState, number: jax.Array | int) -> tuple[TrainState, StepOutput]:
            outputs = []
            for r in range(phase.repeat):
                slice_key = jax.random.fold_in(key, number * phase.repeat + r)
                state, output = update(phase, state, part(batch, repeats, r), slice_key)
                outputs.append(output)
            return state, jax.tree.map(lambda *leaves: sum(leaves), *outputs)

        if phase.passes == 1:
            return one_pass(state, 0)
        state, outputs = jax.lax.scan(one_pass, state, jnp.arange(phase.passes))
        return state, jax.tree.map(lambda leaf: leaf.sum(0), outputs)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepOutput]:
        batch = prepared(method, state, batch, repeats * config.accumulation)
        metrics, skipped = {}, jnp.int32(0)
        for index, (phase, prefix) in enumerate(zip(method.phases, prefixes(method), strict=True)):

            def run(state: TrainState, index=index, phase=phase):
                return play(index, phase, state, batch)

            if phase.every == 1 and not phase.start and phase.stop is None:
                state, output = run(state)
            else:
                nothing = jax.tree.map(
                    lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(run, state)[1]
                )
                due = (state.step >= phase.start) & (state.step % phase.every == 0)
                if phase.stop is not None:
                    due &= state.step < phase.stop
                state, output = jax.lax.cond(due, run, lambda s, n=nothing: (s, n), state)
            metrics |= {prefix + name: value for name, value in output.metrics.items()}
            skipped += output.skipped
        params = follow.update(method.follows, state.params, state.step)
        averages = ema.update(config, state.ema, params, state.step)
        state = state.replace(step=state.step + 1, params=params, ema=averages)
        return state, StepOutput(metrics, skipped)

    return step
