"""What the loop costs beside the jitted step: Python, the loader, transfers, metrics.

The real loop trains a toy method on real Fashion-MNIST batches; its step sleeps on the device side
for a known time, dispatched asynchronously like any other step (a Python callback would not be:
with one the CPU backend runs the step in the caller). The same compiled step called over and over
on one batch already on the device is the floor; what the loop takes beyond it is overhead. The
difference of a long and a short run leaves out start-up, compilation and the closing evaluation.
Needs g++ for the sleep.

  python benchmarks/host_overhead.py [--milliseconds=100] [--trials=5]
"""

import argparse
import ctypes
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from genjax import config as configs
from genjax.data import catalogue, loader
from genjax.evals.evaluation import Evaluation
from genjax.method import Aux, Method, Phase
from genjax.parallel.mesh import global_batch
from genjax.parallel.rules import replicate
from genjax.training import loop
from genjax.training.assemble import assemble

SLEEP = """
#include <unistd.h>
#include "xla/ffi/api/ffi.h"
namespace ffi = xla::ffi;
static ffi::Error Run(
    int32_t microseconds, ffi::Buffer<ffi::F32>, ffi::ResultBuffer<ffi::F32> out) {
  usleep(microseconds);
  out->typed_data()[0] = 0;
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER_SYMBOL(Sleep, Run, ffi::Ffi::Bind().Attr<int32_t>("microseconds")
    .Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
"""


def register_sleep():
    """Compiles the sleep and registers it as the custom call `sleep` of the CPU backend."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "sleep.cc"), Path(folder, "sleep.so")
        source.write_text(SLEEP)
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-I{jax.ffi.include_dir()}"]
        subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
        handler = ctypes.CDLL(str(library)).Sleep
    jax.ffi.register_ffi_target("sleep", jax.ffi.pycapsule(handler), platform="cpu")


def sleeping_method(milliseconds):
    """A method whose loss sleeps on the device side."""
    sleep = jax.ffi.ffi_call("sleep", jax.ShapeDtypeStruct((), jnp.float32), has_side_effect=True)
    microseconds = np.int32(milliseconds * 1000)

    def loss(params, mutable, batch, key, step):
        images = batch["image"].astype(jnp.float32).mean()
        waited = sleep(jax.lax.stop_gradient(images), microseconds=microseconds)
        return params["net"]["w"] ** 2 + waited, Aux({"mean": images}, {})

    def init(key, batch):
        return {"net": {"w": jnp.float32(1.0)}}, {}

    def evaluate(params, mutable, batch, key):
        return {"zero": jnp.zeros(batch["image"].shape[0])}

    return Method(init, (Phase("net", loss),), evaluate, None, ((r".*", replicate),))


def assembled(steps, milliseconds):
    config = configs.override(
        configs.load("configs/ddpm.py"),
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
    return dataset, assemble(config, dataset.spec, sleeping_method(milliseconds))


def loop_seconds(dataset, run):
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        loop.train(
            run,
            dataset,
            Path(folder),
            lambda checkpoints: run.init(),
            lambda writers: Evaluation(run, dataset, Path(folder), writers),
        )
        return time.perf_counter() - start


def floor_seconds(dataset, run, steps):
    with jax.set_mesh(run.mesh):
        state = run.init()
        batches = loader.train_batches(
            dataset.splits["train"], seed=0, batch_size=run.examples_per_step
        )
        batch = global_batch(batches[0], run.mesh)
        state, output = jax.block_until_ready(run.step(state, batch))
        start = time.perf_counter()
        for _ in range(steps):
            state, output = run.step(state, batch)
        jax.block_until_ready(output)
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--milliseconds", type=float, default=100.0)
    parser.add_argument("--trials", type=int, default=5)
    options = parser.parse_args()
    register_sleep()
    few, many = 10, 100
    short, long = (assembled(n, options.milliseconds) for n in (few, few + many))
    loop_seconds(*short)
    floors, overheads = [], []
    for _ in range(options.trials):
        floors.append(floor_seconds(*long, many) / many * 1000)
        looped = (loop_seconds(*long) - loop_seconds(*short)) / many * 1000
        overheads.append(looped - floors[-1])
    floor, overhead = np.median(floors), np.median(overheads)
    print("ms per step beyond the floor:", ", ".join(f"{o:.2f}" for o in overheads))
    print(f"floor {floor:.1f} ms; median overhead {overhead:.2f} ms: {overhead / floor:.2%}")


if __name__ == "__main__":
    main()
