"""Reads a trace of the devices (xprof): operations, their own times, where they come from.

A trace is an XSpace, a protocol buffer that xprof, TensorBoard and Perfetto show. It has a line of
events for each stream of an accelerator, or each thread that runs a CPU's operations. It also has
the compiled programs, which give the line of Python that each operation comes from.
"""

from __future__ import annotations

import math
import re
from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

SHOWN = 20  # operations in the table
PLACES = 10  # lines of Python in the table
CONTROL = ("while", "conditional", "call")  # their work is done by the operations inside
LIBRARIES = (
    "/site-packages/",
    "/dist-packages/",
    "/genjax/nn/",
)  # a layer's caller is shown


class Event(NamedTuple):
    """One run of an operation: times in nanoseconds.

    `done` is later than `end` if other threads continued the operation.
    """

    program: str
    name: str
    start: float
    end: float
    done: float


class Origin(NamedTuple):
    """Where an operation of a program comes from."""

    opcode: str
    traced: str  # the path of JAX transformations and primitives that it comes from
    source: str  # the line of Python, such as networks/unet.py:41 UNet.__call__


class Operation(NamedTuple):
    """All runs of one operation; `seconds` is the sum of their own times."""

    program: str
    name: str
    count: int
    seconds: float
    origin: Origin


class Profile(NamedTuple):
    """The contents of a trace.

    Attributes:
      seconds: from the first operation to the end of the last.
      idle: seconds of these in which nothing ran, averaged over the accelerators.
      operations: the longest first.
    """

    seconds: float
    idle: float
    operations: list[Operation]


def read(space: bytes) -> Profile:
    """Reads a trace: of the accelerators if there are any, else of the CPU's threads.

    Args:
      space: a serialised XSpace, as in a file *.xplane.pb.
    """
    planes = list(jax.profiler.ProfileData.from_serialized_xspace(space).planes)
    programs = origins(space)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    device_events = [
        [_device_events(line, programs) for line in _streams(plane)] for plane in devices
    ]
    device_events = [lines for lines in device_events if any(lines)]
    if not device_events:
        host = [plane for plane in planes if plane.name.startswith("/host:")]
        device_events = [_host_events([line for plane in host for line in plane.lines], programs)]
    return profile(device_events, programs)


def profile(
    devices: Sequence[Sequence[Sequence[Event]]], programs: Mapping[str, Mapping[str, Origin]]
) -> Profile:
    """Sums the operations in the lines of events of each device.

    Args:
      devices: the lines of events of each device.
      programs: program -> operation -> where it comes from.
    """
    every = [event for lines in devices for line in lines for event in line]
    if not every:
        return Profile(0.0, 0.0, [])
    counts, times = Counter(), Counter()
    for lines in devices:
        for line in lines:
            for event, own_time in zip(line, own_times(line), strict=True):
                counts[event.program, event.name] += 1
                times[event.program, event.name] += own_time
    whole = max(event.done for event in every) - min(event.start for event in every)
    busy = [covered([event for line in lines for event in line]) for lines in devices]
    named_origins = [origin for program in programs.values() for origin in program.items()]
    anywhere = dict(named_origins)  # for events that do not name their program
    operations = [
        Operation(
            *(program, name, counts[program, name], nanoseconds / 1e9),
            programs.get(program, anywhere).get(name, Origin("", "", "")),
        )
        for (program, name), nanoseconds in times.most_common()
    ]
    return Profile(whole / 1e9, (whole - sum(busy) / len(busy)) / 1e9, operations)


def own_times(line: Sequence[Event]) -> list[float]:
    """Returns the nanoseconds of each event of a line, without those of the events inside it.

    The time in which other threads continue an event after its end counts too.
    """
    own = [event.done - event.start for event in line]
    enclosing: list[int] = []
    for i in sorted(range(len(line)), key=lambda i: (line[i].start, -line[i].end)):
        while enclosing and line[enclosing[-1]].end <= line[i].start:
            enclosing.pop()
        if enclosing:
            own[enclosing[-1]] -= min(line[i].end, line[enclosing[-1]].end) - line[i].start
        enclosing.append(i)
    return own


def covered(events: Sequence[Event]) -> float:
    """Returns the nanoseconds in which at least one of the events runs."""
    total, until = 0.0, -math.inf
    for event in sorted(events, key=lambda event: event.start):
        total += max(0.0, event.done - max(event.start, until))
        until = max(until, event.done)
    return total


