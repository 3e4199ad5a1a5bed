"""Metrics of many steps, on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from genjax.training.step import StepOutput


class Diverged(RuntimeError):
    """Too many updates in a row were not finite."""


class Averages:
    """Sums the metrics of steps between two log lines, and counts the skipped updates."""

    def __init__(self, max_skipped: int, window: Mapping[str, Any] | None = None):
        """Stops the run after `max_skipped` steps in a row with a skipped update.

        `window` has the sums of an earlier process, see `window()`.
        """
        window = window or {}
        self._sums = {name: np.array(sums) for name, sums in window.get("sums", {}).items()}
        self._skipped, self._in_a_row = window.get("skipped", 0), window.get("in_a_row", 0)
        self._max = max_skipped

    def window(self) -> dict[str, Any]:
        """Returns the sums since the last log line, as plain JSON data.

        Saved with a checkpoint, they let a resumed run log the averages of an uninterrupted one.
        """
        sums = {name: sums.tolist() for name, sums in self._sums.items()}
        return {"sums": sums, "skipped": self._skipped, "in_a_row": self._in_a_row}

    def add(self, step: int, output: StepOutput) -> None:
        """Fetches and adds the output of one step, or of several that end at `step`."""
        output, bad = jax.device_get(output), {}
        for name, value in output.metrics.items():
            rows = value.reshape(-1, 2).astype(np.float64)
            finite = np.isfinite(rows).all(1)
            bad[name] = ~finite
            rows = rows[finite]
            if len(rows):
                self._sums[name] = self._sums.get(name, 0.0) + rows.sum(0)
        skipped = np.reshape(output.skipped, -1)
        self._skipped += int(skipped.sum())
        for at, count in enumerate(skipped, start=step - len(skipped) + 1):
            self._in_a_row = self._in_a_row + 1 if count else 0
            if self._in_a_row >= self._max:
                index = at - step + len(skipped) - 1
                names = ", ".join(name for name, steps in bad.items() if steps[index])
                raise Diverged(
                    f"{self._in_a_row} steps in a row until step {at} had a loss or gradient that "
                    "was not finite; those updates were skipped. Not finite in the last one: "
                    f"{names or 'the gradient'}. Lower optimizer.learning_rate, "
                    "set optimizer.clip_norm, or look at the data. The last checkpoint is "
                    "untouched."
                )

    @staticmethod
    def loss(taken: Mapping[str, float]) -> float:
        """Returns the loss to show on the progress bar: the first phase's."""
        return next((v for n, v in taken.items() if n.rsplit("/", 1)[-1] == "loss"), math.nan)

    def take(self) -> dict[str, float]:
        """Returns the means since the last call and the number of skipped updates; resets both."""
        means = {f"train/{k}": float(s[0] / s[1]) for k, s in self._sums.items() if s[1]}
        taken = {**means, "train/skipped": float(self._skipped)}
        self._sums, self._skipped = {}, 0
        return taken
