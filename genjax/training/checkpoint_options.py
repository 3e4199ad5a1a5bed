"""Which checkpoints orbax keeps, and how it writes their arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint._src.metadata import array_metadata_store  # has the types of random keys
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

LEAST_SLICE = 2**20  # bytes that each device writes, if several share an array


def best_metric(config: ConfigDict) -> tuple[str, str]:
    """Returns (metric, "min" or "max") for the best checkpoint; ("", ...) if none is kept."""
    if config.checkpoint.best:
        return config.checkpoint.best, config.checkpoint.mode
    return config.early_stop.metric, config.early_stop.mode


def array_types() -> Any:
    """How orbax writes arrays: a small one, which many devices have, is written by one of them.

    By default each of N devices writes an Nth. Cutting a small array takes longer than writing it,
    and training waits for the cuts.
    """
    arrays = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=LEAST_SLICE,
        array_metadata_store=array_metadata_store.Store(),
    )
    return ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))


def preservation(config: ConfigDict) -> keep.PreservationPolicy:
    """Keeps the newest few and the one with the best evaluation; only finite values can be best."""
    policies: list[keep.PreservationPolicy] = [keep.LatestN(config.checkpoint.keep)]
    name, mode = best_metric(config)
    if name:
        worst = math.inf if mode == "min" else -math.inf

        def value(metrics: Mapping[str, float]) -> float:
            metric = metrics.get(name, worst)
            return metric if math.isfinite(metric) else worst

        policies.append(
            keep.BestN(
                get_metric_fn=value,
                reverse=mode == "min",
                n=1,
                keep_checkpoints_without_metrics=False,
            )
        )
    return keep.AnyPreservationPolicy(policies)


def no_best(metrics: Mapping[str, float]) -> float:
    """Orbax stores the metrics of a checkpoint only if it is given a function to rank them."""
    return 0.0
