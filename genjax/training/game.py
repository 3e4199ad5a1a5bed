"""The game of a method's phases: the batches it takes, the names of its metrics, its checks."""

from __future__ import annotations

import jax

from genjax.config import ConfigError, require
from genjax.method import Batch, Method
from genjax.train_state import TrainState, stream


def slices(method: Method) -> int:
    """Returns how many batches of `batch_size` one step takes from the loader."""
    return max(phase.repeat for phase in method.phases)


def trained(method: Method) -> list[str]:
    """The names of the networks that phases train, sorted."""
    return sorted({name for phase in method.phases for name in phase.networks})


def prefixes(method: Method) -> list[str]:
    """Returns the prefix of each phase's metrics: "" for a single phase, else what it trains.

    A phase that trains several networks has a prefix such as `encoder+decoder/`.
    """
    if len(method.phases) == 1:
        return [""]
    names = ["+".join(phase.networks) for phase in method.phases]
    return [
        f"{name}_{names[:i].count(name) + 1}/" if name in names[:i] else f"{name}/"
        for i, name in enumerate(names)
    ]


def check(method: Method) -> None:
    """Refuses a game that cannot be played.

    Raises:
      ConfigError: a phase trains no network, or one of them twice, or its numbers contradict each
        other.
    """
    for phase, prefix in zip(method.phases, prefixes(method), strict=True):
        label, names = f"phase {prefix.rstrip('/') or phase.trains!r}: ", phase.networks
        once = len(set(names)) == len(names) > 0
        require(once, f"{label}trains", phase.trains, "one network, or several different ones")
        for field in ("repeat", "every", "passes"):
            value = getattr(phase, field)
            require(value >= 1, f"{label}{field}", value, "at least 1")
        stop = phase.stop
        late = stop is None or stop > phase.start
        require(late, f"{label}stop", stop, f"a step after its start, {phase.start}, or None")


def prepared(method: Method, state: TrainState, batch: Batch, parts: int) -> Batch:
    """Returns the batch from `method.prepare` at `state.step`; the same batch if there is none.

    Args:
      method: the family.
      state: before the step.
      batch: from the loader.
      parts: how many equal parts the phases divide it into.

    Raises:
      ConfigError: the number of examples of an array is not a multiple of `parts`.
    """
    if method.prepare is None:
        return batch
    key = jax.random.fold_in(stream(state.key, "prepare"), state.step)
    new_batch = method.prepare(state.params, state.mutable, batch, key, state.step)
    for name, value in new_batch.items():
        if not value.ndim or value.shape[0] % parts:
            raise ConfigError(
                f"prepare returned {name!r} of shape {tuple(value.shape)}: expected the first axis "
                f"(examples) to be a multiple of {parts}, the slices of the phases times "
                "config.accumulation. Return that many, or change batch_size or accumulation."
            )
    return jax.lax.stop_gradient(new_batch)
