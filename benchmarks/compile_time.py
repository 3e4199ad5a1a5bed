"""Seconds from a config to a compiled training step, with an empty cache and with a full one.

python benchmarks/compile_time.py [--config=configs/ddpm.py]
"""

import argparse
import os
import subprocess
import sys
import tempfile

CHILD = """
import sys, time
import jax
from genjax import config as configs
from genjax.training.assemble import assemble
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
run = assemble(configs.load(sys.argv[1]))
with jax.set_mesh(run.mesh):
    start = time.perf_counter()
    lowered = run.step.trace(run.state, run.batch).lower()
    traced = time.perf_counter()
    lowered.compile()
    print(traced - start, time.perf_counter() - traced)
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/ddpm.py")
    config = parser.parse_args().config
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "cached"):
            out = subprocess.run(
                [sys.executable, "-c", CHILD, config, cache],
                check=True,
                capture_output=True,
                text=True,
                env={k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"},
            ).stdout
            trace, compile_ = map(float, out.split())
            print(f"{name}: trace and lower {trace:.1f} s, compile {compile_:.1f} s")


if __name__ == "__main__":
    main()
