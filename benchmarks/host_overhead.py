"""What the loop costs beside the jitted step: Python, the loader, transfers, metrics.

The real loop trains a toy method whose step sleeps for a known time (100 ms) on the device side,
on real Fashion-MNIST batches. All that a step takes beyond the sleep is overhead. The difference
between a long and a short run leaves out start-up, compilation and the closing evaluation.

  python benchmarks/host_overhead.py [--milliseconds=100]
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from genjax import config as configs
from genjax.data import catalogue
from genjax.method import Aux, Method, Phase
from genjax.parallel.rules import replicate
from genjax.training import loop
from genjax.training.assemble import assemble


def sleeping_method(seconds):
    def pause(x):
        time.sleep(seconds)
        return np.zeros((), np.float32)

    def loss(params, mutable, batch, key, step):
        images = batch["image"].astype(jnp.float32).mean()
        waited = jax.pure_callback(pause, jax.ShapeDtypeStruct((), jnp.float32), images)
        return params["net"]["w"] ** 2 + jax.lax.stop_gradient(waited), Aux({"mean": images}, {})

    def init(key, batch):
        return {"net": {"w": jnp.float32(1.0)}}, {}

    def evaluate(params, mutable, batch, key):
        return {"zero": jnp.zeros(batch["image"].shape[0])}

    return Method(init, (Phase("net", loss),), evaluate, None, ((r".*", replicate),))


def seconds_of(steps, milliseconds):
    config = configs.load("configs/ddpm.py")
    config = configs.override(
        config,
        {
            "duration": f"{steps}_steps",
            "schedule.warmup": "",
            "schedule.name": "constant",
            "evals.every": "",
            "evals.samples": 0,
            "checkpoint.minutes": 0.0,
        },
    )
    dataset = catalogue.load(config.dataset)
    run = assemble(config, dataset.spec, sleeping_method(milliseconds / 1000))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        loop.train(run, dataset, Path(folder), lambda checkpoints: run.init())
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--milliseconds", type=float, default=100.0)
    milliseconds = parser.parse_args().milliseconds
    found = []
    for _ in range(3):
        short, long = seconds_of(50, milliseconds), seconds_of(250, milliseconds)
        found.append((long - short) / 200 * 1000 - milliseconds)
    overhead = float(np.median(found))
    print(f"overhead per step, three trials: {', '.join(f'{f:.2f} ms' for f in found)}")
    print(f"median {overhead:.2f} ms: {overhead / milliseconds:.2%} of a {milliseconds:g} ms step")


if __name__ == "__main__":
    main()
