"""Which mesh, how many microbatches, what to recompute: candidates, the most promising first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.checks import ConfigError
from genjax.networks.transformer import REMAT
from genjax.planning import flops, programs
from genjax.planning.estimate import Estimate
from genjax.planning.roofs import Roof
from genjax.training.assemble import Assembly

# FLOPs of a step beside those of one that recomputes nothing, roughly; only for the order.
AGAIN = {"none": 1.0, "dots": 1.02, "full": 4 / 3}
MOST_TENSOR = 8  # devices along `tensor`: more lie on no fast link


class Size(NamedTuple):
    """What of a run decides which candidates are worth a compilation.

    Attributes:
      params: numbers in all networks.
      state: bytes of the whole state.
      flops: of a step that recomputes nothing.
    """

    params: int
    state: int
    flops: float


def size_of(run: Assembly) -> Size:
    """The size of a run; its step is traced."""
    leaves = jax.tree.leaves(run.state)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return Size(numbers, state, flops.count(programs.step(run).program.jaxpr).model)


Candidate = Mapping[str, Any]  # keys of the config -> values


class Found(NamedTuple):
    """A candidate and its plan."""

    keys: Candidate
    estimate: Estimate


def candidates(config: ConfigDict, size: Size, devices: int, roof: Roof) -> list[Candidate]:
    """Candidates whose state fits, the one that is probably fastest first.

    The batch stays what it is. Tried are all meshes of divisors of the devices, all powers of two
    as numbers of microbatches, and all kinds of remat of networks that have it.

    Args:
      config: of the run.
      size: of the run.
      devices: how many there are.
      roof: what one of them can do.

    Raises:
      ConfigError: there is no candidate.
    """
    remat = [key for key in configs.flatten(config) if key.endswith(".remat")]
    found = []
    for data, fsdp, tensor in _meshes(devices):
        held = size.state / (fsdp * tensor)
        too_large = roof.hbm_bytes and held > roof.hbm_bytes
        if too_large or config.evals.batch_size % (data * fsdp):
            continue
        for accumulation in _microbatches(config.batch_size, data * fsdp):
            for kind in REMAT if remat else ("",):
                keys = {
                    "mesh.data": data,
                    "mesh.fsdp": fsdp,
                    "mesh.tensor": tensor,
                    "mesh.sequence": 1,
                    "accumulation": accumulation,
                    **dict.fromkeys(remat, kind),
                }
                found.append((_seconds(keys, size, devices, roof, kind, config), keys))
    if not found:
        raise ConfigError(
            f"--search: config.batch_size={config.batch_size} divides over no mesh of {devices} "
            "devices that holds the state. Give a larger batch or more devices."
        )
    return [keys for _, keys in sorted(found, key=lambda pair: pair[0])]


def searched(
    asked: Sequence[Candidate], plan: Callable[[Candidate], Estimate], most: int
) -> list[Found]:
    """Plans of at most `most` candidates in turn: those that fit first, the fastest ahead.

    One that needs more memory than another that did not fit is left out, and so is one that the
    run's config or method refuses.

    Raises:
      ConfigError: all are refused; the reason is that of the last.
    """
    refused: ConfigError | None = None
    found: list[Found] = []
    for keys in asked:
        if len(found) == most:
            break
        if any(not own.estimate.fits and larger(keys, own.keys) for own in found):
            continue
        try:
            found.append(Found(keys, plan(keys)))
        except ConfigError as error:
            refused = error
    if refused and not found:
        raise refused
    return sorted(found, key=lambda own: (not own.estimate.fits, seconds(own.estimate)))


def seconds(estimate: Estimate) -> float:
    """By which plans are ranked: halfway between everything at once and one after the other."""
    roofline = estimate.roofline
    if roofline is None:
        return math.inf
    return (roofline.seconds_overlapped + roofline.seconds_serial) / 2


def larger(keys: Candidate, other: Candidate) -> bool:
    """Whether `keys` need at least the memory of `other`.

    Each device has as many examples where `tensor` is the same: then less of the state is split,
    microbatches are larger, or less is recomputed.
    """
    order = list(REMAT)
    kinds = [key for key in keys if key.endswith(".remat")]
    return (
        keys["mesh.tensor"] == other["mesh.tensor"]
        and keys["mesh.fsdp"] <= other["mesh.fsdp"]
        and keys["accumulation"] <= other["accumulation"]
        and all(order.index(keys[key]) <= order.index(other[key]) for key in kinds)
    )


def _meshes(devices: int) -> Iterator[tuple[int, int, int]]:
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for fsdp, tensor in itertools.product(divisors, divisors):
        if devices % (fsdp * tensor) == 0 and tensor <= MOST_TENSOR:
            yield devices // (fsdp * tensor), fsdp, tensor


def _microbatches(batch: int, split: int) -> list[int]:
    counts = [2**i for i in range(20)]
    return [n for n in counts if batch % n == 0 and (batch // n) % split == 0]


def _seconds(
    keys: Candidate, size: Size, devices: int, roof: Roof, kind: str, config: ConfigDict
) -> float:
    """A guess at the time of a step, without compiling anything."""
    data, fsdp, tensor = (keys[f"mesh.{axis}"] for axis in ("data", "fsdp", "tensor"))
    item = 2 if config.precision == "bfloat16" else 4
    own = size.params / tensor
    gathered = (2 * item + 4) * own * (fsdp - 1) / fsdp * keys["accumulation"]
    summed = 2 * 4 * own / fsdp * (data - 1) / data

    def rate(group: int) -> float:
        if group <= roof.together:
            return roof.inside(group)
        return roof.across(group, -(-group // roof.together))

    computed = AGAIN.get(kind, 1.0) * size.flops / devices / roof.flops_per_second
    # Splitting activations costs more than it seems to: the exchange of each block waits for it.
    return computed * tensor**0.25 + gathered / rate(fsdp) + summed / rate(data)
