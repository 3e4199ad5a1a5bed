"""The text of a compiled program (HLO) as instructions and shapes."""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

# Bits of one number of a type; token and opaque have none.
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_LINE = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{")
# A kernel's configuration may go on over lines of its own, which begin with braces too.
_END = re.compile(r"\}(\s*//.*)?\s*")
_OPCODE = re.compile(r"([\w\-]+)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=?]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_BARE_NAME = re.compile(r"([A-Za-z_][\w.\-]*)$")


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      name: without its %.
      shape: of the result, as it stands there.
      opcode: what is done.
      operands: the names of the instructions whose results it takes.
      rest: its other attributes, as they stand there.
      root: whether its result is that of the computation.
      literal: what stands between the parentheses.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool
    literal: str


Body = dict[str, Instruction]
# Operations on one array that change how its numbers are written and not which they are.
VIEWS = {"bitcast", "convert", "copy", "reshape", "transpose"}


class Module(NamedTuple):
    """A program.

    Attributes:
      computations: by name, their instructions by name, in order.
      entry: the name of the one that the program is.
      devices: that it runs on.
      tpu: whether it is for TPUs, whose memory spaces but the first are no HBM.
    """

    computations: dict[str, Body]
    entry: str
    devices: int
    tpu: bool


def parse(text: str) -> Module:
    """Reads the text of an optimised program, as `compiled.as_text()` gives it.

    Raises:
      ValueError: there is no entry computation in it.
    """
    computations: dict[str, Body] = {}
    entry, now = "", None
    lines = text.splitlines()
    for line in lines:
        if now is None:
            header = _HEADER.fullmatch(line.strip()) if line.endswith("{") else None
            if header is not None and not line.startswith("HloModule"):
                now = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif _END.fullmatch(line):
            now = None
        elif (match := _LINE.match(line)) is not None:
            instruction = _instruction(*match.groups())
            now[instruction.name] = instruction
    if not entry:
        first = lines[0][:80] if lines else ""
        raise ValueError(f"no ENTRY computation in a program that begins with {first!r}")
    head = lines[0]
    devices = math.prod(int(n) for n in re.findall(r"(?:num_partitions|replica_count)=(\d+)", head))
    return Module(computations, entry, devices, ":T(" in text)


def _instruction(root: str | None, name: str, line: str) -> Instruction:
    end = _closing(line, 0) + 1 if line.startswith("(") else line.index(" ")
    shape = line[:end]
    match = _OPCODE.match(line, end + 1)
    if match is None:
        raise ValueError(f"an instruction of unknown form: {name} = {line[:120]!r}")
    last = _closing(line, match.end() - 1)
    inner, opcode = line[match.end() : last], match[1]
    operands: tuple[str, ...] = ()
    if opcode not in ("parameter", "constant", "iota"):
        operands = tuple(_NAME.findall(inner)) or _bare(inner)
    return Instruction(name, shape, opcode, operands, line[last + 1 :], bool(root), inner)


def _closing(line: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth, at = 0, start
    while True:
        closing = line.find(")", at)
        if closing < 0:
            raise ValueError(f"a parenthesis that does not close: {line[:120]!r}")
        depth += line.count("(", at, closing) - 1
        if depth == 0:
            return closing
        at = closing + 1


def _bare(text: str) -> tuple[str, ...]:
    """Names that are written without %, behind their shapes or alone."""
    text = re.sub(r"/\*.*?\*/|\{[^}]*\}|\[[^\]]*\]", "", text)
    names = (_BARE_NAME.search(part.strip()) for part in text.split(","))
    return tuple(match[1] for match in names if match is not None)


# ---- Shapes


@functools.cache
def arrays(shape: str) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """The arrays of a shape, which may be a tuple of any depth: type, sizes and layout."""
    return tuple(
        (match[1], tuple(int(n) for n in re.findall(r"\d+", match[2])), match[3] or "")
        for match in _ARRAY.finditer(shape)
    )


@functools.cache
def elements(shape: str) -> tuple[str, ...]:
    """The parts of a tuple; of an array itself."""
    if not shape.startswith("("):
        return (shape,)
    parts, depth, start = [], 0, 1
    for i, letter in enumerate(shape):
        depth += letter in "({["
        depth -= letter in ")}]"
        if (letter == "," and depth == 1) or i == len(shape) - 1:
            parts.append(re.sub(r"/\*.*?\*/", "", shape[start:i]).strip())
            start = i + 1
    return tuple(part for part in parts if part)


def sizes(shape: str) -> tuple[int, ...]:
    """The sizes of an array."""
    return arrays(shape)[0][1]


@functools.cache
def bytes_of(shape: str) -> float:
    """The bytes of the numbers of a shape, wherever they lie."""
    return sum(_bits(kind) * math.prod(size) for kind, size, _ in arrays(shape)) / 8


@functools.cache
def hbm_bytes_of(shape: str, tpu: bool) -> float:
    """The bytes that a shape takes in the device's main memory, filled tiles counted.

    A TPU's memory spaces other than the first are on the chip, or of the host; of a GPU only the
    fifth is, the host's.
    """
    total = 0.0
    for kind, size, layout in arrays(shape):
        space = re.search(r"S\((\d+)\)", layout)
        if space is None or not (tpu or space[1] == "5"):
            total += _bits(kind) * math.prod(_padded(size, layout)) / 8
    return total


def _padded(size: tuple[int, ...], layout: str) -> list[int]:
    """Sizes, rounded up to whole tiles along the axes that lie innermost."""
    order, _, tiling = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiling)
    padded = list(size)
    if tile is not None and size:
        inner = [int(n) for n in order.split(",")]  # the innermost axis first
        for axis, n in zip(inner, reversed(tile[1].split(",")), strict=False):
            padded[axis] = -(-padded[axis] // int(n)) * int(n)
    return padded


@functools.cache
def _bits(kind: str) -> int:
    known = _BITS.get(kind)
    if known is not None:
        return known
    digits = re.search(r"\d+", kind)  # f32, bf16, u8, c64, s4, f8e4m3fn
    if digits is None:
        raise ValueError(f"the size of a number of type {kind!r} is unknown")
    return int(digits[0])


# ---- Attributes


def root(body: Body) -> Instruction:
    """The instruction whose result is that of a computation."""
    return next(i for i in reversed(body.values()) if i.root)


def called(instruction: Instruction, *attributes: str) -> list[str]:
    """The computations that an instruction names under these attributes."""
    names = []
    for attribute in attributes:
        match = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", instruction.rest)
        if match is not None:
            names += _NAME.findall(match[1]) or match[1].split(", ") if match[1] else [match[2]]
    return names


def number(rest: str, attribute: str, default: int) -> int:
    """The number that stands under an attribute."""
    match = re.search(rf"\b{attribute}=(\d+)", rest)
    return default if match is None else int(match[1])


def numbers(rest: str, attribute: str) -> list[int]:
    """The numbers in braces that stand under an attribute."""
    match = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", rest)
    return [] if match is None else [int(n) for n in match[1].split(",") if n]


def scope(instruction: Instruction) -> str:
    """Where an operation comes from, as JAX names it; "" if that is not known."""
    match = re.search(r'op_name="([^"]*)"', instruction.rest)
    return match[1] if match else ""


def target(instruction: Instruction) -> str:
    """What a custom call calls; "" of other instructions."""
    match = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
    return match[1] if match else ""
