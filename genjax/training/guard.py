"""Skips updates that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any
Apply = Callable[..., tuple[Tree, Tree]]  # (grads, params, opt_state) -> the new ones


def chosen(finite: jax.Array, new: Tree, old: Tree) -> Tree:
    """The new arrays where `finite`, else the old."""
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)


def by_choice(apply: Apply, finite: jax.Array, grads: Tree, *old: Tree) -> tuple[Tree, Tree]:
    """`apply(grads, *old)` where `finite`, else `old`."""
    return chosen(finite, apply(grads, *old), old)


def by_branch(apply: Apply, finite: jax.Array, grads: Tree, *old: Tree) -> tuple[Tree, Tree]:
    """The same as `by_choice`, but runs `apply` only if needed.

    On the CPU, XLA then updates everything in place, in half the time of `by_choice`. An
    accelerator would have to wait until the branch is known.
    """
    return jax.lax.cond(finite, apply, lambda grads, *old: old, grads, *old)


def guarded(apply: Apply, finite: jax.Array, grads: Tree, *old: Tree) -> tuple[Tree, Tree]:
    """`apply(grads, *old)` where `finite`, else `old`, in the way that suits the backend."""
    return jax.lax.platform_dependent(
        finite, grads, *old, cpu=partial(by_branch, apply), default=partial(by_choice, apply)
    )
