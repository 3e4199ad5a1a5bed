"""Draws pixel art in NumPy: SVG paths on a small grid, as JSON.

It reads the style definitions of DiceBear (https://www.dicebear.com) as far as the style
"pixel-art" needs them: paths of the commands M, L, H, V and Z; groups, one mask each; one
translation or matrix each; plain and evenodd fills with an opacity. Nothing is antialiased, as the
style asks by `shape-rendering="crispEdges"`: a pixel belongs to a path if its centre does.

A layer is [S, S, 4]: red, green, blue and opacity in [0, 1], the colours not multiplied by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

Layer = Float64[np.ndarray, "*B S S 4"]
Matrix = Float64[np.ndarray, "2 3"]  # [[a, c, e], [b, d, f]] of SVG's matrix(a b c d e f)

SIDE = 16  # of the grid
IDENTITY = np.eye(2, 3)

_PARTS = re.compile(r"[A-Za-z]|[-+]?(?:\d+\.?\d*|\.\d+)")
_TAKES = {"M": 2, "L": 2, "H": 1, "V": 1, "Z": 0}  # command -> how many numbers follow
_NAMED = {"white": "#ffffff", "black": "#000000"}


def polygons(path: str) -> list[Float64[np.ndarray, "N 2"]]:
    """The corners (x, y) of each polygon of an SVG path, given by its `d`.

    Raises:
      ValueError: a command other than M, L, H, V and Z, in either case.
    """
    parts, made, corners = _PARTS.findall(path), [], []
    command, at, x, y = "", 0, 0.0, 0.0
    while at < len(parts):
        if parts[at].isalpha():
            command, at = parts[at], at + 1
        kind = command.upper()
        if kind not in _TAKES:
            raise ValueError(
                f"the command {command!r} in the path {path!r}: expected M, L, H, V, Z"
            )
        values = [float(value) for value in parts[at : at + _TAKES[kind]]]
        at += len(values)
        if kind == "Z":
            (x, y), command = corners[0], ""
            continue
        left, top = (x, y) if command.islower() else (0.0, 0.0)
        x = x if kind == "V" else left + values[0]
        y = y if kind == "H" else top + values[-1]
        if kind == "M":
            corners = []
            made.append(corners)
            command = "l" if command == "m" else "L"  # of further pairs of numbers
        corners.append((x, y))
    return [np.asarray(corners) for corners in made]


def covered(path: str, matrix: Matrix = IDENTITY, evenodd: bool = False) -> Bool[np.ndarray, "S S"]:
    """The pixels whose centres lie inside a path, by its winding number.

    Args:
      path: the `d` of an SVG path.
      matrix: takes the path to the grid.
      evenodd: inside is where the winding number is odd, instead of where it is not zero.
    """
    centres = np.arange(SIDE) + 0.5
    winding = np.zeros((SIDE, SIDE), np.int64)
    for polygon in polygons(path):
        corners = polygon @ matrix[:, :2].T + matrix[:, 2]
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
            if y0 == y1:
                continue
            rows = (centres >= min(y0, y1)) & (centres < max(y0, y1))
            edge = x0 + (centres - y0) * (x1 - x0) / (y1 - y0)  # where it crosses each row
            winding += (1 if y1 > y0 else -1) * (rows[:, None] & (edge[:, None] < centres))
    return winding % 2 == 1 if evenodd else winding != 0


def over(top: Layer, bottom: Layer) -> Layer:
    """`top` laid over `bottom` (Porter and Duff 1984, "Compositing Digital Images", section 4)."""
    above, below = top[..., 3:], bottom[..., 3:] * (1 - top[..., 3:])
    opacity = above + below
    colour = (top[..., :3] * above + bottom[..., :3] * below) / np.where(opacity > 0, opacity, 1)
    return np.concatenate([colour, opacity], -1)


def draw(
    elements: Sequence[Mapping[str, Any]],
    colors: Mapping[str, str],
    matrix: Matrix = IDENTITY,
    fill: Any = "black",
) -> Float64[np.ndarray, "S S 4"]:
    """The elements of a part of a style, each over those before it.

    A mask hides by its opacity. The style's own masks hide by luminance, and are drawn in the
    colour of the hair, so that in SVG a beard in dark hair's colour is all but invisible.

    Args:
      elements: as in the style's definition.
      colors: the name of each colour in the style -> "#rrggbb".
      matrix: takes them to the grid.
      fill: of paths that have none of their own.

    Raises:
      ValueError: an element, a command of a path or a transform that is not known.
    """
    layer, masks = np.zeros((SIDE, SIDE, 4)), {}
    for element in elements:
        given = element.get("attributes", {})
        own = within(matrix, given.get("transform"))
        paint = given.get("fill", fill)
        if element["name"] == "path":
            inside = covered(given["d"], own, given.get("fill-rule") == "evenodd")
            opacity = float(given.get("fill-opacity", 1)) * float(given.get("opacity", 1))
            colour = np.broadcast_to(_rgb(paint, colors), (SIDE, SIDE, 3))
            drawn = np.concatenate([colour, opacity * inside[..., None]], -1)
        elif element["name"] in ("g", "mask"):
            drawn = draw(element["children"], colors, own, paint)
        else:
            raise ValueError(f"the element {element['name']!r}: expected a path, a g or a mask")
        if element["name"] == "mask":
            masks[f"url(#{given['id']})"] = drawn[..., 3]
            continue
        if "mask" in given:
            drawn[..., 3] *= masks[given["mask"]]
        layer = over(drawn, layer)
    return layer


def _rgb(paint: Any, colors: Mapping[str, str]) -> Float64[np.ndarray, "3"]:
    named = paint if isinstance(paint, str) else colors[paint["name"]]
    return np.array([*bytes.fromhex(_NAMED.get(named, named).removeprefix("#"))]) / 255


def within(outer: Matrix, given: str | None) -> Matrix:
    """The matrix of an SVG `transform` inside another."""
    name, _, rest = (given or "translate(0)").partition("(")
    values = [float(value) for value in _PARTS.findall(rest)]
    if name == "translate" and len(values) in (1, 2):
        inner = np.array([[1, 0, values[0]], [0, 1, (*values, 0)[1]]])
    elif name == "matrix" and len(values) == 6:
        inner = np.asarray(values).reshape(3, 2).T
    else:
        raise ValueError(f"the transform {given!r}: expected one translate or matrix")
    return outer @ np.concatenate([inner, [[0, 0, 1]]])
