"""One evaluation of a run, in training or alone: metrics, samples, judges and the report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import UInt8
from ml_collections import ConfigDict

from genjax import modalities
from genjax.config import ConfigError, flatten
from genjax.data import loader
from genjax.data.catalogue import Dataset
from genjax.evals.evaluate import evaluate, make_evaluate
from genjax.evals.judges import Judge
from genjax.files import write_atomic
from genjax.method import Field
from genjax.parallel.mesh import batch_part, fitting, global_batch
from genjax.pictures import grid, save_png
from genjax.sampling import conditions
from genjax.sampling.draw import make_draw
from genjax.train_state import TrainState, stream
from genjax.training import ema, report
from genjax.training.alarms import ringing
from genjax.training.assemble import Assembly
from genjax.training.checkpoint_options import best_metric
from genjax.training.digests import digest, digests
from genjax.training.metrics import Writers

Tree = Any
logger = logging.getLogger("genjax")


class Evaluated(NamedTuple):
    """What one evaluation in training has shown.

    Attributes:
      step: of the state.
      metrics: name -> value, such as "eval/loss".
      picture: the grid of samples; None if samples are no pictures.
      text: the samples as text; None if they are not read.
    """

    step: int
    metrics: dict[str, float]
    picture: UInt8[np.ndarray, "H W 3"] | None
    text: str | None


def check_split(config: ConfigDict, name: str, sizes: Mapping[str, int]) -> None:
    """Refuses data without the split to evaluate, before anything is prepared for it.

    Args:
      config: the run's config.
      name: the data set's name, for the error.
      sizes: the number of examples in each split.

    Raises:
      ConfigError: the split is missing or empty.
    """
    split = config.evals.split
    if not sizes.get(split):
        raise ConfigError(
            f"config.evals.split={split!r}: {name} has {dict(sizes)}. Set dataset."
            f"{split}='5_percent' to carve it out of train, or evals.split to an existing split, "
            "such as 'test'."
        )


class Evaluation:
    """Runs every evaluation: metrics, samples, judges, report.

    Samples are drawn for the conditions of held-out examples if the data have them. The examples
    are always the same, and they are the judges' references.
    """

    def __init__(
        self,
        run: Assembly,
        dataset: Dataset,
        workdir: epath.Path,
        writers: Writers,
        judges: Sequence[Judge] = (),
        split: str = "",
        on_eval: Callable[[Evaluated], None] | None = None,
    ):
        """Prepares the jitted functions and reads the references; compiles at the first call.

        Args:
          run: the run.
          dataset: its data.
          workdir: its folder.
          writers: get the metrics.
          judges: of the samples.
          split: if it is not the run's own; it becomes part of the metric names then.
          on_eval: called on the first process with what each evaluation shows.

        Raises:
          ConfigError: the split has no examples, or the config names a metric that the evaluation
            does not compute.
        """
        self.run, self.workdir, self.writers, self.on_eval = run, workdir, writers, on_eval
        self.prefix = f"eval/{split}/" if split else "eval/"
        self.evals = run.config.evals
        # Judges of the shown samples have nothing to judge if no samples are shown.
        self.judges = [judge for judge in judges if judge.samples or self.evals.samples]
        sizes = {name: len(source) for name, source in dataset.splits.items()}
        check_split(run.config, dataset.spec.name, sizes)
        self.source = dataset.splits[self.evals.split]
        self.sums = make_evaluate(run.method, run.mesh)
        sampled = dataset.decoded or dataset  # the data whose examples samples resemble
        self.field = run.method.output or sampled.spec.generated
        num = max([self.evals.samples, *(judge.samples for judge in self.judges)])
        fields = conditions.in_data(run.method.conditions, sampled.spec)
        held_out: Mapping[str, np.ndarray] = {}
        if num and (fields or self.judges):
            transform = modalities.transforms(run.config.dataset, sampled.spec, train=False)
            held_out = conditions.held_out(sampled.splits[self.evals.split], num, transform)
        self._check_judges(bool(fields))
        self.given = {name: held_out[field] for name, field in fields.items()} if held_out else {}
        self.examples, self.target = held_out, sampled.spec.target
        self.draw = make_draw(run.method, run.mesh, num, self.given) if num else None
        self.shown = self._pictures()
        self.environment = report.environment()
        self._check_metrics()
        for judge in self.judges:  # may take minutes, so it comes after the checks
            judge.prepare()

    def _check_judges(self, conditioned: bool) -> None:
        for judge in self.judges:
            if judge.paired and not conditioned:
                raise ConfigError(
                    "config.evals.judges: one compares each sample with its own reference, but the "
                    "data have no condition of this run's samples. Leave that judge out."
                )

    def _pictures(self) -> Callable[[Tree, Tree, jax.Array], dict[str, jax.Array]] | None:
        """Returns (params, mutable, key) -> the method's pictures of one fixed batch."""
        make, mesh, size = self.run.method.pictures, self.run.mesh, self.evals.batch_size
        if not make or not self.evals.samples:
            return None
        split = mesh.shape["data"] * mesh.shape["fsdp"]
        size = min(size, len(self.source)) // split * split or size  # no padding, if possible
        part, parts = batch_part(mesh)
        batches = loader.eval_batches(
            self.source,
            batch_size=size,
            transform=modalities.transforms(self.run.config.dataset, self.run.spec, train=False),
            process_index=part,
            process_count=parts,
            limit=size,
        )
        batch = global_batch(next(iter(batches))[0], mesh)
        make = jax.jit(make, out_shardings=NamedSharding(mesh, PartitionSpec()))
        return lambda params, mutable, key: make(params, mutable, batch, key)

    def _picture(self, step: int, name: str, picture: np.ndarray) -> None:
        if jax.process_index() == 0:
            file = "step" if name == "samples" else name
            save_png(self.workdir / "samples" / f"{file}_{step:08d}.png", picture)
            self.writers.images(step, name, picture)

    def _show(self, step: int, samples: np.ndarray) -> tuple[np.ndarray | None, str | None]:
        """Writes samples as their modality presents them: a picture, a text, a sound.

        Returns:
          The picture and the text; None if the modality has none.
        """
        folder = self.workdir / "samples"
        if (picture := modalities.picture_of(samples, self.field)) is not None:
            self._picture(step, "samples", picture)
        text = modalities.text_of(samples, self.field)
        if jax.process_index():
            return picture, text
        if text is not None:
            write_atomic(folder / f"step_{step:08d}.txt", text.encode())
            self.writers.text(step, "samples", text)
        if (sound := modalities.player_of(samples, self.field)) is not None:
            write_atomic(folder / f"step_{step:08d}.wav", sound)
        condition_lines = describe(self.run.method.conditions, self.given, len(samples))
        if condition_lines and not any(folder.glob("conditions_*.txt")):
            write_atomic(folder / f"conditions_{step:08d}.txt", condition_lines.encode())
        return picture, text

    def _check_metrics(self) -> None:
        c = self.run.config
        if not best_metric(c)[0]:
            return
        state = self.run.state
        quantities = jax.eval_shape(
            self.run.method.evaluate, state.params, state.mutable, self.run.batch, state.key
        )
        names = [f"{name}{end}" for name in quantities for end in ("", "_se")]
        if derived := self.run.method.derived:
            names += derived(dict.fromkeys(quantities, 0.0))
        if self.draw:
            names += [name for judge in self.judges for name in judge.metrics]
        metric_names = [f"eval/{name}" for name in names]
        for key in ("early_stop.metric", "checkpoint.best"):
            name = flatten(c)[key]
            if name and name not in metric_names:
                raise ConfigError(
                    f"config.{key}={name!r} is not among the evaluations' metrics: "
                    f"{', '.join(metric_names)}."
                )

    def __call__(
        self,
        state: TrainState,
        step: int,
        pictures: bool = True,
        params: dict[str, Tree] | None = None,
    ) -> dict[str, float]:
        """Evaluates `state` and draws a sample grid; returns the `eval/` metrics.

        Without `pictures`, for an evaluation other than the run's own, it shows no samples and
        logs no alarms. `params` replace the averaged parameters that evaluations use.
        """
        config, mesh = self.run.config, self.run.mesh
        if params is None:
            params = ema.evaluation_params(config, state.params, state.ema)
        part, parts = batch_part(mesh)
        batches = loader.eval_batches(
            self.source,
            batch_size=fitting(self.evals.batch_size, self.evals.limit or len(self.source), mesh),
            transform=modalities.transforms(config.dataset, self.run.spec, train=False),
            process_index=part,
            process_count=parts,
            limit=self.evals.limit,
        )
        start, picture, text = time.perf_counter(), None, None
        key = stream(state.key, "eval")
        values = evaluate(self.sums, params, state.mutable, batches, key, mesh)
        if self.run.method.derived:
            values |= self.run.method.derived(values)
        if self.draw and (pictures or self.judges):
            # The same noise every time, so that the grids of a run can be compared.
            samples = self.draw(params, state.mutable, state.key)
            if pictures and self.evals.samples:
                picture, text = self._show(step, samples[: self.evals.samples])
            for judge in self.judges:
                known = (self.target, self.examples, self.given)
                values |= judge.of(samples, *known, self.evals.samples)
        if self.shown and pictures:
            for name, images in self.shown(params, state.mutable, state.key).items():
                rows = np.asarray(images)
                self._picture(step, name, grid(rows.reshape(-1, *rows.shape[2:]), rows.shape[1]))
        metrics = {f"eval/{name}": value for name, value in values.items()}
        metrics["eval/seconds"] = time.perf_counter() - start
        prefixed = {f"{self.prefix}{name.removeprefix('eval/')}": v for name, v in metrics.items()}
        self.writers.scalars(step, prefixed)
        summary = ", ".join(f"{k.removeprefix('eval/')} {v:.4g}" for k, v in metrics.items())
        logger.info("evaluation at step %d: %s", step, summary)
        for warning in self._warnings() if pictures else ():
            logger.warning(warning)
        if self.on_eval and jax.process_index() == 0:
            self.on_eval(Evaluated(step, metrics, picture, text))
        return metrics

    def _warnings(self) -> list[str]:
        """The messages of the method's alarms; none on other processes than the first."""
        if jax.process_index():
            return []
        return ringing(self.run.method.alarms, self.workdir / "metrics.jsonl")

    def write_report(self, state: TrainState, finished: bool) -> None:
        """Writes `report.html`, with the digest of `state` if the run is finished."""
        state_digest = digest(digests(state)) if finished else None
        if jax.process_index() == 0:
            report.write_report(
                self.workdir,
                digest=state_digest,
                environment=self.environment,
                total=self.run.total_steps,
                finished=finished,
                warnings=self._warnings(),
            )


def describe(known: Mapping[str, Field], given: Mapping[str, np.ndarray], num: int) -> str:
    """The conditions of the first `num` samples, one line each; "" if none can be read."""
    columns = {}
    for name, rows in given.items():
        texts = [modalities.text_of(row[None], known[name]) for row in rows[:num]]
        if all(text is not None for text in texts):
            each = [text.strip().splitlines() for text in texts]
            columns[name] = [" ".join(lines[1:] or lines) for lines in each]  # the first is a head
    lines = (
        [
            f"{i + 1}: " + ", ".join(f"{name} {values[i]}" for name, values in columns.items())
            for i in range(min(num, *map(len, columns.values())))
        ]
        if columns
        else []
    )
    return "\n".join(lines)
