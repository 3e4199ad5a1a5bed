"""The main job against plain PyTorch: the same network, the same seconds, the same judge.

Runs configs/ddpm.py for `--examples`, and takes the seconds that the whole command needed:
compilation, evaluations and checkpoints included. PyTorch then trains a U-Net of the same
parameters for as many seconds (benchmarks/torch_diffusion.py), compiled and in bfloat16, its
fastest form in docs/performance.md: once by the recipe of denoising-diffusion-pytorch, and once by
v-prediction with our learning rate and average. `--mode=eval --samples` judges 5,000 samples of
each. The runs follow one another.

  python benchmarks/diffusion_race.py --torch_python=PATH [--examples=150000] [--workdir=DIR]
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from racing import FOLDER

from genjax import config as configs
from genjax.data import catalogue

CONFIG = FOLDER.parent / "configs" / "ddpm.py"


def genjax(*flags):
    """What the command line prints."""
    command = [sys.executable, "-m", "genjax.main", *map(str, flags)]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def judged(samples):
    """The Fréchet distance of the samples in a file."""
    out = genjax(
        f"--config={CONFIG}",
        "--mode=eval",
        f"--samples={samples}",
        "--config.evals.judges=fidelity",
    )
    return {
        line.split()[0]: float(line.split()[1])
        for line in out.splitlines()
        if line.startswith(("fd_", "precision_", "recall_"))
    }


def ours(folder, examples, count):
    """(seconds of the training command, file of the samples)."""
    run = folder / "genjax"
    begin = time.perf_counter()
    genjax(f"--config={CONFIG}", f"--workdir={run}", f"--config.duration={examples}_examples")
    seconds = time.perf_counter() - begin
    genjax(f"--workdir={run}", "--mode=sample", f"--num={count}")
    return seconds, next((run / "generated").glob("*.npz"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch_python", required=True)
    parser.add_argument("--examples", type=int, default=150_000)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--workdir", type=Path, default=Path("runs/diffusion_race"))
    flags = parser.parse_args()
    folder = flags.workdir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    source = catalogue.load(configs.load(str(CONFIG)).dataset).splits["train"]
    images = np.stack([source[i]["image"][..., 0] for i in range(len(source))])
    np.save(folder / "train.npy", images)
    seconds, made = ours(folder, flags.examples, flags.samples)
    print(f"genjax: {seconds:.0f} s, {json.dumps(judged(made))}", flush=True)
    for recipe in ("common", "ours"):
        output = folder / f"torch_{recipe}.npz"
        command = [flags.torch_python, str(FOLDER / "torch_diffusion.py"), "--compile"]
        command += [f"--images={folder / 'train.npy'}", f"--output={output}"]
        command += [f"--seconds={seconds}", f"--recipe={recipe}", f"--samples={flags.samples}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        facts = json.loads(done.stdout.splitlines()[-1])
        print(f"torch, recipe {recipe}: {facts}, {json.dumps(judged(output))}", flush=True)


if __name__ == "__main__":
    main()
