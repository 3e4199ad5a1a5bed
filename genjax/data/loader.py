"""Batches as a pure function of (seed, step), the same for any number of processes.

The stream of training examples is the source, reshuffled each epoch and repeated for ever. Global
batch `step` holds its positions `[step * B, (step + 1) * B)`, and process p of n gets the rows
`[p * B / n, (p + 1) * B / n)` of that batch. Concatenated in the order of the processes, as
`jax.make_array_from_process_local_data` does, the parts equal the batch that a single process would
get, random draws included. The only iterator state is `step`. The orders of two epochs are kept in
memory, 1 to 8 bytes per example.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int

from genjax.config import ConfigError
from genjax.data import sources
from genjax.data.transforms import Example, Transform

Batch = dict[str, np.ndarray]


def _per_process(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"a batch of {batch_size} examples over {process_count} processes: expected a "
            f"multiple of {process_count}. Set batch_size to "
            f"{math.ceil(max(batch_size, 1) / process_count) * process_count}."
        )
    return batch_size // process_count


def train_batches(
    source: Any,
    *,
    seed: int,
    batch_size: int,
    transform: Transform | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Random access to the training batches: `train_batches(...)[step]` is one dict of arrays.

    Args:
      source: `len(source)` examples, `source[i]` a dict of arrays.
      seed: seeds the order and every random draw, 0 <= seed < 2**64.
      batch_size: B, examples in the global batch.
      transform: seeded `(example, rng) -> example`, or None.
      process_index: which part of each batch this process gets.
      process_count: n; must divide B.

    Raises:
      ConfigError: n does not divide B, or the source is empty.
    """
    rows = _per_process(batch_size, process_count)
    count = len(source)
    if not count:
        raise ConfigError("the training split is empty: expected at least one example.")
    order = lru_cache(2)(partial(_order, seed, count))  # a batch rarely spans more than two epochs
    if transform is None:

        def batch(index: int) -> Batch:
            epochs, offsets = np.divmod(index * rows + np.arange(rows), count)
            chosen = [order(int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
            return sources.take(source, np.concatenate(chosen, dtype=np.int64))

        batches = grain.MapDataset.range(sys.maxsize // rows).map(batch)
    else:

        def example(position: int) -> Example:
            epoch, offset = divmod(position, count)
            return source[int(order(epoch)[offset])]

        examples = grain.MapDataset.range(sys.maxsize).seed(seed % 2**32).map(example)
        batches = examples.random_map(_with_high_word(transform, seed)).batch(
            rows, batch_fn=sources.stack
        )
    return batches[process_index::process_count]


def _order(seed: int, count: int, epoch: int) -> Int[np.ndarray, " N"]:
    """The order of an epoch's examples, in the smallest type that holds it."""
    examples = np.arange(count, dtype=np.min_scalar_type(count))
    low, high = seed % 2**32, seed >> 32  # numpy would put the high word of `seed` in the middle
    words = [low, epoch, high] if high else [low, epoch]
    return np.random.default_rng(words).permutation(examples)


def _with_high_word(transform: Transform, seed: int) -> Transform:
    """`transform` with draws that also depend on the seed's upper 32 bits, which grain ignores."""
    if not (high := seed >> 32):
        return transform

    def mixed(example: Example, rng: np.random.Generator) -> Example:
        return transform(example, np.random.default_rng([*rng.integers(2**32, size=4), high]))

    return mixed


def train_loader(
    source: Any,
    *,
    seed: int,
    batch_size: int,
    transform: Transform | None = None,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
) -> grain.DatasetIterator:
    """An endless iterator over `train_batches` from `start_step` on, prefetching in threads.

    Its `close()` stops the threads. With `threads=0` it reads in the caller's thread.
    """
    batches = train_batches(
        source,
        seed=seed,
        batch_size=batch_size,
        transform=transform,
        process_index=process_index,
        process_count=process_count,
    )
    iterator = iter(batches.to_iter_dataset(_read_options(threads)))
    iterator.set_state({"next_index": start_step})
    return iterator


def _read_options(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)


def eval_batches(
    source: Any,
    *,
    batch_size: int,
    transform: Transform | None = None,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
    threads: int = 2,
) -> Iterator[tuple[Batch, Bool[np.ndarray, " b"]]]:
    """This process's part of every evaluation batch, in order, and a mask of the valid rows.

    Every example comes exactly once over all processes. The last batch is padded by repeating the
    last example, with False in the mask; every process gets the same number of batches of the same
    shape. Random draws are seeded by the example's index, so they are the same in each evaluation.

    Args:
      source: the split.
      batch_size: B, examples in the global batch.
      transform: seeded `(example, rng) -> example`, or None.
      process_index: which rows of each batch this process gets, as in training.
      process_count: n; must divide B.
      limit: read only `limit` examples, spread over the whole source (which may be sorted by
        class) and the same in every evaluation of every run; None or 0 reads all.
      threads: prefetch threads.

    Yields:
      (batch of B / n examples, bool[B / n]).
    """
    rows = _per_process(batch_size, process_count)
    chosen = np.arange(len(source))
    if limit and limit < len(source):
        chosen = np.sort(sources.order(len(source))[:limit])
    count = len(chosen)
    if not count:
        return
    padded = np.pad(chosen, (0, -count % batch_size), "edge")
    if transform is not None:  # seeded by the index in the whole source
        source = grain.MapDataset.source(source).seed(0).random_map(transform)
    batches = grain.MapDataset.source(padded.reshape(-1, rows)).map(partial(sources.take, source))
    batches = batches[process_index::process_count]
    iterator = iter(batches.to_iter_dataset(_read_options(threads)))
    try:
        for index, batch in enumerate(iterator):
            first = (index * process_count + process_index) * rows
            yield batch, first + np.arange(rows) < count
    finally:
        iterator.close()
