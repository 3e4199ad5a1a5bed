"""The adapter to Flax: turns a module builder into two pure functions over nested dicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from flax import nnx

Tree = Any


class Functional(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: key -> (params, mutable), nested dicts of arrays.
      apply: (params, mutable, *args, key=None, train=False, **named) -> (out, mutable). `key` is
        for dropout and other draws; `train` selects training or inference behaviour.
    """

    init: Callable[[jax.Array], tuple[Tree, Tree]]
    apply: Callable[..., tuple[Any, Tree]]


@dataclass(frozen=True)
class Bound:
    """A function with its first arguments; two with the same function and arguments are equal.

    As a static argument of `jax.jit` equal ones share a compilation, whereas each new closure or
    `functools.partial` would be compiled again.

    Attributes:
      function: the function to call; defined in a module, not within another function.
      first: its first arguments, hashable.
    """

    function: Callable[..., Any]
    first: tuple[Any, ...]

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Calls the function with its first arguments and these."""
        return self.function(*self.first, *args, **named)


def output_shape(network: Functional, *inputs: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The output shape of a network with a single output array for these inputs."""
    net = jax.eval_shape(network.init, jax.random.key(0))
    return jax.eval_shape(lambda net, *x: network.apply(*net, *x)[0], net, *inputs).shape


def functional(build: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """Turns `build(rngs) -> module` into a `Functional`.

    The module's `__call__` takes `(*args, key, train, **named)`. Its `nnx.Param` variables become
    `params`; every other variable becomes `mutable`, and `apply` returns its value after the call.
    """
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graph, abstract_params, abstract_mutable = nnx.split(abstract, nnx.Param, ...)

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        _, params, mutable = nnx.split(build(nnx.Rngs(key)), nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(mutable)

    def apply(
        params: Tree,
        mutable: Tree,
        *args: Any,
        key: jax.Array | None = None,
        train: bool = False,
        **named: Any,
    ) -> tuple[Any, Tree]:
        states = []
        for state, values in ((abstract_params, params), (abstract_mutable, mutable)):
            filled = jax.tree.map(lambda leaf: leaf, state)
            nnx.replace_by_pure_dict(filled, values)
            states.append(filled)
        module = nnx.merge(graph, *states)
        out = module(*args, key=key, train=train, **named)
        return out, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))

    return Functional(init, apply)
