"""Networks that follow others: target networks and mean teachers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from genjax.config import ConfigError, one_of, require
from genjax.method import Follow

Tree = Any


def begin(
    follows: Mapping[str, Follow], params: Mapping[str, Tree], trained: Collection[str]
) -> dict[str, Tree]:
    """Returns `params` with each follower as a copy of its source.

    Args:
      follows: by name of the follower.
      params: by network; a follower may be among them, with its source's structure.
      trained: the networks that phases train.

    Raises:
      ConfigError: a follower is trained, its source does not exist or is a follower itself, its
        arrays differ from its source's, or its numbers are out of range.
    """
    sources = sorted(params.keys() - follows.keys())
    for name, rule in follows.items():
        one_of(f"the source of the follower {name!r}", rule.source, sources)
        if name in trained:
            raise ConfigError(
                f"the network {name!r} follows {rule.source!r}, and a phase trains it: expected "
                "only one of the two. Remove it from `Phase.trains` or from `Method.follows`."
            )
        if not callable(rule.decay):
            fits = 0 <= rule.decay < 1
            require(fits, f"the decay of the follower {name!r}", rule.decay, "0, or below 1")
        require(rule.every >= 1, f"`every` of the follower {name!r}", rule.every, "at least 1")
        shapes = [
            jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), params[network])
            for network in (name, rule.source)
            if network in params
        ]
        if shapes[0] != shapes[-1]:
            raise ConfigError(
                f"the follower {name!r} has other arrays than {rule.source!r}, which it follows: "
                f"{shapes[0]}, expected {shapes[1]}. Leave it out of `init`: it starts as a copy."
            )
    copies = {name: jax.tree.map(jnp.copy, params[rule.source]) for name, rule in follows.items()}
    return {**params, **copies}


def update(
    follows: Mapping[str, Follow], params: Mapping[str, Tree], step: jax.Array
) -> dict[str, Tree]:
    """Returns `params` with the followers after the update of `step` (0-based)."""
    moved = {}
    for name, rule in follows.items():
        decay = jnp.float32(rule.decay(step) if callable(rule.decay) else rule.decay)
        due = (step + 1) % rule.every == 0

        # With a decay of 0 this is exactly the source; values equal to the source do not change.
        def follow(old: jax.Array, new: jax.Array, decay=decay, due=due) -> jax.Array:
            return jnp.where(due, new + decay * (old - new), old)

        moved[name] = jax.tree.map(follow, params[name], params[rule.source])
    return {**params, **moved}
