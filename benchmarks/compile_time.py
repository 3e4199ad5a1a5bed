"""Seconds from the command to the first step done: with an empty cache, and with a full one.

The real command is started with its data at hand and an empty cache of compiled programs, and then
again (`--trials` times) with the cache that the first one has left. Seconds are counted from the
start of the process to the line of metrics of step 1, which waits for the step. `--imports` leaves
the run out: seconds to import the program.

  python benchmarks/compile_time.py [--config=configs/ddpm.py] [--trials=3] [--imports]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from genjax.data.packages import cache_root
from genjax.main import COMPILED


def first_step(config, workdir, data):
    """Starts a run and ends it after its first step; the seconds to there."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    metrics = workdir / "metrics.jsonl"
    flags = [f"--config={config}", f"--workdir={workdir}", "--config.log.every=1_steps"]
    start = time.time()
    process = subprocess.Popen(
        [sys.executable, "-m", "genjax.main", *flags],
        env=environment | {"GENJAX_DATA": str(data)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while not (metrics.exists() and metrics.read_text().count("\n")):
        if process.poll() is not None:
            raise SystemExit(process.stderr.read().decode())
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    return json.loads(metrics.read_text().splitlines()[0])["time"] - start


def imports():
    """Seconds to import the program in a process of its own."""
    start = time.time()
    subprocess.run([sys.executable, "-c", "import genjax.main"], check=True)
    return time.time() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/ddpm.py")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--imports", action="store_true")
    flags = parser.parse_args()
    if flags.imports:
        print("imports:", ", ".join(f"{imports():.2f} s" for _ in range(flags.trials)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"  # as it is, but for the compiled programs
        data.mkdir()
        for path in cache_root().iterdir():
            if path.name != COMPILED:
                (data / path.name).symlink_to(path)
        cold = first_step(flags.config, Path(scratch) / "cold", data)
        load = os.getloadavg()[0]
        print(f"cold: {cold:.1f} s to the first step (load {load:.1f})", flush=True)
        for trial in range(flags.trials):
            warm = first_step(flags.config, Path(scratch) / f"warm{trial}", data)
            load = os.getloadavg()[0]
            print(f"warm: {warm:.1f} s, {warm / cold:.0%} of cold (load {load:.1f})", flush=True)
        files = list((data / COMPILED).glob("*-cache"))
        size = sum(path.stat().st_size for path in files) / 2**20
        print(f"{len(files)} programs in the cache, {size:.1f} MiB")


if __name__ == "__main__":
    main()
