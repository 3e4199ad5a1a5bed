"""Drawing any number of samples from a method, in batches, over all devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genjax.bars import following
from genjax.checks import ConfigError, literal, nearest
from genjax.method import Method, options_of
from genjax.parallel.mesh import BATCH as OVER_DEVICES
from genjax.sampling.conditions import flags_of
from genjax.train_state import stream

Tree = Any
BATCH = 64  # samples drawn with one key
MOST_SAMPLES = 2**20  # of one command


def parse_options(method: Method, given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The sampling options given on the command line, as Python values.

    Options that are functions cannot be given there. `method.options` has parsers for some options.

    Raises:
      ConfigError: an option that the method does not have, or one that is given twice.
    """
    parameters = options_of(method).items()
    known = [name for name, p in parameters if "Callable" not in str(p.annotation)]
    options = {}
    for name, texts in given.items():
        if name not in known:
            near = nearest(name, [*flags_of(method.conditions), *known])
            hint = f"Nearest: {near}." if near else "It has none."
            raise ConfigError(
                f"--{name}={texts[0]}: this run has no such condition or sampling option. {hint}"
            )
        if len(texts) > 1:
            raise ConfigError(f"--{name} is given {len(texts)} times: give it once.")
        (text,) = texts
        if name in method.options:
            options[name] = method.options[name](text)
            continue
        try:
            options[name] = literal(text)
        except ValueError:
            options[name] = text
    return options


def planned(method: Method, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tree]]:
    """The keywords of `method.sample`: the static ones, and the trees of arrays, which are traced.

    Raises:
      ConfigError: the method does not support the value of an option.
    """
    keywords = method.plan(**options) if method.plan else options
    arrays = {}
    if method.plan:
        arrays = {
            name: value
            for name, value in keywords.items()
            if all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(value))
        }
    return {n: v for n, v in keywords.items() if n not in arrays}, arrays


class Drawing(NamedTuple):
    """How samples are drawn: `rounds` calls of one program.

    Attributes:
      program: the jitted function (params, mutable, key, index, condition, arrays) -> samples
        [at_once, size, ...] of the batches with these indices.
      arrays: of the options, see `planned`.
      size: samples in one batch.
      at_once: batches in one round.
      rounds: how many.
    """

    program: Callable[..., jax.Array]
    arrays: dict[str, Tree]
    size: int
    at_once: int
    rounds: int

    def index(self, number: int) -> np.ndarray:
        """The indices of the batches of a round."""
        return np.arange(number * self.at_once, (number + 1) * self.at_once)

    def in_rounds(self, values: np.ndarray) -> np.ndarray:
        """Rows taken in turn: [rounds, at_once, size, ...]."""
        shape = (self.rounds, self.at_once, self.size)
        turns = np.arange(math.prod(shape)) % len(values)
        return np.asarray(values)[turns].reshape(*shape, *np.shape(values)[1:])


