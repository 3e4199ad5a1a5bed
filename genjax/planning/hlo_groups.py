"""Which devices of a compiled program (HLO) exchange arrays with each other."""

from __future__ import annotations

import functools
import itertools
import math
import re

import numpy as np


def replicas(rest: str) -> str:
    """What says which devices a collective joins: the value of one of two attributes."""
    match = re.search(r"\b(?:replica_groups|source_target_pairs)=", rest)
    if match is None:
        return "{}"
    depth, start = 0, match.end()
    for at in range(start, len(rest)):
        depth += rest[at] in "{[("
        depth -= rest[at] in "}])"
        if rest[at] == "," and depth == 0 and not rest.startswith(", device_ids", at):
            return rest[start:at]
    return rest[start:]


@functools.cache
def groups(text: str, devices: int) -> np.ndarray:
    """The devices of each group [G, n] of a collective, by what stands behind `replica_groups=`.

    Forms: `{{0,1},{2,3}}`; `{}` for one group of all; `[G,n]<=[a,b]T(1,0)`, numbers counted in the
    order of a transposed array; and `mesh['a'=2,'b'=4] {'b'}`, axes of a mesh.

    Raises:
      ValueError: another form, or groups of different sizes.
    """
    if text.startswith("{{"):
        listed = [[int(n) for n in part.split(",")] for part in re.findall(r"\{([\d, ]+)\}", text)]
        if len({len(group) for group in listed}) != 1:
            raise ValueError(f"replica_groups={text[:80]}: groups of different sizes")
        return np.array(listed)
    if text.startswith("{}"):
        return np.arange(devices)[None]
    if text.startswith("["):
        match = re.match(r"\[(\d+),\d+\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text)
        if match is not None:
            return _iota(match[2]).reshape(int(match[1]), -1)
    if text.startswith("mesh["):
        return _of_mesh(text)
    raise ValueError(f"replica_groups={text[:80]}: a form that is not known")


def _iota(text: str) -> np.ndarray:
    """`[4,2]T(1,0)`: 0 to 7 as an array of 4 x 2, transposed."""
    shape, _, order = text.partition("T")
    array = np.arange(math.prod(n := [int(i) for i in re.findall(r"\d+", shape)])).reshape(n)
    return array.transpose([int(i) for i in re.findall(r"\d+", order)]) if order else array


def _of_mesh(text: str) -> np.ndarray:
    """Groups along axes of a mesh: `'a'`, or `'a':(2)4` for a part, 4 behind the first 2."""
    match = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text)
    if match is None:
        raise ValueError(f"replica_groups={text[:80]}: a form that is not known")
    axes = {name: int(n) for name, n in re.findall(r"'([^']*)'=(\d+)", match[1])}
    ids = np.arange(math.prod(axes.values()))
    if match[2]:
        listed = re.fullmatch(r"[\d,]+", match[2])
        ids = np.array([int(n) for n in match[2].split(",")]) if listed else _iota(match[2]).ravel()
    parts = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", match[3])
    shape, inside = [], []
    for name, size in axes.items():
        spans = [
            (int(a or 1), int(a or 1) * int(n or size)) for axis, a, n in parts if axis == name
        ]
        cuts = sorted({1, size, *(cut for pair in spans for cut in pair)})
        for low, high in itertools.pairwise(cuts):
            shape.append(high // low)
            inside.append(any(first <= low and high <= last for first, last in spans))
    order = sorted(range(len(shape)), key=lambda i: inside[i])
    size = math.prod(n for n, within in zip(shape, inside, strict=True) if within)
    return ids.reshape(shape).transpose(order).reshape(-1, size)
