"""The only training loop."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from genjax import config as configs
from genjax.data import loader, transforms
from genjax.data.catalogue import Dataset
from genjax.evals.evaluation import Evaluation
from genjax.parallel.distributed import any_process, barrier
from genjax.parallel.mesh import global_batch
from genjax.train_state import TrainState
from genjax.training.assemble import Assembly
from genjax.training.averages import Averages
from genjax.training.checkpoint import Checkpoints
from genjax.training.early_stop import exhausted
from genjax.training.metrics import (
    JsonlWriter,
    Progress,
    TensorBoardWriter,
    WandbWriter,
    Writers,
)
from genjax.training.step import StepOutput

logger = logging.getLogger("genjax")


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """A list that SIGTERM and Ctrl-C append to; a second Ctrl-C interrupts at once."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def make_writers(run: Assembly, workdir: Path, start: int) -> Writers:
    """The writers that the config asks for; none on processes other than the first."""
    if jax.process_index():
        return Writers([])
    writers = [
        JsonlWriter(workdir / "metrics.jsonl", start),
        TensorBoardWriter(workdir / "tensorboard", start),
    ]
    if run.config.log.wandb:
        stored = configs.to_json(run.config)
        writers.append(WandbWriter(run.config.log.wandb_project, stored, workdir))
    return Writers(writers)


def train(
    run: Assembly,
    dataset: Dataset,
    workdir: Path,
    start: Callable[[Checkpoints], TrainState],
) -> int:
    """Trains until the run's end, an early stop, or a signal; resumes at `state.step`.

    Args:
      run: what to train.
      dataset: the splits.
      workdir: where everything goes; the caller holds its lock.
      start: gives the state to begin with: restored, or initialised.

    Returns:
      The process's exit code: 0, or 128 + the signal that ended the run.

    Raises:
      Diverged: too many updates in a row were not finite.
    """
    config = run.config
    checkpoints = Checkpoints(workdir, config)
    state = start(checkpoints)
    first = int(state.step)
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        writers = make_writers(run, workdir, first)
        stack.callback(writers.close)
        evaluate = Evaluation(run, dataset, workdir, writers)
        progress = Progress(run.total_steps, first, run.examples_per_step)
        stack.callback(progress.close)
        batches = loader.train_loader(
            dataset.splits["train"],
            seed=config.seed,
            batch_size=run.examples_per_step,
            transform=transforms.build(config.dataset, train=True),
            start_step=first,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=config.dataset.threads,
        )
        stack.callback(batches.close)
        received = stack.enter_context(signals())
        stack.enter_context(jax.set_mesh(run.mesh))
        return _steps(run, state, first, batches, evaluate, checkpoints, progress, received)


def _cadences(run: Assembly) -> dict[str, int]:
    """Steps between two log lines, evaluations and checkpoints; 0 is never."""
    return {
        name: configs.steps(
            run.config[name].every,
            batch_size=run.examples_per_step,
            examples=run.spec.sizes["train"],
            total=run.total_steps,
        )
        for name in ("log", "evals", "checkpoint")
    }


def _steps(
    run: Assembly,
    state: TrainState,
    first: int,
    batches: Iterator[Any],
    evaluate: Evaluation,
    checkpoints: Checkpoints,
    progress: Progress,
    received: Sequence[int],
) -> int:
    config, total = run.config, run.total_steps
    every = _cadences(run)
    averages = Averages(config.optimizer.max_skipped)
    pending: StepOutput | None = None
    saved_at = time.monotonic()
    stop = False

    def due(name: str, step: int) -> bool:
        return bool(every[name]) and step % every[name] == 0

    for step in range(first + 1, total + 1):
        batch = global_batch(next(batches), run.mesh)
        state, output = run.step(state, batch)
        if pending is not None:
            averages.add(step - 1, pending)  # of the last step, while this one runs
        pending = output
        progress.step(step)
        metrics: dict[str, float] = {}
        log = due("log", step) or step == total
        if log or due("evals", step):
            averages.add(step, pending)
            pending = None
        if log:
            taken = averages.take()
            loss = taken.get("train/loss", math.nan)
            rate = progress.log(step, loss)
            taken["train/learning_rate"] = float(run.learning_rate(step - 1))
            evaluate.writers.scalars(step, {**taken, "train/examples_per_second": rate})
        if due("evals", step) or step == total:
            with progress.paused():
                metrics = evaluate(state, step)
            stop = exhausted(config, evaluate.workdir / "metrics.jsonl", metrics)
        timed = config.checkpoint.minutes * 60
        late = bool(timed) and time.monotonic() - saved_at > timed
        ended = bool(received)
        if jax.process_count() > 1 and (log or metrics):
            late, ended = any_process(late, ended)
        elif jax.process_count() > 1:
            late = ended = False
        if metrics or due("checkpoint", step) or late or ended:
            with progress.paused():
                checkpoints.save(state, step, metrics)
            saved_at = time.monotonic()
        if metrics:
            evaluate.write_report(state, finished=stop or step == total)
        if ended or stop:
            break
    checkpoints.wait()
    barrier("end of training")
    if received and step < total and not stop:
        logger.info("stopped by signal %d at step %d; run again to resume", received[0], step)
        return 128 + received[0]
    logger.info("finished at step %d of %d; see %s", step, total, evaluate.workdir)
    return 0
