"""--mode=eval: evaluates a checkpoint of a run, or existing samples."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from genjax import config as configs
from genjax import modalities
from genjax.bars import STOPPING, answered
from genjax.config import ConfigError
from genjax.data import catalogue, npz, sources
from genjax.evals import judges
from genjax.evals.evaluation import Evaluation
from genjax.evals.judges import overlap
from genjax.flags import WEIGHTS
from genjax.modalities.text import lines
from genjax.modes.runs import (
    logging_to,
    parameters,
    prepare,
    restore_at,
    spec_of,
    tell_who_computes,
    weights_of,
)
from genjax.parallel.distributed import largest
from genjax.parallel.mesh import make_mesh
from genjax.sampling import conditions
from genjax.training import workdir
from genjax.training.checkpoint import Checkpoints
from genjax.training.early_stop import exhausted
from genjax.training.metrics import JsonlWriter, Writers
from genjax.training.profile import traced

logger = logging.getLogger("genjax")


def evaluate(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Evaluates a checkpoint, or judges given samples, and prints the metrics."""
    if flags.samples:
        with answered(lambda: STOPPING), traced(config.profile, folder, "the judging"):
            return tell_metrics(judge(config, flags.samples, flags.references))
    return tell_metrics(evaluate_checkpoint(config, folder, flags))


def evaluate_checkpoint(
    config: ConfigDict, folder: epath.Path, flags: argparse.Namespace
) -> dict[str, float]:
    """Returns the `eval/` metrics of a checkpoint.

    They are also written to the run's metrics and report if the checkpoint is the newest, the
    weights are the default ones, no process is training the run, and the config differs only in
    the devices, `profile`, `cpu_library`, the judges and the split. Metrics of a split other than
    the run's own are named `eval/<split>/...`; the run's pictures are then not replaced.
    """
    spec_of(folder)  # report a missing run first
    run, dataset, content = prepare(config, folder)
    workdir.check_same_data(folder, run.spec, flags.allow_config_change, content)
    state = restore_at(run, folder, flags.checkpoint)
    stored = workdir.read_config(folder)
    recorded = comparable(stored) == comparable(config)
    recorded = recorded and int(state.step) == Checkpoints(folder).latest()
    recorded = recorded and not any(getattr(flags, name) for name in WEIGHTS)
    split = "" if config.evals.split == stored.evals.split else config.evals.split
    params = parameters(run, folder, state, weights_of(flags))
    tell_who_computes()
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(run.mesh))
        stack.enter_context(answered(lambda: STOPPING))
        if recorded:
            holder = stack.enter_context(workdir.lock(folder))
            recorded = not largest(int(bool(holder)))
            if holder:
                logger.info("the run is live (%s): its files are left alone", holder)
        if recorded:
            stack.enter_context(logging_to(folder))
        write = recorded and jax.process_index() == 0
        writers = Writers([JsonlWriter(folder / "metrics.jsonl", sys.maxsize)] if write else [])
        judging = judges.build(config, dataset.decoded or dataset, run.mesh)
        evaluation = Evaluation(run, dataset, folder, writers, judging, split)
        logger.info("evaluating step %d; programs are compiled first", int(state.step))
        with traced(config.profile, folder, "the evaluation"):
            pictures = recorded and not split
            metrics = evaluation(state, int(state.step), pictures=pictures, params=params)
        if recorded:
            stopped = exhausted(config, folder / "metrics.jsonl")
            evaluation.write_report(state, int(state.step) >= run.total_steps or stopped)
        writers.close()
    return metrics


def comparable(config: ConfigDict) -> dict[str, Any]:
    """The config values that affect the metrics, without the judges, the split and the devices."""
    values = configs.to_json(config)
    for key in ("mesh", "profile", "cpu_library"):
        values.pop(key, None)
    ignored = ("judges", "split", *(name.rpartition(".")[2] for name in config.evals.judges))
    values["evals"] = {key: value for key, value in values["evals"].items() if key not in ignored}
    return values