def table(found: Profile, shown: int = SHOWN) -> str:
    """Formats a profile: its total, the longest operations, the lines that they come from."""
    if not found.operations:
        return "no operation ran"
    total = sum(operation.seconds for operation in found.operations)
    several = len({operation.program for operation in found.operations[:shown]}) > 1
    lines = [
        f"{found.seconds * 1e3:,.1f} ms from the first operation to the last, "
        f"{found.idle * 1e3:,.1f} ms of it ({found.idle / found.seconds:.1%}) with none running",
        f"{'ms':>10} {'share':>6} {'count':>7}  operation, what it computes, where it is called",
    ]
    for operation in found.operations[:shown]:
        columns = [operation.program + ":" * bool(operation.program)] if several else []
        columns += [operation.name, operation.origin.traced, operation.origin.source]
        lines.append(
            f"{operation.seconds * 1e3:10,.2f} {operation.seconds / total:6.1%} "
            f"{operation.count:7,}  {'  '.join(filter(None, columns))}"
        )
    others = found.operations[shown:]
    if others:
        seconds = sum(operation.seconds for operation in others)
        count = sum(operation.count for operation in others)
        lines.append(
            f"{seconds * 1e3:10,.2f} {seconds / total:6.1%} {count:7,}  {len(others):,} others"
        )
    line_seconds: Counter[str] = Counter()
    for operation in found.operations:
        backward = "transpose(" in operation.origin.traced
        where = operation.origin.source or "no line of Python"
        line_seconds[where + ", backward" * backward] += operation.seconds
    lines.append(f"{'ms':>10} {'share':>6}  all operations of a line")
    lines += [
        f"{seconds * 1e3:10,.2f} {seconds / total:6.1%}  {where}"
        for where, seconds in line_seconds.most_common(PLACES)
    ]
    return "\n".join(lines)


def _streams(plane: Any) -> list[Any]:
    """Returns the lines of an accelerator with its operations: others group or repeat them."""
    lines = list(plane.lines)
    return [line for line in lines if line.name == "XLA Ops"] or [
        line for line in lines if line.name.startswith("Stream")
    ]


def _device_events(line: Any, programs: Mapping[str, Mapping[str, Origin]]) -> list[Event]:
    """Returns the operations of an accelerator's line.

    A CUDA graph's kernels have the whole graph for their operation (openxla/xprof#3070). They are
    told apart by their own names: XLA names a kernel after its operation, with "_" in place of "."
    and "-".
    """
    kernels = {re.sub("[.-]", "_", name): name for names in programs.values() for name in names}
    events = []
    for event in line.events:
        stats = dict(event.stats)
        program = str(stats.get("hlo_module", ""))
        name = str(stats.get("hlo_op", "")).rpartition("::")[2]  # the innermost of several
        known = programs.get(program, {})
        whole_graph = name not in known or known[name].opcode in CONTROL
        if not name or (known and whole_graph):
            # On TPUs an event's name is the whole instruction: %fusion.1 = f32[...] fusion(...)
            own_name = re.sub(r"^%?([^\s=]+) = .*", r"\1", event.name, flags=re.S)
            name = kernels.get(own_name, own_name)
        end = event.start_ns + event.duration_ns
        events.append(Event(program, name, event.start_ns, end, end))
    return events


