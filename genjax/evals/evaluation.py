"""One evaluation of a run, in training or alone: numbers, a sample grid, the report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from genjax.config import ConfigError, flatten
from genjax.data import loader, transforms
from genjax.data.catalogue import Dataset
from genjax.evals import text
from genjax.evals.comparison import Comparison, metrics_of
from genjax.evals.evaluate import evaluate, make_evaluate
from genjax.parallel.mesh import batch_part, global_batch
from genjax.sampling import artifacts
from genjax.sampling.draw import make_draw
from genjax.train_state import TrainState, stream
from genjax.training import ema, report
from genjax.training.alarms import ringing
from genjax.training.assemble import Assembly
from genjax.training.checkpoint import best_metric, digest, digests
from genjax.training.metrics import Writers
from genjax.training.pictures import grid, save_png, write_atomic

Tree = Any
logger = logging.getLogger("genjax")


class Evaluation:
    """What happens at every evaluation: numbers, samples, report."""

    def __init__(self, run: Assembly, dataset: Dataset, workdir: Path, writers: Writers):
        """Jits what is needed and reads the examples to be shown; compiles at the first call.

        Raises:
          ConfigError: the split has no examples, or a metric that the config names will not be
            among the evaluation's.
        """
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
        judged = self.evals.generated if self.evals.features else 0
        self.like = dataset.decoded or dataset  # what samples are like
        self.comparison = Comparison(run.config, self.like, run.mesh) if judged else None
        num = max(self.evals.samples, judged)
        self.draw = make_draw(run, num, {}) if num else None
        if run.spec.modality == "text":
            some = [self.source[i]["token"] for i in range(min(len(self.source), 32))]
            self.spaced = text.has_spaces([self.like.tokenizer.decode(row) for row in some])
        self.shown = self._pictures()
        self.environment = report.environment()
        self._check_metrics()

    def _pictures(self) -> Callable[[Tree, Tree, jax.Array], dict[str, jax.Array]] | None:
        """The function (params, mutable, key) -> the method's pictures of one fixed batch."""
        make, mesh, size = self.run.method.pictures, self.run.mesh, self.evals.batch_size
        if not make or not self.evals.samples:
            return None
        split = mesh.shape["data"] * mesh.shape["fsdp"]
        size = min(size, len(self.source)) // split * split or size  # no padding, if possible
        part, parts = batch_part(mesh)
        read = loader.eval_batches(
            self.source,
            batch_size=size,
            transform=transforms.build(self.run.config.dataset, train=False),
            process_index=part,
            process_count=parts,
            limit=size,
        )
        batch = global_batch(next(iter(read))[0], mesh)
        make = jax.jit(make, out_shardings=NamedSharding(mesh, PartitionSpec()))
        return lambda params, mutable, key: make(params, mutable, batch, key)

    def _picture(self, step: int, name: str, picture: np.ndarray) -> None:
        if jax.process_index() == 0:
            file = "step" if name == "samples" else name
            save_png(self.workdir / "samples" / f"{file}_{step:08d}.png", picture)
            self.writers.images(step, name, picture)

    def _show(self, step: int, samples: np.ndarray) -> None:
        spec, tokenizer = self.like.spec, self.like.tokenizer
        if (picture := artifacts.picture(samples, spec)) is not None:
            self._picture(step, "samples", picture)
        read = artifacts.text(samples, spec, tokenizer)
        if read is not None and jax.process_index() == 0:
            write_atomic(self.workdir / "samples" / f"step_{step:08d}.txt", read.encode())
            self.writers.text(step, "samples", read)

    def _check_metrics(self) -> None:
        c = self.run.config
        if not best_metric(c)[0]:
            return
        state = self.run.state
        found = jax.eval_shape(
            self.run.method.evaluate, state.params, state.mutable, self.run.batch, state.key
        )
        names = [f"{name}{end}" for name in found for end in ("", "_se")] + metrics_of(c)
        if derived := self.run.method.derived:
            names += derived(dict.fromkeys(found, 0.0))
        if self.like.spec.modality == "text" and self.draw:
            names += text.diversity([["a"], ["b"]])
        known = [f"eval/{name}" for name in names]
        for key in ("early_stop.metric", "checkpoint.best"):
            name = flatten(c)[key]
            if name and name not in known:
                raise ConfigError(
                    f"config.{key}={name!r} is not among the evaluations' metrics: "
                    f"{', '.join(known)}."
                )

    def __call__(self, state: TrainState, step: int, pictures: bool = True) -> dict[str, float]:
        """Evaluates `state` and draws a sample grid; returns the `eval/` metrics.

        Without `pictures` it is not the run's own: it shows, and warns of, nothing.
        """
        config, mesh = self.run.config, self.run.mesh
        params = ema.evaluation_params(config, state.params, state.ema)
        part, parts = batch_part(mesh)
        batches = loader.eval_batches(
            self.source,
            batch_size=self.evals.batch_size,
            transform=transforms.build(config.dataset, train=False),
            process_index=part,
            process_count=parts,
            limit=self.evals.limit,
        )
        start = time.perf_counter()
        key = stream(state.key, "eval")
        found = evaluate(self.sums, params, state.mutable, batches, key, mesh)
        if self.run.method.derived:
            found |= self.run.method.derived(found)
        if self.draw and (pictures or self.comparison):
            # The same noise every time, so that the grids of a run can be compared.
            samples = self.draw(params, state.mutable, state.key)
            if pictures and self.evals.samples:
                self._show(step, samples[: self.evals.samples])
            if self.like.spec.modality == "text":
                texts = [self.like.tokenizer.decode(row) for row in samples]
                found |= text.diversity(text.units(texts, self.spaced))
            if self.comparison:
                found |= self.comparison(samples[: self.evals.generated])
        if self.shown and pictures:
            for name, made in self.shown(params, state.mutable, state.key).items():
                rows = np.asarray(made)
                self._picture(step, name, grid(rows.reshape(-1, *rows.shape[2:]), rows.shape[1]))
        metrics = {f"eval/{name}": value for name, value in found.items()}
        metrics["eval/seconds"] = time.perf_counter() - start
        self.writers.scalars(step, metrics)
        shown = ", ".join(f"{k.removeprefix('eval/')} {v:.4g}" for k, v in metrics.items())
        logger.info("evaluation at step %d: %s", step, shown)
        for warning in self._warnings() if pictures else ():
            logger.warning(warning)
        return metrics

    def _warnings(self) -> list[str]:
        """What the method's alarms say, on the first process."""
        if jax.process_index():
            return []
        return ringing(self.run.method.alarms, self.workdir / "metrics.jsonl")

    def write_report(self, state: TrainState, finished: bool) -> None:
        """Writes `report.html`, with the digest of `state`."""
        found = digest(digests(state))
        if jax.process_index() == 0:
            report.write_report(
                self.workdir,
                digest=found,
                environment=self.environment,
                total=self.run.total_steps,
                finished=finished,
                warnings=self._warnings(),
            )
