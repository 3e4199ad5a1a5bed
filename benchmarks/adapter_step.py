"""A training step with LoRA beside the kernels, merged into them, and of all parameters.

A transformer of width 576, as SmolLM2's, with 4 of its 30 blocks; 8 texts of 160 tokens; adapters
of rank 16 on all kernels of the blocks. The three steps take turns; the figures are medians of the
processor time, which other programs disturb less than the clock.

  NPROC=1 taskset -c 0 python benchmarks/adapter_step.py [--rounds=5]
"""

import argparse
import statistics
import time

import jax
import numpy as np

from genjax import config as configs
from genjax.data.alphabets import Bytes
from genjax.method import DataSpec, Field
from genjax.parallel.mesh import global_batch
from genjax.training.assemble import assemble

T, BATCH = 160, 8
FACTS = {"vocabulary_size": 256, "special": {"start": 0}, "tokenizer": Bytes({})}
SPEC = DataSpec(
    "made", {"token": Field("text", (T + 1,), np.dtype(np.int32), FACTS)}, "token", {"train": 64}
)
NETWORK = {
    **{"dataset.text.length": T, "batch_size": BATCH, "schedule.warmup": "", "ema.decay": ()},
    **{"model.lm.width": 576, "model.lm.depth": 4, "model.lm.heads": 9, "model.lm.kv_heads": 3},
    **{"model.lm.hidden": 1536, "duration": "1000_steps"},
}
LORA = {"adapters": ((r"blocks/\w+/kernel$", 16),)}
STEPS = {
    "beside the kernels": LORA,
    "merged": LORA | {"lora.merged": True},
    "all parameters": {},
}


def begun(options):
    """A run, its batch, and its state after a step."""
    config = configs.load("configs/llama.py:tiny", NETWORK | options)
    run = assemble(config, SPEC, devices=jax.devices()[:1])
    token = np.random.default_rng(0).integers(1, 256, (BATCH, T + 1)).astype(np.int32)
    batch = global_batch({"token": token}, run.mesh)
    with jax.set_mesh(run.mesh):
        return run, batch, run.step(run.init(), batch)[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    runs = {name: begun(options) for name, options in STEPS.items()}
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (run, batch, state) in runs.items():
            start = time.process_time()
            with jax.set_mesh(run.mesh):
                state = jax.block_until_ready(run.step(state, batch)[0])
            seconds[name].append(time.process_time() - start)
            runs[name] = run, batch, state
    merged = statistics.median(seconds["merged"])
    for name, found in seconds.items():
        median = statistics.median(found)
        print(
            f"{name}: {median:.2f} s ({min(found):.2f} to {max(found):.2f}), {median / merged:.2f}"
        )


if __name__ == "__main__":
    main()
