"""Drawing any number of samples from a method, in batches."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Int

from genjax.config import ConfigError, nearest
from genjax.method import Method
from genjax.train_state import stream
from genjax.training.assemble import Assembly

Tree = Any
BATCH = 64  # samples drawn at a time
MOST_SAMPLES = 2**20  # of one command


def parse_options(method: Method, given: Mapping[str, str]) -> dict[str, Any]:
    """The keyword options of `method.sample` that the command line gives, as Python values.

    Options that are functions cannot be given there.

    `condition` is one value for all samples, or a tuple that is repeated in turn.

    Raises:
      ConfigError: an option that the method does not have.
    """
    parameters = inspect.signature(method.sample).parameters.values()
    plain = [p for p in parameters if "Callable" not in str(p.annotation)]
    known = ["condition", *(p.name for p in plain if p.kind is p.KEYWORD_ONLY)]
    options = {}
    for name, text in given.items():
        if name not in known:
            raise ConfigError(
                f"--{name}={text}: the method has no such sampling option. "
                f"Nearest: {nearest(name, known)}."
            )
        try:
            options[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[name] = text
    return options


def make_draw(
    run: Assembly, num: int, options: Mapping[str, Any]
) -> Callable[[Tree, Tree, jax.Array], np.ndarray]:
    """The function (params, mutable, key) -> `num` samples, on the host of every process.

    It is compiled at its first call. Batches of `BATCH` are drawn with the key folded with their
    index, so that the first samples do not depend on how many follow.

    Args:
      run: what to draw from.
      num: how many samples.
      options: keywords of `method.sample`; `condition` is one value for all samples, or a tuple
        or an array of several that are taken in turn.

    Raises:
      ConfigError: a condition that is no class; at the first call, an option has a value that
        the method cannot follow.
    """
    options = dict(options)
    condition = options.pop("condition", None)
    size = min(num, BATCH)
    batches = -(-num // size)
    if condition is not None:
        values = condition if isinstance(condition, tuple | np.ndarray) else (condition,)
        classes = run.spec.num_classes
        if not classes and not isinstance(condition, np.ndarray):
            raise ConfigError(
                f"--condition={condition!r}: expected none, the data have no classes."
            )
        if classes and not all(isinstance(v, int) and 0 <= v < classes for v in values):
            raise ConfigError(
                f"--condition={condition!r}: expected classes from 0 to {classes - 1}, one or a "
                "tuple."
            )
        in_turn = np.asarray(values)[np.arange(batches * size) % len(values)]
        condition = in_turn.reshape(batches, size, *in_turn.shape[1:])

    def batch(params: Tree, mutable: Tree, key: jax.Array, condition: jax.Array | None):
        return run.method.sample(params, mutable, key, size, condition, **options)

    jitted = jax.jit(batch, out_shardings=NamedSharding(run.mesh, PartitionSpec()))

    def draw(params: Tree, mutable: Tree, key: jax.Array) -> np.ndarray:
        key = stream(key, "sample")
        with jax.set_mesh(run.mesh):
            drawn = [
                np.asarray(
                    jitted(
                        *(params, mutable, jax.random.fold_in(key, i)),
                        None if condition is None else condition[i],
                    )
                )
                for i in range(batches)
            ]
        return np.concatenate(drawn)[:num]

    return draw


def draw_from_prompts(
    run: Assembly,
    prompts: Sequence[Int[np.ndarray, "P"]],
    num: int,
    options: Mapping[str, Any],
    params: Tree,
    mutable: Tree,
    key: jax.Array,
) -> Int[np.ndarray, "N S"]:
    """`num` texts that go on from the prompts in turn, each as from its prompt alone.

    Padding would take positions from shorter prompts: those of one length are drawn together, and
    a program is compiled for each length, the longest first, so that one that is too long is told
    of ahead of all work. Those of the longest are drawn with `key`, those of the n-th length after
    it with the key folded with n.

    Args:
      run: what to draw from.
      prompts: tokens of each, at least one.
      num: how many texts.
      options: keywords of `method.sample`.
      params: of the method.
      mutable: of the method.
      key: draws.

    Returns:
      Tokens, -1 where nothing is and behind shorter texts.
    """
    given = [prompts[i % len(prompts)] for i in range(num)]
    texts = {}
    for n, length in enumerate(sorted(set(map(len, given)), reverse=True)):
        rows = [i for i in range(num) if len(given[i]) == length]
        alike = {**options, "condition": np.stack([given[i] for i in rows])}
        draw = make_draw(run, len(rows), alike)
        drawn = draw(params, mutable, jax.random.fold_in(key, n) if n else key)
        texts |= dict(zip(rows, drawn, strict=True))
    width = max(map(len, texts.values()))
    padded = [np.pad(texts[i], (0, width - len(texts[i])), constant_values=-1) for i in range(num)]
    return np.stack(padded)