def judge(config: ConfigDict, samples: str, references: str) -> dict[str, float]:
    """The metrics of samples against a config's data or references, and the number of samples.

    Args:
      config: names the data, the devices and the judges.
      samples: an .npz file, a split of the data, or a text file with one text per line.
      references: for judges that compare each sample with its reference: in the same format and
        order, or the split for whose conditions the samples were drawn.

    Raises:
      ConfigError: a file cannot be read, or the config has no judge or one that does not fit the
        samples.
    """
    file = Path(references)
    named = references.endswith(".npz") or references in sources.SPLITS
    if not named and (file.suffix or (file.exists() and not file.is_dir())):
        texts = lines("--samples", samples)
        return {"texts": len(texts)} | overlap.compare(texts, lines("--references", references))
    if not config.evals.judges:
        raise ConfigError(
            "config.evals.judges is empty: give --config.evals.judges=fidelity for images, or "
            "diversity for texts."
        )
    dataset, mesh = catalogue.load(config.dataset), make_mesh(config)
    rows = _read(dataset, samples, "--samples")
    metrics: dict[str, float] = {}
    with jax.set_mesh(mesh):
        scorers = judges.build(config, dataset, mesh)
        judges.check(config, rows, dataset)
        if not references and any(scorer.paired or scorer.fields for scorer in scorers):
            raise ConfigError(
                "--references is missing: a judge compares each sample with its reference."
            )
        names = sorted({name for scorer in scorers for name in scorer.fields})
        correct = _examples(config, dataset, samples, references, len(rows), names)
        for scorer in scorers:
            scorer.prepare()
            # A fixed subset from all over the file, because the samples may be sorted.
            count = min(scorer.samples or len(rows), len(rows))
            chosen = np.sort(sources.order(len(rows))[:count])
            given = {name: correct[name][chosen] for name in scorer.fields}
            target = correct[dataset.spec.target][chosen] if correct else None
            metrics |= scorer.judge(rows[chosen], target, given)
            metrics["samples"] = max(count, metrics.get("samples", 0))
    return metrics


def _examples(
    config: ConfigDict,
    dataset: catalogue.Dataset,
    samples: str,
    location: str,
    count: int,
    names: Collection[str],
) -> dict[str, np.ndarray]:
    """The reference of each sample, and its fields `names`; {} if the location is "".

    The examples of a split are in the order in which --mode=sample --conditions=SPLIT takes them,
    unless the samples are themselves a split.

    Raises:
      ConfigError: as `_read`; another number of references; a file without one of the fields.
    """
    if not location:
        return {}
    source, target = dataset.splits.get(location), dataset.spec.target
    if source and samples not in dataset.splits:
        transform = modalities.transforms(config.dataset, dataset.spec, train=False)
        return conditions.held_out(source, count, transform)
    if source:
        rows = sources.take(source, np.arange(len(source)))
    else:
        rows = {target: _read(dataset, location, "--references")}
        arrays = npz.Arrays(location) if names else {}
        if absent := [name for name in names if name not in arrays]:
            raise ConfigError(
                f"--references={location}: a judge needs the field {absent[0]!r} of each example. "
                "Add it to the file as an array, or give a split of the data."
            )
        rows |= {name: arrays[name] for name in names}
    for name in (target, *names):
        if len(rows[name]) != count:
            raise ConfigError(
                f"--samples={samples} has {count} samples, --references={location} has "
                f"{len(rows[name])}: expected the same number."
            )
    return rows


def _read(dataset: catalogue.Dataset, location: str, flag: str) -> np.ndarray:
    """Reads the samples of a split, or of an .npz file: its array `samples`, or its only array.

    Raises:
      ConfigError: there is no such file, split or array.
    """
    field = dataset.spec.generated
    if source := dataset.splits.get(location):
        rows = sources.take(source, np.arange(len(source)))[dataset.spec.target]
        return rows[:, 0] if "wordings" in field.facts else rows
    reader = getattr(modalities.find(field), "read", None)
    if not location.endswith(".npz") and reader is not None:
        return reader(location, field)
    if not location.endswith(".npz"):
        raise ConfigError(
            f"{flag}={location!r}: expected an .npz file, as --mode=sample writes it, or one of "
            f"the splits {', '.join(dataset.splits)}."
        )
    try:
        arrays = npz.Arrays(location)
        names = ["samples"] if "samples" in arrays else list(arrays)
        if len(names) != 1:
            raise ConfigError(
                f"it holds the arrays {', '.join(names) or 'none'}: expected one, or one "
                "named samples."
            )
        rows = arrays[names[0]]
    except ConfigError as error:
        raise ConfigError(f"{flag}={location}: {error}") from error
    lacks_channel = rows.ndim == len(field.shape) and field.shape[-1:] == (1,)
    return rows[..., None] if lacks_channel else rows


def tell_metrics(metrics: Mapping[str, float]) -> int:
    """Prints the metrics, on the first process."""
    if jax.process_index() == 0:
        for name, value in metrics.items():
            print(f"{name} {value if isinstance(value, int) else format(value, '.6g')}")
    return 0
