"""One evaluation of a run, in training or alone: numbers, a sample grid, the report."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import jax
import numpy as np

from genjax.config import ConfigError
from genjax.data import loader, transforms
from genjax.data.catalogue import Dataset
from genjax.evals.evaluate import evaluate, make_evaluate
from genjax.train_state import TrainState, stream
from genjax.training import ema, report
from genjax.training.assemble import Assembly
from genjax.training.checkpoint import digest, digests
from genjax.training.metrics import Writers, grid, save_png

logger = logging.getLogger("genjax")


class Evaluation:
    """What happens at every evaluation: numbers, samples, report."""

    def __init__(self, run: Assembly, dataset: Dataset, workdir: Path, writers: Writers):
        """Jits what is needed; nothing is compiled before the first call."""
        self.run, self.workdir, self.writers = run, workdir, writers
        self.evals = run.config.evals
        self.source = dataset.splits.get(self.evals.split)
        if not self.source:
            raise ConfigError(
                f"config.evals.split={self.evals.split!r}: {run.spec.name} has "
                f"{ {k: len(v) for k, v in dataset.splits.items()} }. Choose one with examples, or "
                f"set dataset.{self.evals.split}='10_percent' to carve it out of train."
            )
        self.sums = make_evaluate(run.method, run.mesh)
        self.sample = jax.jit(
            lambda params, mutable, key: run.method.sample(
                params, mutable, key, self.evals.samples, None
            )
        )
        self.environment = report.environment()

    def __call__(self, state: TrainState, step: int) -> dict[str, float]:
        """Evaluates `state`, writes a sample grid and the report; returns the `eval/` metrics."""
        config = self.run.config
        params = ema.evaluation_params(config, state.params, state.ema)
        key = stream(state.key, "eval")
        batches = loader.eval_batches(
            self.source,
            batch_size=self.evals.batch_size,
            transform=transforms.build(config.dataset, train=False),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            limit=self.evals.limit,
        )
        start = time.perf_counter()
        found = evaluate(self.sums, params, state.mutable, batches, key, self.run.mesh)
        metrics = {f"eval/{name}": value for name, value in found.items()}
        metrics["eval/seconds"] = time.perf_counter() - start
        self.writers.scalars(step, metrics)
        if self.evals.samples:
            # The same noise every time, so that the grids of a run can be compared.
            images = np.asarray(self.sample(params, state.mutable, stream(state.key, "sample")))
            if jax.process_index() == 0:
                picture = grid(images)
                save_png(self.workdir / "samples" / f"step_{step:08d}.png", picture)
                self.writers.images(step, "samples", picture)
        shown = ", ".join(f"{k.removeprefix('eval/')} {v:.4g}" for k, v in metrics.items())
        logger.info("evaluation at step %d: %s", step, shown)
        return metrics

    def write_report(self, state: TrainState, finished: bool) -> None:
        """Writes `report.html`; its digest is left out where one process has not all of state."""
        whole = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(state))
        if jax.process_index() == 0:
            report.write_report(
                self.workdir,
                digest=digest(digests(state)) if whole else None,
                environment=self.environment,
                total=self.run.total_steps,
                finished=finished,
            )
