"""Our parameters as tensors of files: which tensors each is made of, and whether they are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from genjax.config import ConfigError
from genjax.interop.architecture import Architecture, Description
from genjax.networks.transformer import BIASES
from genjax.nn.heads import grouped, side_by_side

STACKED = "body/blocks/"  # parameters of all layers, stacked
ROWS = 8  # most rows per kind of fault in a table of names


class Leaf(NamedTuple):
    """One of our parameters, and their tensors that are concatenated in it, for every layer.

    Attributes:
      path: of our parameter.
      names: of their tensors.
      shapes: of their tensors as [in, out], without the layer axis.
      turned: whether their tensors are [out, in].
      kv_heads: if above 0, our columns are grouped by this many key heads (`nn.heads.grouped`).
      queries: the number of query columns, if they are; 0 if theirs are grouped as well.
    """

    path: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    turned: bool = False
    kv_heads: int = 0
    queries: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of our parameter, without the layer axis."""
        *lead, columns = self._concatenated
        return (
            (*lead, self.kv_heads, columns // self.kv_heads) if self.kv_heads else (*lead, columns)
        )

    @property
    def _concatenated(self) -> tuple[int, ...]:
        return (*self.shapes[0][:-1], sum(shape[-1] for shape in self.shapes))

    def expected(self, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the tensors in their file."""
        for name, shape in zip(self.names, self.shapes, strict=True):
            for layer in range(depth if "{}" in name else 1):
                yield name.format(layer), shape[::-1] if self.turned else shape

    def join(self, tensors: Mapping[str, np.ndarray], depth: int) -> np.ndarray:
        """Our parameter, in float32, from their tensors."""
        stacked = self.path.startswith(STACKED)
        stack = np.zeros((depth if stacked else 1, *self.shape), np.float32)
        for layer, ours in enumerate(stack):
            layer_array, start = np.zeros(self._concatenated, np.float32), 0
            for name in self.names:
                array = tensors[name.format(layer)]
                array = array.T if self.turned else array
                layer_array[..., start : start + array.shape[-1]] = array
                start += array.shape[-1]
            if self.queries:
                layer_array = grouped(layer_array, self.kv_heads, self.queries)
            ours[...] = layer_array.reshape(self.shape)
        return stack if stacked else stack[0]

    def split(self, ours: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Names and tensors for their file; views of our parameter if it is not grouped."""
        layers = ours if self.path.startswith(STACKED) else ours[None]
        for layer, layer_array in enumerate(layers):
            start = 0
            if self.queries:
                layer_array = side_by_side(layer_array, self.queries)
            layer_array = layer_array.reshape(self._concatenated)
            for name, shape in zip(self.names, self.shapes, strict=True):
                array = layer_array[..., start : start + shape[-1]]
                yield name.format(layer), array.T if self.turned else array
                start += shape[-1]


def leaves(model: Description, architecture: Architecture) -> Iterator[Leaf]:
    """All parameters of the network that `model`, with complete options, describes."""
    o, width = model.options, model.options["width"]
    queries, keys = o["heads"] * o["head_size"], o["kv_heads"] * o["head_size"]
    sizes = {
        "qkv": (width, (queries, keys, keys)),
        "merge": (queries, (width,)),
        "up": (width, (o["hidden"],)),
        "gate": (width, (o["hidden"],)),
        "down": (o["hidden"], (width,)),
    }
    norms = dict.fromkeys(("norm1", "norm2", "norm"), width)
    norms |= dict.fromkeys(("query_norm", "key_norm"), o["head_size"])
    for path, names in architecture.modules.items():
        last = path.rsplit("/", 1)[-1]
        weights = tuple(f"{name}.weight" for name in names)
        biases = tuple(f"{name}.bias" for name in names)
        if last == "embed":
            yield Leaf(f"{path}/embedding", weights, ((model.vocabulary_size, width),))
        elif last == "positions":
            yield Leaf(path, weights, ((model.length, width),))
        elif last == "head":
            if not o["tied"]:
                yield Leaf(f"{path}/kernel", weights, ((width, model.vocabulary_size),), True)
            if o["head_bias"]:
                yield Leaf(f"{path}/bias", biases, ((model.vocabulary_size,),))
        elif last in norms:
            yield Leaf(f"{path}/scale", weights, ((norms[last],),))
            if o["norm"] == "layer" and o["bias"]:
                yield Leaf(f"{path}/bias", biases, ((norms[last],),))
        elif last in sizes:
            inner, outer = sizes[last]
            outer = outer if len(names) == len(outer) else (sum(outer),)
            by_head = ()
            if last == "qkv":
                by_head = (o["kv_heads"], 0 if architecture.by_head else queries)
            shapes = tuple((inner, n) for n in outer)
            yield Leaf(f"{path}/kernel", weights, shapes, architecture.turned, *by_head)
            if o["bias"] and last in BIASES[o["bias_of"]]:
                shapes = tuple((n,) for n in outer)
                yield Leaf(f"{path}/bias", biases, shapes, False, *by_head)


def match(heading: str, expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, Any]) -> None:
    """Raises ConfigError with a table of missing, unexpected and mismatched arrays."""
    common = [name for name in actual if name in expected]
    faults = {
        "missing": [f"{name}  {list(expected[name])}" for name in expected if name not in actual],
        "unexpected": [f"{n:.99}  {list(a.shape)}" for n, a in actual.items() if n not in expected],
        "mismatched": [
            f"{name}  {actual[name].dtype}{list(actual[name].shape)}, "
            f"expected {list(expected[name])}"
            for name in common
            if actual[name].shape != expected[name]
            or not jnp.issubdtype(actual[name].dtype, jnp.floating)
        ],
    }
    lines = []
    for fault, rows in faults.items():
        lines += [f"  {fault:12}{row}" for row in sorted(rows)[:ROWS]]
        lines += [f"  {fault:12}and {len(rows) - ROWS} more"] if len(rows) > ROWS else []
    if lines:
        counts = ", ".join(f"{len(rows)} {fault}" for fault, rows in faults.items())
        raise ConfigError("\n".join([f"{heading} ({counts}):", *lines]))
