"""Runs the command line in processes of its own, and reads what a run leaves."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DDPM = str(ROOT / "configs" / "ddpm.py")
# XLA_FLAGS of processes that have one device, not the eight of the tests.
ONE_DEVICE = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")

# The tiny preset, smaller still: a run of seconds whose compiled step all tests share.
FAST = [
    "--config.duration=12_steps",
    "--config.batch_size=8",
    "--config.log.every=1_steps",
    "--config.evals.every=6_steps",
    "--config.evals.limit=20",
    "--config.evals.batch_size=16",
    "--config.evals.samples=4",
    "--config.schedule.warmup=2_steps",
    "--config.diffusion.num_timesteps=10",
    "--config.diffusion.eval_timesteps=2",
    "--config.diffusion.steps=2",
    "--config.model.denoiser.channels=8",
    "--config.model.denoiser.multipliers=(1,)",
    "--config.model.denoiser.attention=()",
    "--config.dataset.threads=1",
]


class Cli:
    """Starts `python -m genjax.main` in a process of its own."""

    def __init__(self, cwd):
        self.cwd = cwd

    def start(self, *arguments, devices=1, environment=None, preexec_fn=None):
        flags = ONE_DEVICE.replace("device_count=1", f"device_count={devices}")
        return subprocess.Popen(
            [sys.executable, "-m", "genjax.main", *map(str, arguments)],
            env={**os.environ, "XLA_FLAGS": flags, **(environment or {})},
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=preexec_fn,
        )

    def run(self, *arguments, code=0, **options):
        """Its standard output and error; fails unless it exits with `code`."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out, err

    def train(self, workdir, *arguments, **options):
        return self.run(
            f"--config={DDPM}:tiny", *FAST, f"--workdir={workdir}", *arguments, **options
        )


# Metrics that are times, or made of them: no two runs have the same.
CLOCKS = {"time", "train/examples_per_second", "eval/seconds", "train/seconds_to_first_step"}


def metrics(workdir):
    return [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def timeless_metrics(workdir):
    """All that is logged but the clocks."""
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in metrics(workdir)]


def steps_logged(workdir):
    return [line["step"] for line in metrics(workdir) if "train/loss" in line]


def reported_digest(workdir):
    page = (Path(workdir) / "report.html").read_text()
    return re.search(r"sha256 <code>([0-9a-f]{64})</code>", page)[1]


def wait_for_step(process, workdir, step):
    """Returns once the run has logged `step`; fails if it ends before."""
    path = Path(workdir) / "metrics.jsonl"
    for _ in range(6000):
        assert process.poll() is None, process.communicate()
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached in two minutes")