def _host_events(lines: Sequence[Any], programs: Mapping[str, Any]) -> list[list[Event]]:
    """Returns the operations of threads; a thread pool may continue one that has returned.

    Such an operation is done when the thread that does its last part begins the next operation.
    The mark "end: ..." comes too late: it follows everything that this thread does next.
    """
    operations: list[list[tuple[float, float, Mapping[str, Any]]]] = []
    starts: list[list[float]] = []  # when each line's operations start
    tasks: list[list[float]] = []  # when each line starts tasks of the pool
    done: dict[Any, tuple[int, float]] = {}  # operation -> line and time of its mark
    for index, line in enumerate(lines):
        line_operations, line_tasks = [], []
        for event in line.events:
            if event.name.startswith("end: "):
                done[dict(event.stats).get("_c")] = index, event.start_ns
            elif event.name == "ThreadpoolListener::StartRegion":
                line_tasks.append(event.start_ns)
            elif "hlo_op" in (stats := dict(event.stats)):
                line_operations.append((event.start_ns, event.duration_ns, stats))
        operations.append(line_operations)
        starts.append(sorted(start for start, _, _ in line_operations))
        tasks.append(sorted(line_tasks))

    def finished(start: float, end: float, stats: Mapping[str, Any]) -> float:
        line, mark = done.get(stats.get("_p"), (0, end))
        if mark <= end:
            return end
        before = bisect(tasks[line], mark)
        since = max(start, tasks[line][before - 1] if before else start)
        following = bisect(starts[line], since)
        return max(end, min([mark, *starts[line][following : following + 1]]))

    def as_event(start: float, duration: float, stats: Mapping[str, Any]) -> Event:
        program, name, end = (
            str(stats.get("hlo_module", "")),
            str(stats["hlo_op"]),
            start + duration,
        )
        origin = programs.get(program, {}).get(name)
        computes = origin is not None and origin.opcode not in CONTROL
        return Event(program, name, start, end, finished(start, end, stats) if computes else end)

    return [
        [as_event(*event) for event in line_operations]
        for line_operations in operations
        if line_operations
    ]


# ---- the programs in a trace ---------------------------------------------------------------------


def origins(space: bytes) -> dict[str, dict[str, Origin]]:
    """Returns program -> operation -> where it comes from, for the programs in a trace."""
    by_program: dict[str, dict[str, Origin]] = {}
    for plane in _fields(space).get(1, []):  # XSpace.planes
        parts = _fields(plane)
        if parts.get(2) != [b"/host:metadata"]:  # XPlane.name
            continue
        for entry in parts.get(4, []):  # .event_metadata: a map, one entry a program
            for metadata in _fields(entry).get(2, []):
                for stat in _fields(metadata).get(5, []):  # XEventMetadata.stats
                    for proto in _fields(stat).get(6, []):  # XStat.bytes_value: an HloProto
                        for module in _fields(proto).get(1, []):
                            parsed = _module(module)
                            by_program.setdefault(parsed[0], {}).update(parsed[1])
    return by_program


def _module(module: bytes) -> tuple[str, dict[str, Origin]]:
    """Returns an HloModuleProto's name and its operations."""
    parts = _fields(module)
    frames = _fields(parts[17][0]) if 17 in parts else {}  # .stack_frame_index
    files, functions = ([text.decode() for text in frames.get(n, [])] for n in (1, 2))
    locations, stack = ([_fields(entry) for entry in frames.get(n, [])] for n in (3, 4))

    def source(frame: int) -> str:
        """The innermost line outside libraries and genjax/nn, else the innermost line."""
        inner = ""
        while 0 < frame <= len(stack):
            location = locations[_first(stack[frame - 1], 1) - 1]
            file, function = (
                names[_first(location, n) - 1] for names, n in ((files, 1), (functions, 2))
            )
            line = f"{_short(file)}:{_first(location, 3)} {function.replace('<locals>.', '')}"
            if not any(part in file for part in LIBRARIES):
                return line
            inner = inner or line
            parent = _first(stack[frame - 1], 2)
            frame = parent if parent != frame else 0
        return inner

    by_name = {}
    for computation in parts.get(3, []):
        for instruction in _fields(computation).get(2, []):
            fields = _fields(instruction)
            metadata = _fields(fields[7][0]) if 7 in fields else {}
            path = metadata.get(2, [b""])[0].decode()
            traced = re.sub(r"^jit\([^)]*\)/", "", path)
            origin = Origin(fields[2][0].decode(), traced, source(_first(metadata, 15)))
            by_name[fields[1][0].decode()] = origin
    return parts[1][0].decode(), by_name


def _short(file: str) -> str:
    """Returns a path relative to genjax's folder, or its last two parts."""
    return file.rpartition("/genjax/")[2] if "/genjax/" in file else "/".join(file.split("/")[-2:])


def _first(message: Mapping[int, list], number: int) -> int:
    return message[number][0] if number in message else 0


def _fields(message: bytes) -> dict[int, list]:
    """Parses a protocol buffer: field number -> its values, integers or bytes."""
    fields: dict[int, list] = {}
    position = 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        tag = number()
        if tag & 7 == 0:
            value = number()
        else:
            size = {1: 8, 5: 4}.get(tag & 7) or number()
            value = message[position : position + size]
            position += size
        fields.setdefault(tag >> 3, []).append(value)
    return fields
