"""The game that a method's phases make up: what they take, what they are called, what is wrong."""

from __future__ import annotations

import jax

from genjax.config import ConfigError, require
from genjax.method import Batch, Method
from genjax.train_state import TrainState, stream


def slices(method: Method) -> int:
    """How many batches of `batch_size` one step takes from the loader."""
    return max(phase.repeat for phase in method.phases)


def trained(method: Method) -> list[str]:
    """The names of the networks that phases train, sorted."""
    return sorted({name for phase in method.phases for name in phase.networks})


def prefixes(method: Method) -> list[str]:
    """What each phase's metrics are called: nothing for a lone one, else by what it trains.

    A phase that trains several networks is called `encoder+decoder/`.
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
        what, names = f"phase {prefix.rstrip('/') or phase.trains!r}: ", phase.networks
        once = len(set(names)) == len(names) > 0
        require(once, f"{what}trains", phase.trains, "one network, or several different ones")
        for field in ("repeat", "every", "passes"):
            value = getattr(phase, field)
            require(value >= 1, f"{what}{field}", value, "at least 1")
        stop = phase.stop
        late = stop is None or stop > phase.start
        require(late, f"{what}stop", stop, f"a step after its start, {phase.start}, or None")


def prepared(method: Method, state: TrainState, batch: Batch, parts: int) -> Batch:
    """What `method.prepare` makes of the batch at `state.step`; the batch itself without it.

    Args:
      method: the family.
      state: before the step.
      batch: from the loader.
      parts: how many equal parts the phases divide it into.

    Raises:
      ConfigError: an array of another number of examples than a multiple of `parts`.
    """
    if method.prepare is None:
        return batch
    key = jax.random.fold_in(stream(state.key, "prepare"), state.step)
    made = method.prepare(state.params, state.mutable, batch, key, state.step)
    for name, value in made.items():
        if not value.ndim or value.shape[0] % parts:
            raise ConfigError(
                f"prepare made {name!r} of shape {tuple(value.shape)}: expected a number of "
                f"examples, first, that is a multiple of {parts}, the slices of the phases times "
                "config.accumulation. Make as many, or change batch_size or accumulation."
            )
    return jax.lax.stop_gradient(made)
