"""A plan in words and as JSON."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from genjax import config as configs
from genjax.planning.chips import Topology
from genjax.planning.estimate import Estimate
from genjax.planning.roofs import Roof
from genjax.planning.search import Found

GIB = 2**30
ESTIMATED = "estimates from the compiled program and the makers' peaks"


def report(
    config: ConfigDict,
    plan: Estimate,
    roof: Roof,
    topology: Topology | None,
    measured: float = 0.0,
    price: float = 0.0,
) -> str:
    """The plan as a table.

    Args:
      config: of the run.
      plan: of its step or sampler.
      roof: what a device can do.
      topology: the chips; None of devices that no figures are known of.
      measured: seconds of a step that were measured here; 0 if none were.
      price: of one chip for an hour; 0 if unknown.
    """
    rows = [*_what(config, plan, roof, topology), *_memory(plan), *_work(plan)]
    rows += _time(plan, measured) if plan.roofline else []
    rows += _speed(plan, topology, measured, price) if plan.roofline else []
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {value}".rstrip() for name, value in rows]
    return "\n".join([*lines, ""])


Rows = list[tuple[str, str]]


def _what(config: ConfigDict, plan: Estimate, roof: Roof, topology: Topology | None) -> Rows:
    devices = math.prod(plan.mesh.values())
    chips = f"{devices} {'devices' if devices > 1 else 'device'} here"
    if topology is not None:
        slices = f" x {topology.slices} slices" if topology.slices > 1 else ""
        chips = f"{topology.name}{slices}, {devices} devices"
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    if plan.what == "train":
        work = f"training step of {plan.examples:,} examples"
        work += f" in {config.accumulation} microbatches" * (config.accumulation > 1)
    else:
        work = f"{plan.examples:,} samples"
    work += f", {plan.tokens:,} tokens" * bool(plan.tokens)
    basis = "peaks measured here" if roof.measured else ESTIMATED
    return [
        ("program", f"{work}, {config.precision}"),
        ("devices", f"{chips}; mesh: {mesh}"),
        ("basis", f"{basis}; compiled in {plan.compile_seconds:.0f} s"),
    ]


def _memory(plan: Estimate) -> Rows:
    memory = plan.memory
    names = {
        "parameters": memory.params,
        "optimizer": memory.optimizer,
        "averages": memory.averages,
        "other state": memory.other,
        "batch": memory.batch,
        "activations and other temporaries": memory.temporaries,
    }
    rows = [("", ""), ("memory of a device", "")]
    rows += [(f"  {name}", gib(value)) for name, value in names.items() if value]
    peak = gib(memory.peak)
    if memory.capacity:
        peak += f" of {gib(memory.capacity)}, {memory.peak / memory.capacity:.0%}"
    return [*rows, ("  peak", peak), ("  fits", "yes" if plan.fits else "NO")]


def _work(plan: Estimate) -> Rows:
    counted = plan.flops
    again = f" ({counted.recomputed / counted.model:.1%} on top)" * bool(counted.recomputed)
    rows = [
        ("", ""),
        ("work", ""),
        ("  the model's FLOPs", f"{counted.model:.4g}"),
        ("  executed, with recomputation", f"{counted.total:.4g}{again}"),
    ]
    if counted.unknown_loops:
        rows.append(("  loops of unknown length", ", ".join(counted.unknown_loops)))
    if plan.roofline is None:
        return rows
    rows.append(("  bytes moved in a device's memory", gib(plan.hbm_bytes)))
    rows.append(("  sent by a device", gib(plan.collective_bytes)))
    kinds: dict[tuple[str, int, bool], list[float]] = defaultdict(lambda: [0, 0])
    for one in plan.collectives:
        kind = kinds[one.kind, one.group, one.crosses]
        kind[0] += one.count
        kind[1] += one.sent_bytes
    for (kind, group, crosses), (count, size) in sorted(kinds.items(), key=lambda k: -k[1][1]):
        where = "over the network" if crosses else "inside"
        named = f"    {count:,.0f} x {kind}"
        rows.append((named, f"{gib(size)} in groups of {group}, {where}"))
    if plan.least:
        ratio = plan.collective_bytes / plan.least_bytes
        rows.append(("  sent at least", f"{gib(plan.least_bytes)}; the program sends {ratio:.2f}x"))
        for needed in plan.least:
            rows.append((f"    {needed.kind} over {' x '.join(needed.axes)}", gib(needed.bytes)))
    return rows


def _time(plan: Estimate, measured: float) -> Rows:
    r = plan.roofline
    parts = {
        "compute": r.seconds_compute,
        "memory": r.seconds_hbm,
        "links": r.seconds_ici,
        "network": r.seconds_dcn,
    }
    rows = [("", ""), ("time", "")]
    rows += [(f"  {name}", duration(value)) for name, value in parts.items() if value]
    rows.append(("  all at once", f"{duration(r.seconds_overlapped)}, MFU {r.mfu_overlapped:.1%}"))
    rows.append(("  one after the other", f"{duration(r.seconds_serial)}, MFU {r.mfu_serial:.1%}"))
    rows.append(("  bound by", r.bound_by))
    if measured:
        rows.append(("  measured", duration(measured)))
    return rows


def _speed(plan: Estimate, topology: Topology | None, measured: float, price: float) -> Rows:
    r = plan.roofline
    slow, fast = (measured or r.seconds_serial), (measured or r.seconds_overlapped)
    unit = "examples" if plan.what == "train" else "samples"
    rows = [("", ""), (f"{unit} a second", span(plan.examples / slow, plan.examples / fast))]
    if plan.tokens:
        rows.append(("tokens a second", span(plan.tokens / slow, plan.tokens / fast)))
    if price:
        costs = [cost(plan, t, topology, price) for t in (fast, slow)]
        rows.append((f"cost of a million {unit}", span(*costs)))
    return rows


def cost(plan: Estimate, time: float, topology: Topology | None, price: float) -> float:
    """The price of a million examples, at `price` of one chip for an hour."""
    chips = topology.chips if topology else math.prod(plan.mesh.values())
    return 1e6 / plan.examples * time / 3600 * chips * price


def summary(
    plan: Estimate, topology: Topology | None, measured: float = 0.0, price: float = 0.0
) -> dict[str, Any]:
    """The plan as JSON; FLOPs are of all devices together, bytes and seconds of one."""
    r = plan.roofline
    found = {
        "fits": plan.fits,
        "hbm_peak_bytes": plan.memory.peak,
        "hbm_capacity_bytes": plan.memory.capacity,
        "flops": plan.flops.total,
        "model_flops": plan.flops.model,
        "hbm_bytes": plan.hbm_bytes if r else None,
        "collective_bytes": plan.collective_bytes if r else None,
        "least_collective_bytes": plan.least_bytes,
        **{name: getattr(r, name, None) for name in _TIMES},
        "compile_seconds": plan.compile_seconds,
        "what": plan.what,
        "topology": topology and topology.name,
        "slices": topology and topology.slices,
        "mesh": plan.mesh,
        "examples": plan.examples,
        "tokens": plan.tokens,
    }
    if measured:
        found["seconds_measured"] = measured
    if r and price:
        times = {"overlapped": r.seconds_overlapped, "serial": r.seconds_serial}
        for name, time in times.items():
            found[f"cost_of_million_{name}"] = cost(plan, time, topology, price)
    return found


_TIMES = (
    *("seconds_compute", "seconds_hbm", "seconds_ici", "seconds_dcn"),
    *("seconds_overlapped", "seconds_serial", "mfu_overlapped", "mfu_serial", "bound_by"),
)


def advice(config: ConfigDict, plan: Estimate) -> str:
    """By how much a run does not fit, and what to change."""
    memory = plan.memory
    state = memory.params + memory.optimizer + memory.averages + memory.other
    split = plan.mesh["data"] * plan.mesh["fsdp"]
    each = plan.examples // split // max(config.accumulation, 1)
    ideas = []
    if state > memory.capacity / 2 and plan.mesh["data"] > 1:
        ideas.append("--config.mesh.data=1 --config.mesh.fsdp=-1, which splits the state further")
    for key, value in configs.flatten(config).items():
        if key.endswith(".remat") and value != "full":
            stronger = "dots or full" if value == "none" else "full"
            ideas.append(f"--config.{key}={stronger}, which keeps less for the backward pass")
    if plan.what == "train" and each > 1:
        ideas.append(
            f"--config.accumulation={2 * config.accumulation}, for smaller microbatches than "
            f"{each} examples a device"
        )
    if plan.what == "sample":
        ideas.append("a smaller --num")
    ideas.append("more chips, or chips with more memory")
    over = max(memory.peak - memory.capacity, 0)
    lines = "\n".join(f"  - {idea}" for idea in ideas)
    return f"It does not fit, by {gib(over)} a device. Try:\n{lines}\n"


def ranking(config: ConfigDict, found: Sequence[Found]) -> str:
    """Candidates as a table, the best first."""
    changing = [key for key in found[0].keys if len({own.keys[key] for own in found}) > 1]
    changing = changing or list(found[0].keys)
    head = [*changing, "peak", "fits", "all at once", "in turn", "bound by"]
    rows = []
    for own in found:
        r = own.estimate.roofline
        times = (
            [duration(r.seconds_overlapped), duration(r.seconds_serial), r.bound_by] if r else []
        )
        memory = [gib(own.estimate.memory.peak), "yes" if own.estimate.fits else "NO"]
        values = [str(own.keys[key]) for key in changing]
        rows.append([*values, *memory, *(times or ["", "", ""])])
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(f"{text:{w}}" for text, w in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    best = " ".join(f"--config.{key}={value}" for key, value in found[0].keys.items())
    fixed = f"batch_size={config.batch_size}; {ESTIMATED}"
    verdict = "best" if found[0].estimate.fits else "none of these fits; the nearest"
    return "\n".join([*lines, "", f"({fixed})", f"{verdict}: {best}", ""])


def gib(size: float) -> str:
    """Bytes, in a unit that suits them."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size:.0f} B"


def duration(value: float) -> str:
    """Seconds, in a unit that suits them."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.2g} s"


def span(low: float, high: float) -> str:
    """Two numbers, or one if they are the same."""
    first, second = (f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}" for value in (low, high))
    return first if first == second else f"{first} to {second}"
