from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.data import loader, sources, transforms


class Counting:
    """Example i holds i in every pixel."""

    def __init__(self, count, size=4):
        self.images = np.broadcast_to(
            (np.arange(count) % 256).astype(np.uint8)[:, None, None, None], (count, size, size, 1)
        )
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"image": self.images[index], "label": np.int32(index)}


def jitter(example, rng):
    return {**example, "draw": rng.random(3)}


def labels(batches, steps):
    return np.concatenate([batches[step]["label"] for step in steps])


def test_every_epoch_visits_each_example_once_in_a_new_order():
    batches = loader.train_batches(Counting(48), seed=3, batch_size=8)
    epochs = [labels(batches, range(6 * e, 6 * e + 6)) for e in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(48))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])
    assert not np.array_equal(epochs[0], np.arange(48))


def test_epochs_do_not_drop_the_rest_of_a_division():
    batches = loader.train_batches(Counting(10), seed=0, batch_size=4)
    stream = labels(batches, range(5))
    for epoch in stream.reshape(2, 10):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))


def test_a_batch_may_be_of_several_epochs():
    batches = loader.train_batches(Counting(10), seed=0, batch_size=24)
    stream = labels(batches, range(5))
    for epoch in stream.reshape(12, 10):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))


def test_the_order_is_the_same_with_random_transforms_and_without():
    options = {"seed": 4, "batch_size": 8, "process_index": 1, "process_count": 2}
    with_draws = loader.train_batches(Counting(30), transform=jitter, **options)
    without = loader.train_batches(Counting(30), **options)
    np.testing.assert_array_equal(labels(with_draws, range(20)), labels(without, range(20)))


def test_all_orders_of_an_epoch_are_equally_likely():
    epochs = labels(loader.train_batches(Counting(3), seed=0, batch_size=3), range(6000))
    _, counts = np.unique(epochs.reshape(-1, 3), axis=0, return_counts=True)
    # 1,000 times each, with a standard deviation of 29.
    np.testing.assert_allclose(counts, np.full(6, 1000), atol=120)


def test_a_source_is_asked_for_rows_whose_numbers_do_not_wrap():
    class Sized(Counting):
        def take(self, indices):
            return {"label": indices * 1000}

    found = loader.train_batches(Sized(200), seed=0, batch_size=200)[0]["label"]
    np.testing.assert_array_equal(np.sort(found), 1000 * np.arange(200))


def test_batches_are_arrays_of_the_examples_dtypes():
    batch = loader.train_batches(Counting(10), seed=0, batch_size=4)[0]
    assert batch["image"].shape == (4, 4, 4, 1)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


def test_the_order_depends_on_the_seed_and_on_nothing_else():
    first, again, other = (
        labels(loader.train_batches(Counting(40), seed=s, batch_size=8), range(5))
        for s in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("seed", "order", "draw"),
    [
        (5, [20, 32, 25, 21, 22, 9, 7, 29], [0.4483086334556726, 0.05024186519821461]),
        (2**32 - 1, [7, 1, 32, 12, 38, 0, 3, 6], [0.17889811079660034, 0.28053352276256405]),
    ],
)
def test_the_streams_of_seeds_of_32_bits_are_what_they_were(seed, order, draw):
    batch = loader.train_batches(Counting(40), seed=seed, batch_size=8, transform=jitter)[7]
    assert batch["label"].tolist() == order
    np.testing.assert_array_equal(batch["draw"][0, :2], draw)


def test_the_upper_word_of_a_seed_decides_too():
    """Also where numpy would see the same words: seed 5 in epoch 3 and 5 + 3 * 2**32 in epoch 0."""
    seeds = (5, 5 + 2**32, 5 + 3 * 2**32, 5 + 2**62)
    batches = [
        loader.train_batches(Counting(40), seed=s, batch_size=40, transform=jitter) for s in seeds
    ]
    orders = [tuple(each[epoch]["label"]) for each in batches for epoch in range(5)]
    draws = [tuple(row) for each in batches for e in range(5) for row in each[e]["draw"]]
    assert len(set(orders)) == len(orders)
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_see_the_batches_of_one(count):
    def part(index, total):
        return loader.train_batches(
            Counting(50),
            seed=7,
            batch_size=8,
            transform=jitter,
            process_index=index,
            process_count=total,
        )

    whole = part(0, 1)
    parts = [part(index, count) for index in range(count)]
    for step in (0, 1, 5, 6, 7, 1000):  # 6 crosses the epoch
        for key in ("image", "label", "draw"):
            np.testing.assert_array_equal(
                np.concatenate([p[step][key] for p in parts]), whole[step][key]
            )


def test_random_draws_differ_by_example_and_by_epoch():
    batches = loader.train_batches(Counting(8), seed=0, batch_size=8, transform=jitter)
    draws = np.concatenate([batches[step]["draw"].ravel() for step in range(4)])
    assert len(np.unique(draws)) == draws.size


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_starting_at_a_step_equals_going_on(threads):
    options = {"seed": 1, "batch_size": 6, "transform": jitter}
    batches = loader.train_batches(Counting(20), **options)
    for start in (0, 7):
        iterator = loader.train_loader(Counting(20), **options, start_step=start, threads=threads)
        for step in range(start, start + 9):
            batch = next(iterator)
            for key, value in batches[step].items():
                np.testing.assert_array_equal(batch[key], value)
        iterator.close()


