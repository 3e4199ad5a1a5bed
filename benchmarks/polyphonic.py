"""Negative log-likelihood per frame of polyphonic music (Bai et al. 2018, table 1).

Four networks on the piano rolls of Bach's chorales (JSB) and of Nottingham's folk tunes; those of
configs/tcn_music.py and configs/lstm.py with the paper's splits. Each is a run of genjax.main in
DIR/<row>, so that the same command resumes after a stop; the checkpoint that is best on the
validation split is judged on the test split.

  python benchmarks/polyphonic.py --workdir=DIR [--data=FOLDER] [--rows=jsb_tcn,jsb_lstm,...]
      [--config.KEY=VALUE ...]

--data is a folder with JSB_Chorales.mat and Nottingham.mat; without it they are downloaded. Config
keys given count for all rows chosen.
"""

import argparse
from pathlib import Path

import runs
from racing import among, several

from genjax.training.metrics import read_metrics

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# One chorale an update, as the authors have it, and so on one device alone; averaged over about 15
# epochs in place of a falling rate, without the warm-up that would allow a tenth of the updates.
SINGLE = {
    "batch_size": 1,
    "dataset.text.documents": "padded",
    "duration": "80_epochs",
    "schedule.name": "constant",
    "ema.decay": (0.9997,),
    "ema.warmup": False,
}
# One row of several tunes an update.
FOLK = {"batch_size": 1, "optimizer.learning_rate": 2e-3, "duration": "45_epochs"}
# A slow start leaves a GRU where no key sounds, for a thousand updates.
GRU = {"model.lm.cell": "gru", "schedule.warmup": "0_steps", "duration": "100_epochs"}
RNN = {"model.lm.cell": "rnn", "optimizer.learning_rate": 1e-3, "duration": "100_epochs"}
# Row -> config, changes to it, the published figure, what is to be reached here.
ROWS = {
    "jsb_tcn": ("tcn_music.py", SINGLE, 8.10, 8.15),
    "jsb_lstm": ("lstm.py:jsb", {}, 8.45, 8.50),
    "jsb_gru": ("lstm.py:jsb", GRU, 8.43, None),
    "jsb_rnn": ("lstm.py:jsb", RNN, 8.91, None),
    "nottingham_tcn": ("tcn_music.py:nottingham", FOLK, 3.07, 3.15),
    "nottingham_lstm": ("lstm.py:nottingham", {"batch_size": 1}, 3.29, None),
}
FILES = {"jsb": "JSB_Chorales.mat", "nottingham": "Nottingham.mat"}


def judged(row, options):
    """Trains, or resumes; (test loss, its standard error, best step, validation loss there)."""
    config, changes, *_ = ROWS[row]
    folder = Path(options.workdir) / row
    if options.data:
        path = Path(options.data).resolve() / FILES[row.split("_")[0]]
        changes = changes | {"dataset.path": path}
    keys = {"evals.every": "2_epochs", "evals.samples": 0} | changes | options.overrides
    runs.command(folder, keys, f"--config={CONFIGS / config}")
    found = runs.evaluated(folder, {"evals.split": "test"}, "--checkpoint=best")
    losses = read_metrics(folder / "metrics.jsonl")["eval/loss"]
    losses = {step: loss for step, loss in losses.items() if loss is not None}
    best = min(losses, key=losses.get)
    return found["eval/loss"], found["eval/loss_se"], best, losses[best]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--data", default="")
    parser.add_argument("--rows", type=several(among(ROWS)), default=list(ROWS))
    options = runs.options(parser)
    found = {row: judged(row, options) for row in options.rows}
    print(
        f"{'':16} {'test':>6} {'+-':>5} {'target':>7} {'paper':>6} {'validation':>11} {'step':>7}"
    )
    for row, (loss, error, step, validation) in found.items():
        _, _, published, target = ROWS[row]
        aim = f"{target:.2f}" if target else ""
        print(
            f"{row:16} {loss:6.3f} {error:5.3f} {aim:>7} {published:6.2f} "
            f"{validation:11.3f} {step:7,}"
        )


if __name__ == "__main__":
    main()
