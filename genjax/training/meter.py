"""What the metrics say of a run's devices: their use, their memory, the time to the first step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
from jax.extend.core import ClosedJaxpr

logger = logging.getLogger("genjax")


class Peak(NamedTuple):
    """How a step's work is compared with the best that the devices can do.

    Attributes:
      count: returns the FLOPs of the model in a program, on all devices together.
      flops_per_second: of all devices together; 0 if it is not known. Then nothing is counted.
    """

    count: Callable[[ClosedJaxpr], float]
    flops_per_second: float


UNKNOWN = Peak(lambda program: 0.0, 0.0)


def mfu(flops: float, steps_per_second: float, flops_per_second: float) -> float:
    """Returns the share of the devices' peak that the model's own FLOPs use (MFU).

    "Model FLOPs utilization" of Chowdhery et al. 2022, section 4.1: what is recomputed in the
    backward pass does not count.

    Args:
      flops: of the model in one step.
      steps_per_second: the measured rate.
      flops_per_second: the peak of all devices together.
    """
    return flops * steps_per_second / flops_per_second


def peak_memory(devices: Iterable[jax.Device]) -> int | None:
    """Returns the most bytes that one of the devices has held so far; None if none tells."""
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return max(peaks, default=None)


class Meter:
    """Measures a run while it trains.

    Args:
      began: when the command began, by `time.perf_counter`; None for now.
      peak: how the work of a step is compared with the devices' best.
    """

    def __init__(self, began: float | None = None, peak: Peak = UNKNOWN):
        """Waits for the first step."""
        self._began = time.perf_counter() if began is None else began
        self._peak, self._flops = peak, 0.0
        self._seconds_to_first_step: float | None = None

    def compiled(self, traced: Callable[[], jax.stages.Traced], steps: int) -> None:
        """Counts the FLOPs of a step, at the first program that is compiled.

        Args:
          traced: returns the program; it is traced already, and JAX remembers that.
          steps: steps in the program.
        """
        if not self._peak.flops_per_second or self._flops:
            return
        try:
            self._flops = self._peak.count(traced().jaxpr) / steps
        except Exception as error:  # a metric may not end a run
            logger.warning("no train/mfu: the FLOPs of a step cannot be counted: %r", error)

    def stepped(self) -> None:
        """Notes that the first step is done; later calls do nothing."""
        if self._seconds_to_first_step is None:
            self._seconds_to_first_step = time.perf_counter() - self._began
            logger.info("first step after %.1f s", self._seconds_to_first_step)

    def metrics(self, steps_per_second: float) -> dict[str, float]:
        """Returns what is known, for a log line: the time to the first step only once."""
        metrics: dict[str, float] = {}
        if self._flops:
            peak = self._peak.flops_per_second
            metrics["train/mfu"] = mfu(self._flops, steps_per_second, peak)
        if (memory := peak_memory(jax.local_devices())) is not None:
            metrics["train/peak_memory_bytes"] = memory
        if self._seconds_to_first_step:
            metrics["train/seconds_to_first_step"] = self._seconds_to_first_step
            self._seconds_to_first_step = 0.0
        return metrics
