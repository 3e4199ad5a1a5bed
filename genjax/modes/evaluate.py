"""--mode=eval: a checkpoint of a run, or samples that are there already."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Mapping
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
from genjax.training import workdir
from genjax.training.checkpoint import Checkpoints
from genjax.training.early_stop import exhausted
from genjax.training.metrics import JsonlWriter, Writers
from genjax.training.profile import traced

logger = logging.getLogger("genjax")


def evaluate(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Evaluates a checkpoint, or judges samples, and prints the metrics."""
    if flags.samples:
        with answered(lambda: STOPPING), traced(config.profile, folder, "the judging"):
            return tell_metrics(judge(config, flags.samples, flags.references))
    return tell_metrics(evaluate_checkpoint(config, folder, flags))


def evaluate_checkpoint(
    config: ConfigDict, folder: epath.Path, flags: argparse.Namespace
) -> dict[str, float]:
    """The `eval/` metrics of a checkpoint.

    They go into the run's metrics and report as well if they are of its newest checkpoint and usual
    weights, with nothing in the config changed but the devices, `profile`, `cpu_library`, who
    judges and the split, and if no process trains the run at this moment. Those of another split
    than the run's own are called `eval/<split>/...`, and leave its pictures alone.
    """
    spec_of(folder)  # complain of a missing run first
    run, dataset, content = prepare(config, folder)
    workdir.check_same_data(folder, run.spec, flags.allow_config_change, content)
    state = restore_at(run, folder, flags.checkpoint)
    stored = workdir.read_config(folder)
    own = comparable(stored) == comparable(config)
    own = own and int(state.step) == Checkpoints(folder).latest()
    own = own and not any(getattr(flags, name) for name in WEIGHTS)
    split = "" if config.evals.split == stored.evals.split else config.evals.split
    params = parameters(run, folder, state, weights_of(flags))
    tell_who_computes()
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(run.mesh))
        stack.enter_context(answered(lambda: STOPPING))
        if own:
            holder = stack.enter_context(workdir.lock(folder))
            own = not largest(int(bool(holder)))
            if holder:
                logger.info("the run is live (%s): its files are left alone", holder)
        if own:
            stack.enter_context(logging_to(folder))
        write = own and jax.process_index() == 0
        writers = Writers([JsonlWriter(folder / "metrics.jsonl", sys.maxsize)] if write else [])
        judging = judges.build(config, dataset.decoded or dataset, run.mesh)
        evaluation = Evaluation(run, dataset, folder, writers, judging, split)
        logger.info("evaluating step %d; programs are compiled first", int(state.step))
        with traced(config.profile, folder, "the evaluation"):
            pictures = own and not split
            metrics = evaluation(state, int(state.step), pictures=pictures, params=params)
        if own:
            stopped = exhausted(config, folder / "metrics.jsonl")
            evaluation.write_report(state, int(state.step) >= run.total_steps or stopped)
        writers.close()
    return metrics


def comparable(config: ConfigDict) -> dict[str, Any]:
    """What of a config decides the metrics, whoever judges and whatever the split and devices."""
    kept = configs.to_json(config)
    for key in ("mesh", "profile", "cpu_library"):
        kept.pop(key, None)
    named = ("judges", "split", *(name.rpartition(".")[2] for name in config.evals.judges))
    kept["evals"] = {key: value for key, value in kept["evals"].items() if key not in named}
    return kept


def judge(config: ConfigDict, samples: str, references: str) -> dict[str, float]:
    """What samples are worth beside the data of a config, or beside references; how many they are.

    Args:
      config: its data, devices and judges.
      samples: an .npz file, a split of the data, or a file of texts, a line each.
      references: the right ones in the same form and order, for judges that compare one by one.

    Raises:
      ConfigError: they cannot be read, the config has no judge, or one does not go with them.
    """
    if not references.endswith(".npz") and references not in (*sources.SPLITS, ""):
        texts = lines("--samples", samples)
        return {"texts": len(texts)} | overlap.compare(texts, lines("--references", references))
    if not config.evals.judges:
        raise ConfigError(
            "config.evals.judges is empty: give --config.evals.judges=fidelity, of images, or "
            "diversity, of texts."
        )
    dataset, mesh = catalogue.load(config.dataset), make_mesh(config)
    rows = _read(dataset, samples, "--samples")
    right = _read(dataset, references, "--references") if references else None
    if right is not None and len(right) != len(rows):
        raise ConfigError(
            f"--samples={samples} has {len(rows)} and --references={references} {len(right)}: "
            "expected as many of both."
        )
    found: dict[str, float] = {}
    with jax.set_mesh(mesh):
        asked = judges.build(config, dataset, mesh)
        judges.check(config, rows, dataset)
        if right is None and any(one.paired for one in asked):
            raise ConfigError("--references is missing: a judge compares samples one by one.")
        for one in asked:  # looks at the samples before it prepares itself
            # A fixed choice spread over all of them: they may be sorted.
            count = min(one.samples or len(rows), len(rows))
            chosen = np.sort(sources.order(len(rows))[:count])
            beside = None if right is None else right[chosen]
            found |= one.judge(rows[chosen], beside, {})
            found["samples"] = max(count, found.get("samples", 0))
    return found


def _read(dataset: catalogue.Dataset, given: str, flag: str) -> np.ndarray:
    """Samples in an .npz file, its array `samples` or its only one, or those of a split.

    Raises:
      ConfigError: no such file or split, or no such array in it.
    """
    if source := dataset.splits.get(given):
        return sources.take(source, np.arange(len(source)))[dataset.spec.target]
    field = dataset.spec.generated
    reader = getattr(modalities.find(field), "read", None)
    if not given.endswith(".npz") and reader is not None:
        return reader(given, field)
    if not given.endswith(".npz"):
        raise ConfigError(
            f"{flag}={given!r}: expected an .npz file, as --mode=sample writes it, or one of the "
            f"splits {', '.join(dataset.splits)}."
        )
    try:
        arrays = npz.Arrays(given)
        names = ["samples"] if "samples" in arrays else list(arrays)
        if len(names) != 1:
            raise ConfigError(
                f"it holds the arrays {', '.join(names) or 'none'}: expected one, or one that is "
                "called samples."
            )
        rows = arrays[names[0]]
    except ConfigError as error:
        raise ConfigError(f"{flag}={given}: {error}") from error
    lacks = rows.ndim == len(field.shape) and field.shape[-1:] == (1,)
    return rows[..., None] if lacks else rows


def tell_metrics(metrics: Mapping[str, float]) -> int:
    """Prints them, on the first process."""
    if jax.process_index() == 0:
        for name, value in metrics.items():
            print(f"{name} {value if isinstance(value, int) else format(value, '.6g')}")
    return 0
