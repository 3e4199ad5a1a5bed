"""Early stopping, decided by the metrics that a run has written."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import jax
from etils import epath
from ml_collections import ConfigDict

from genjax.parallel.distributed import largest
from genjax.training.metrics import read_metrics

logger = logging.getLogger("genjax")


def exhausted(config: ConfigDict, path: epath.Path) -> bool:
    """Whether `early_stop.metric` has not improved for `early_stop.patience` evaluations.

    No counter needs saving: the file has the whole history, also after a resume. An improvement is
    a change by more than `early_stop.min_delta`; a value that is not finite is no improvement.

    Args:
      config: the whole config.
      path: `metrics.jsonl`; only the first process reads it.
    """
    c = config.early_stop
    if not c.metric:
        return False
    stale = jax.process_index() == 0 and _stale(c, read_metrics(path).get(c.metric, {}))
    return bool(largest(int(stale)))


def _stale(c: ConfigDict, history: Mapping[int, float | None]) -> bool:
    sign = 1.0 if c.mode == "min" else -1.0
    best, since = float("inf"), 0
    for value in history.values():
        if value is not None and sign * value < best - c.min_delta:
            best, since = sign * value, 0
        else:
            since += 1
    if since >= c.patience:
        logger.info(
            "early stop: %s has not improved on %.6g for %d evaluations",
            *(c.metric, sign * best, since),
        )
    return since >= c.patience
