"""Table 1 of Burda et al. 2016 (importance weighted autoencoders), one stochastic layer, on MNIST.

784-200-200-50, tanh, pixels binarised anew at every draw, Adam with eps 1e-4; the paper's ladder of
learning rates, 0.001 * 10^(-i/7) for 3^i passes, i = 0 ... 7, and its batches of 20 in 3,280 passes
become the same ladder (`schedule.name="ladder"`) over as many batches of 100 as fit into --minutes.
Departures: those; a ladder that begins at 0.003; the decoder's last bias, which begins at zero and
not at the mean image; and the VAE's KL, whose weight grows from 0 over the first 30 % of the steps:
at this rate it otherwise switches dimensions off for good. IWAE-5 with that was behind by 0.9 nats
after 60 % of its steps.

  python benchmarks/iwae_table.py --workdir=DIR [--data=mnist.npz] [--models=vae,iwae5,iwae50]
      [--minutes=60] [--test_limit=0] [--config.KEY=VALUE ...]

Each model is a run of genjax.main in DIR/<model>, so that the same command resumes after a stop;
how many steps fit is measured once, by a short run, and stays in the run's config, whatever
--minutes says later. Without --data
the images are TFDS `mnist`. The test bound over training (50 samples, 2,000 images) is printed
under the table and drawn in DIR/<model>/report.html; the final NLL takes 5,000 samples of every
test image, or of --test_limit of them, and is kept in DIR/<model>/nll.json.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import runs
from racing import among, several

from genjax.training import workdir
from genjax.training.metrics import read_metrics

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "iwae.py"
BATCH, SAMPLES = 100, 5000
EVALUATIONS, LOGS = 20, 1  # evaluations on the way; percent of the run between two log lines
WHOLE = 2000  # steps: of a multiple, no evaluation or log line breaks a dispatch of 20
# Model -> its bound, its k, the NLL of the paper, what is to be reached here, steps of the trial.
MODELS = {
    "vae": ("elbo", 1, 86.76, 87.5, 4000),
    "iwae5": ("iwae", 5, 85.54, 86.3, 2000),
    "iwae50": ("iwae", 50, 84.78, 85.7, 400),
}


def keys(model, options):
    """The keys of the config that make the run."""
    bound, samples = MODELS[model][:2]
    data = {"name": "npz", "path": options.data} if options.data else {"name": "mnist"}
    return {
        **{f"dataset.{key}": value for key, value in data.items()},
        "dataset.validation": "",  # the paper trains on all of train
        "evals.split": "test",
        "batch_size": BATCH,
        "steps_per_dispatch": 20,
        "vae.bound": bound,
        "vae.samples": samples,
        "vae.kl_warmup": "30_percent" if bound == "elbo" else "",
        "optimizer.learning_rate": 3e-3,  # three times the paper's, for a tenth of its steps
        "schedule.name": "ladder",
        "schedule.final": 0.1,
        "ema.decay": "",
        "evals.judges": "",
        "evals.batch_size": BATCH,
        "evals.limit": 2000,
        "evals.every": f"{100 // EVALUATIONS}_percent",
        **options.overrides,
    }


def fitting(model, options):
    """Steps that fit into the minutes, evaluations included, by the rate of a short run."""
    steps = MODELS[model][-1]
    trial = {"duration": f"{steps}_steps", "log.every": f"{steps // 4}_steps"}
    with tempfile.TemporaryDirectory() as folder:
        runs.command(
            folder,
            keys(model, options) | trial | {"evals.every": "50_percent"},
            f"--config={CONFIG}",
        )
        metrics = read_metrics(Path(folder) / "metrics.jsonl")
        batch = workdir.read_config(Path(folder)).batch_size
    # The first stretch compiles; the second evaluation does not.
    rate = np.median(list(metrics["train/examples_per_second"].values())[1:]) / batch
    looks = EVALUATIONS * list(metrics["eval/seconds"].values())[-1]
    steps = rate * max(60 * options.minutes - looks, 1)
    print(f"{model}: {1000 / rate:.2f} ms a step, {looks / 60:.1f} min of evaluations", flush=True)
    return max(int(steps) // WHOLE * WHOLE, WHOLE)


def trained(model, options):
    """Trains, or resumes; returns the folder of the run."""
    folder = Path(options.workdir) / model
    stored = workdir.read_config(folder)
    if stored is not None:
        duration = stored.duration
        if options.steps and duration != f"{options.steps}_steps":
            sys.exit(
                f"error: --steps={options.steps}, but the run in {folder} is one of {duration}: "
                "leave --steps out to go on with it, or give another --workdir."
            )
        print(f"{model}: goes on with the run in {folder}, {duration}", flush=True)
    else:
        duration = f"{options.steps or fitting(model, options)}_steps"
    length = {"duration": duration, "log.every": f"{LOGS}_percent"}
    runs.command(folder, keys(model, options) | length, f"--config={CONFIG}")
    return folder


def likelihood(folder, options):
    """The NLL of the newest checkpoint in nats with 5,000 samples, and what it is of; kept."""
    kept = folder / "nll.json"
    metrics = read_metrics(folder / "metrics.jsonl")
    asked = {"step": max(metrics["eval/elbo"]), "limit": options.test_limit}
    stored = json.loads(kept.read_text()) if kept.exists() else {}
    if asked.items() <= stored.items():
        return stored
    print(f"{folder}: takes {SAMPLES} samples of each test image", flush=True)
    found = runs.evaluated(folder, {"vae.eval_samples": SAMPLES, "evals.limit": options.test_limit})
    asked["nll"] = -found["eval/log_likelihood"]
    asked["standard_error"] = found["eval/log_likelihood_se"]
    asked["seconds"] = found["eval/seconds"]
    batch, sizes = workdir.read_config(folder).batch_size, workdir.read_spec(folder).sizes
    asked["epochs"] = asked["step"] * batch / sizes["train"]
    kept.write_text(json.dumps(asked))
    return asked


def show(folders, options):
    """The table, and the test bounds over training."""
    found = {model: likelihood(folder, options) for model, folder in folders.items()}
    images = f"{options.test_limit} of the test images" if options.test_limit else "all test images"
    print(f"\nNLL in nats, {SAMPLES} samples, {images}")
    print(f"{'':8} {'here':>7} {'+-':>5} {'target':>7} {'paper':>7} {'steps':>8} {'epochs':>7}")
    for model, one in found.items():
        published, target = MODELS[model][2:4]
        print(
            f"{model:8} {one['nll']:7.2f} {one['standard_error']:5.2f} {target:7.2f} "
            f"{published:7.2f} {one['step']:8,} {one['epochs']:7.1f}"
        )
    curves = {}
    for model, folder in folders.items():
        metrics = read_metrics(folder / "metrics.jsonl")
        curves[model] = {s: -v for s, v in metrics["eval/log_likelihood"].items()}
    print("\nMinus the bound of 50 samples on 2,000 test images, at the share of the steps")
    print(f"{'':8}" + "".join(f"{model:>16}" for model in curves))
    for i in range(1, EVALUATIONS + 1):
        cells = ""
        for curve in curves.values():
            step = min(curve, key=lambda s, c=curve: abs(s - i / EVALUATIONS * max(c)))
            cells += f"{curve[step]:16.2f}"
        print(f"{i / EVALUATIONS:7.0%} {cells}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--data", default="")
    parser.add_argument("--models", type=several(among(MODELS)), default=list(MODELS))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=0, help="instead of what fits into --minutes")
    parser.add_argument("--test_limit", type=int, default=0)
    options = runs.options(parser)
    print(f"{jax.default_backend()}, {jax.device_count()} devices", flush=True)
    show({model: trained(model, options) for model in options.models}, options)


if __name__ == "__main__":
    main()
