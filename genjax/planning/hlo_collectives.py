"""Where the devices of a compiled program (HLO) exchange arrays, and how much each sends."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from genjax.planning import hlo_text as text_of
from genjax.planning.hlo_text import VIEWS, Body, Instruction, bytes_of

# Of several slices of TPUs each has a program of its own, whose devices count from 0 on. What
# they exchange is sent and received by this runtime; all other collectives stay inside a slice.
MEGASCALE = "xla_megascale_runtime"
# A TPU's collective that goes on while others compute: one fusion begins it and one ends it, and
# those between have it beside their own work. It stands in all of them and counts in the first.
BEGIN, END = "AsyncCollectiveStart", "AsyncCollectiveDone"


class Collective(NamedTuple):
    """One place of a program where devices exchange an array.

    Attributes:
      kind: "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute",
        "collective-broadcast" or "ragged-all-to-all".
      name: of the instruction.
      scope: where the operation comes from, as JAX names it.
      count: how often it runs in one run of the program.
      group: devices that take part, of each of the groups that do so at the same time.
      islands: the slices that a group spans: 1 inside a slice.
      array_bytes: of the whole array, which an all-gather makes and a reduce-scatter takes.
      sent_bytes: that a device sends, all runs together, by a ring: the array but its own n-th for
        an all-gather and a reduce-scatter, twice that for an all-reduce.
    """

    kind: str
    name: str
    scope: str
    count: int
    group: int
    islands: int
    array_bytes: float
    sent_bytes: float

    @property
    def crosses(self) -> bool:
        """Whether it goes over the network between slices (DCN)."""
        return self.islands > 1


def between_slices(i: Instruction, body: Body) -> Collective | None:
    """What a device sends to those at its place in other slices."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.rest)
    target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', i.rest)
    if kind is None or target is None:
        raise ValueError(f"a transfer between slices of unknown form: {i.rest[:200]!r}")
    name, size = kind[1].lower().replace("_", "-"), 0
    for part in target[1].split(","):
        first, _, last = part.partition(":")
        size += int(last or first) - int(first) + 1
    return exchanged(name, i, bytes_of(body[i.operands[0]].shape), size, size)


def exchanged(
    kind: str, i: Instruction, operand: float, size: int, islands: int
) -> Collective | None:
    """A collective of one run; None of a group of one device.

    Args:
      kind: see `Collective`.
      i: where it stands.
      operand: bytes that a device gives.
      size: devices of a group.
      islands: slices that it spans.
    """
    if size < 2:
        return None
    whole = operand * size if kind == "all-gather" else operand
    sent = _SHARES[kind](size) * whole
    return Collective(kind, i.name, text_of.scope(i), 1, size, islands, whole, sent)


# Of n devices: the part of the whole array that each one sends.
_SHARES: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
    "collective-broadcast": lambda n: 1.0,
}


def kind_of(i: Instruction) -> str | None:
    """The kind of a collective; None of other instructions."""
    kind = i.opcode.removesuffix("-start")
    return kind if kind in _SHARES else None


def goes_on(i: Instruction, body: Body) -> bool:
    """Whether it is a collective that another fusion began."""
    if kind_of(i) is None or "async_collective_fusion_config" not in i.rest:
        return False
    return not any(text_of.target(user) == BEGIN for user in body.values())


def in_fusion(kind: str, i: Instruction, body: Body) -> str:
    """The kind of a collective inside a fusion.

    An all-reduce of which only a slice goes on is a reduce-scatter: on TPUs it is written so.
    """
    if kind != "all-reduce":
        return kind
    name = i.name
    while True:
        users = [user for user in body.values() if name in user.operands]
        if len(users) != 1 or users[0].opcode not in (*VIEWS, "dynamic-slice"):
            return kind
        if users[0].opcode == "dynamic-slice":
            return "reduce-scatter"
        name = users[0].name