def drawing(method: Method, mesh: Mesh, num: int, options: Mapping[str, Any]) -> Drawing:
    """How `num` samples are drawn; nothing is compiled yet.

    Each batch of `BATCH` is drawn with the key folded with its index, so that the first samples
    depend neither on how many follow nor on the devices.
    If there are at least as many batches as devices along data x fsdp, or several whose size those
    devices do not divide, one batch per device is drawn at once. Else batches are drawn one after
    the other, each spread over the devices if they divide its size.

    Raises:
      ConfigError: the method does not support the value of an option.
    """
    (fixed, arrays), split = planned(method, options or {}), mesh.shape["data"] * mesh.shape["fsdp"]
    size = min(num, BATCH)
    batches = -(-num // size)
    at_once = split if batches >= split or (batches > 1 and size % split) else 1
    rounds = -(-batches // at_once)

    spread = at_once > 1 or size % split == 0
    sharding = NamedSharding(mesh, OVER_DEVICES if spread else PartitionSpec())

    def batch(
        params: Tree,
        mutable: Tree,
        key: jax.Array,
        index: jax.Array,
        condition: Tree,
        arrays: Mapping[str, Tree],
    ):
        def sample(key: jax.Array, condition: Mapping[str, jax.Array]) -> jax.Array:
            return method.sample(params, mutable, key, size, condition, **fixed, **arrays)

        def place(tree: Tree) -> Tree:
            return jax.lax.with_sharding_constraint(tree, sharding) if spread else tree

        if at_once == 1:
            batch_key = jax.random.fold_in(key, index[0])
            return place(sample(batch_key, place({n: c[0] for n, c in condition.items()})))[None]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        return place(jax.vmap(sample)(place(keys), place(condition)))

    jitted = jax.jit(batch, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return Drawing(jitted, arrays, size, at_once, rounds)


def make_draw(
    method: Method,
    mesh: Mesh,
    num: int,
    condition: Mapping[str, np.ndarray] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., np.ndarray]:
    """The function (params, mutable, key) -> `num` samples, on the host of every process.

    It is compiled at its first call. It also takes the `arrays` of another plan of the same shapes
    (see `planned`) and other values of the same conditions, without another compilation.

    Args:
      method: the method to sample from.
      mesh: the devices.
      num: how many samples.
      condition: rows of each condition that is given, taken in turn.
      options: of the method: those of its `plan`, or keywords of its `sample`.

    Raises:
      ConfigError: the method does not support the value of an option; a method without a plan
        raises it at the first call.
    """
    made = drawing(method, mesh, num, options or {})

    def draw(
        params: Tree,
        mutable: Tree,
        key: jax.Array,
        arrays: Mapping[str, Tree] = made.arrays,
        condition: Mapping[str, np.ndarray] = condition or {},
    ) -> np.ndarray:
        rows = {name: made.in_rounds(values) for name, values in condition.items()}
        key = stream(key, "sample")
        with jax.set_mesh(mesh), following("sampling", num) as advance:
            drawn, count = [], made.at_once * made.size
            for i in range(made.rounds):
                conditions = {name: values[i] for name, values in rows.items()}
                samples = np.asarray(
                    made.program(params, mutable, key, made.index(i), conditions, arrays)
                )
                drawn.append(samples.reshape(-1, *samples.shape[2:]))
                advance(min(count, num - i * count))
        return np.concatenate(drawn)[:num]

    return draw


class Sampler:
    """Draws samples of one method, and keeps the programs that it has compiled.

    A call with other values of the same conditions, or with options that `Method.plan` makes arrays
    of (steps of one padded length, guidance), uses the program of the call before it.
    """

    def __init__(self, method: Method, mesh: Mesh):
        """Compiles nothing yet."""
        self.method, self.mesh = method, mesh
        self._programs: dict[Any, Callable[..., np.ndarray]] = {}

    def make(
        self, num: int, condition: Mapping[str, np.ndarray], options: Mapping[str, Any]
    ) -> Callable[..., np.ndarray]:
        """The function (params, mutable, key) -> `num` samples: see `make_draw`."""
        fixed, arrays = planned(self.method, options)
        shapes = jax.tree.map(lambda x: (np.shape(x), np.result_type(x).name), (arrays, condition))
        given_rows = {name: len(values) for name, values in condition.items()}
        key = (num, repr(sorted(fixed.items())), repr(shapes), repr(given_rows))
        if key not in self._programs:
            self._programs[key] = make_draw(self.method, self.mesh, num, condition, options)
        return partial(self._programs[key], arrays=arrays, condition=condition)


def draw_rows(
    sampler: Sampler,
    rows: Sequence[Mapping[str, np.ndarray]],
    num: int,
    options: Mapping[str, Any],
    params: Tree,
    mutable: Tree,
    key: jax.Array,
) -> np.ndarray:
    """`num` samples for rows of conditions in turn, which may be of different shapes.

    Rows are not padded, because padding could change samples. Rows of one shape are drawn together,
    and each shape has its own compiled program. The largest shape comes first, so that a row that
    is too long is reported before other work. Its rows are drawn with `key`, those of the n-th
    shape after it with the key folded with n.

    Args:
      sampler: of the method.
      rows: at least one: condition -> array.
      num: how many samples.
      options: keywords of `method.sample`.
      params: of the method.
      mutable: of the method.
      key: for the random draws.

    Returns:
      The samples; if their first axes differ, shorter ones are padded with -1.
    """
    repeated = [rows[i % len(rows)] for i in range(num)]
    shapes = [tuple(sorted((name, np.shape(v)) for name, v in row.items())) for row in repeated]
    samples: dict[int, np.ndarray] = {}
    for n, shape in enumerate(sorted(set(shapes), reverse=True)):
        indices = [i for i in range(num) if shapes[i] == shape]
        condition = {name: np.stack([repeated[i][name] for i in indices]) for name, _ in shape}
        draw = sampler.make(len(indices), condition, options)
        drawn = draw(params, mutable, jax.random.fold_in(key, n) if n else key)
        samples |= dict(zip(indices, drawn, strict=True))
    if len({sample.shape for sample in samples.values()}) == 1:
        return np.stack([samples[i] for i in range(num)])
    width = max(map(len, samples.values()))
    return np.stack(
        [
            np.pad(
                samples[i],
                ((0, width - len(samples[i])), *((0, 0),) * (samples[i].ndim - 1)),
                constant_values=-1,
            )
            for i in range(num)
        ]
    )
