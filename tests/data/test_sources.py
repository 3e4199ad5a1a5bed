"""Whole batches out of a source are its examples, one by one."""

import numpy as np
import pytest

from genjax.data import sources

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 6, 6, 3), np.uint8)
LABELS = RNG.integers(0, 5, 20)


class Slow:
    """A source without `take`, which counts what is read of it."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 20

    def __getitem__(self, index):
        self.read.append(index)
        return {"image": IMAGES[index], "label": np.int32(LABELS[index])}


SOURCES = {
    "arrays": lambda: sources.Arrays(IMAGES, LABELS),
    "unlabelled": lambda: sources.Arrays(IMAGES, None),
    "resized": lambda: sources.Arrays(IMAGES, LABELS, 1, 4),
    "memory": lambda: sources.Memory(Slow(), (6, 6, 3), True),
    "memory unlabelled": lambda: sources.Memory(Slow(), (6, 6, 3), False),
    "subset": lambda: sources.Subset(sources.Arrays(IMAGES, LABELS), np.arange(20)[::-1]),
    "slow": Slow,
    "slow subset": lambda: sources.Subset(Slow(), np.arange(20)[::-1]),
}


def test_a_file_of_arrays_is_read_whole(tmp_path, monkeypatch):
    np.savez(tmp_path / "file.npz", image=IMAGES, label=LABELS)
    for channels, size in ((0, 0), (3, 6)):
        source = sources.npz(str(tmp_path / "file.npz"), channels, size).splits["train"]
        source = getattr(source, "_source", source)
        monkeypatch.setattr(sources, "stack", None)  # one by one would need it
        batch = source.take(np.array([1, 5]))
        np.testing.assert_array_equal(batch["image"], IMAGES[[1, 5]])


@pytest.mark.parametrize("name", SOURCES)
def test_a_batch_is_its_examples(name):
    source = SOURCES[name]()
    chosen = np.array([3, 17, 3, 0])
    batch = sources.take(source, chosen)
    expected = sources.stack([source[int(i)] for i in chosen])
    assert batch.keys() == expected.keys()
    for key, value in batch.items():
        assert value.dtype == expected[key].dtype
        np.testing.assert_array_equal(value, expected[key])


def test_memory_reads_each_example_once():
    slow = Slow()
    memory = sources.Memory(slow, (6, 6, 3), True)
    for _ in range(2):
        memory.take(np.array([4, 2, 4]))
        memory[2]
    assert sorted(slow.read) == [2, 4]


def test_a_batch_is_a_copy():
    arrays = sources.Arrays(IMAGES.copy(), LABELS)
    arrays.take(np.array([1, 2]))["image"][:] = 0
    np.testing.assert_array_equal(arrays[1]["image"], IMAGES[1])
