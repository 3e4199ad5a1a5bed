"""Warnings about a run that goes wrong, computed from the metrics that it has written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from etils import epath

from genjax.method import Alarm
from genjax.training.metrics import read_metrics


def ringing(alarms: Sequence[Alarm], path: epath.Path) -> list[str]:
    """Returns a message for each alarm whose metric has been below its bound for long enough.

    No counter needs saving: the file has the whole history, also after a resume. A value that is
    not finite does not count as below.

    Args:
      alarms: the method's alarms.
      path: `metrics.jsonl`.
    """
    metrics = read_metrics(path) if alarms else {}
    return [
        f"{name} has been below {alarm.below:.4g} for {alarm.evaluations} evaluations: "
        f"{alarm.advice}"
        for alarm in alarms
        for name, history in metrics.items()
        if re.fullmatch(alarm.metric, name) and _rings(alarm, history)
    ]


def _rings(alarm: Alarm, history: Mapping[int, float | None]) -> bool:
    last = list(history.values())[-alarm.evaluations :]
    low = [value is not None and value < alarm.below for value in last]
    return len(last) == alarm.evaluations and all(low)
