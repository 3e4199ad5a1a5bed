"""How long a step takes on the devices here."""

from __future__ import annotations

import time

import jax
import numpy as np

from genjax.method import Batch
from genjax.training.assemble import Assembly

SECONDS = 2.0  # that steps are measured for, once the program is warm
MOST = 100  # steps


def seconds_of_step(run: Assembly, step: jax.stages.Compiled) -> float:
    """The median time of a run's compiled step, on a new state and a batch without meaning."""
    with jax.set_mesh(run.mesh):
        state, batch = run.init(), filler(run)
        times: list[float] = []
        state, output = step(state, batch)  # warms up
        jax.block_until_ready(output)
        end = time.perf_counter() + SECONDS
        while not times or (time.perf_counter() < end and len(times) < MOST):
            start = time.perf_counter()
            state, output = step(state, batch)
            jax.block_until_ready((state, output))
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def filler(run: Assembly) -> Batch:
    """A batch of noise: bytes and floats are drawn, tokens and labels are 0, masks are true."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.dtype == np.uint8:
            return rng.integers(0, 256, leaf.shape, np.uint8)
        if np.issubdtype(leaf.dtype, np.floating):
            return rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)
        return np.full(leaf.shape, leaf.dtype == np.bool_, leaf.dtype)

    return {name: jax.device_put(draw(leaf), leaf.sharding) for name, leaf in run.batch.items()}