def test_closing_stops_the_threads():
    def alive():
        return {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}

    before = alive()  # of other tests' iterators, which may end while this one runs
    iterator = loader.train_loader(Counting(20), seed=0, batch_size=4, threads=3)
    next(iterator)
    started = alive() - before
    assert started
    iterator.close()
    deadline = time.monotonic() + 10
    while started & alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not started & alive()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_an_error_in_a_thread_reaches_the_caller():
    class Broken(Counting):
        def __getitem__(self, index):
            raise ConfigError("broken.png cannot be decoded")

    iterator = loader.train_loader(Broken(20), seed=0, batch_size=4, threads=2)
    with pytest.raises(ConfigError, match=r"broken\.png"):
        next(iterator)
    iterator.close()


def test_a_batch_is_a_copy():
    source = Counting(4)
    source.images = source.images.copy()
    batch = loader.train_batches(source, seed=0, batch_size=4)[0]
    batch["image"][:] = 99
    assert source.images.max() == 3


@pytest.mark.parametrize("make", [loader.train_batches, loader.train_loader])
def test_a_batch_that_the_processes_cannot_share_is_refused(make):
    with pytest.raises(ConfigError, match=r"batch of 6 .* 4 processes.*Set batch_size to 8"):
        make(Counting(20), seed=0, batch_size=6, process_count=4)
    with pytest.raises(ConfigError, match="batch of 6"):
        next(loader.eval_batches(Counting(20), batch_size=6, process_count=4))


def test_an_empty_source_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        loader.train_batches(Counting(0), seed=0, batch_size=4)
    assert list(loader.eval_batches(Counting(0), batch_size=4)) == []


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(24, None, 24), (21, None, 21), (3, None, 3), (21, 10, 10), (21, 100, 21), (21, 0, 21)],
)
def test_evaluation_sees_each_example_exactly_once(count, limit, expected, processes):
    parts = [
        list(
            loader.eval_batches(
                Counting(count),
                batch_size=8,
                transform=jitter,
                process_index=index,
                process_count=processes,
                limit=limit,
            )
        )
        for index in range(processes)
    ]
    assert {len(part) for part in parts} == {-(-expected // 8)}
    seen, draws = [], {}
    for part in parts:
        for batch, valid in part:
            assert batch["image"].shape == (8 // processes, 4, 4, 1)
            assert valid.shape == (8 // processes,)
            assert valid.dtype == bool
            seen += batch["label"][valid].tolist()
            draws |= dict(zip(batch["label"][valid].tolist(), batch["draw"][valid], strict=True))
    assert len(seen) == expected
    assert set(seen) <= set(range(count))
    assert len(set(seen)) == expected
    alone = loader.eval_batches(Counting(count), batch_size=4, transform=jitter)
    for batch, valid in alone:  # the draws belong to the example, however it is batched
        for label, draw in zip(batch["label"][valid].tolist(), batch["draw"][valid], strict=True):
            if label in draws:
                np.testing.assert_array_equal(draw, draws[label])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_limited_evaluation_sees_all_classes_of_a_sorted_source(processes):
    class Sorted(Counting):
        def __getitem__(self, index):
            return {"index": np.int64(index), "label": np.int32(index // 100)}

    parts = [
        loader.eval_batches(
            Sorted(1000),
            batch_size=64,
            process_index=index,
            process_count=processes,
            limit=200,
        )
        for index in range(processes)
    ]
    seen, labels = [], []
    for step in zip(*parts, strict=True):
        for batch, valid in step:
            seen += batch["index"][valid].tolist()
            labels += batch["label"][valid].tolist()
    # The same for every seed, number of processes and version, and in the source's order.
    assert seen == sorted(sources.order(1000)[:200].tolist())
    # 20 of each class on average, with a standard deviation of 3.8.
    assert all(8 <= labels.count(label) <= 32 for label in range(10))


def test_evaluation_batches_laid_side_by_side_are_in_order():
    parts = [
        list(loader.eval_batches(Counting(10), batch_size=4, process_index=i, process_count=2))
        for i in range(2)
    ]
    rows = [np.concatenate([p[step][0]["label"] for p in parts]).tolist() for step in range(3)]
    valid = [np.concatenate([p[step][1] for p in parts]).tolist() for step in range(3)]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert valid == [[True] * 4, [True] * 4, [True, True, False, False]]


def test_one_thread_feeds_28_pixel_images_faster_than_a_small_machine_trains():
    crop, flip = transforms.crop(2, "image"), transforms.flip("image")
    batches = loader.train_batches(
        Counting(4096, size=28),
        seed=0,
        batch_size=128,
        transform=lambda example, rng: flip(crop(example, rng), rng),
    )
    batches[0]
    start = time.process_time()
    for step in range(24):
        batches[step]
    rate = 24 * 128 / (time.process_time() - start)
    assert rate > 5000, f"{rate:.0f} examples per second of processor time"
