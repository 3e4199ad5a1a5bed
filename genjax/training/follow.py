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
    """`params` with each follower as a copy of its source.

    Args:
      follows: by name of the follower.
      params: by network; a follower may be among them, of its source's structure.
      trained: the networks that phases train.

    Raises:
      ConfigError: a follower that is trained, whose source does not exist or is a follower itself,
        whose arrays are others than its source's, or whose numbers are out of range.
    """
    sources = sorted(params.keys() - follows.keys())
    for name, rule in follows.items():
        one_of(f"the source of the follower {name!r}", rule.source, sources)
        if name in trained:
            raise ConfigError(
                f"the network {name!r} follows {rule.source!r}, and a phase trains it: expected "
                "one of both. Take it out of `Phase.trains` or out of `Method.follows`."
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
                f"{shapes[0]}, expected {shapes[1]}. Leave it out of `init`: it begins as a copy."
            )
    copies = {name: jax.tree.map(jnp.copy, params[rule.source]) for name, rule in follows.items()}
    return {**params, **copies}


def update(
    follows: Mapping[str, Follow], params: Mapping[str, Tree], step: jax.Array
) -> dict[str, Tree]:
    """`params` with the followers as they are after the update of `step` (0-based)."""
    moved = {}
    for name, rule in follows.items():
        decay = jnp.float32(rule.decay(step) if callable(rule.decay) else rule.decay)
        due = (step + 1) % rule.every == 0

        # Of a decay of 0 the very source, and what agrees with it stays as it is.
        def follow(old: jax.Array, new: jax.Array, decay=decay, due=due) -> jax.Array:
            return jnp.where(due, new + decay * (old - new), old)

        moved[name] = jax.tree.map(follow, params[name], params[rule.source])
    return {**params, **moved}
