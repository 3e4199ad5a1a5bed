"""Whole batches out of a source are its examples, one by one."""

import numpy as np
import pytest
from datasets import dataset

from genjax.data import arrays, sources

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 6, 6, 3), np.uint8)
LABELS = RNG.integers(0, 5, 20).astype(np.int32)


class Slow:
    """A source without `take`, which counts what is read of it."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 20

    def __getitem__(self, index):
        self.read.append(index)
        return {"image": IMAGES[index], "label": np.int32(LABELS[index])}


def columns():
    return sources.Columns({"image": IMAGES, "label": LABELS})


FIELDS = sources.image_fields((6, 6, 3), 5)
UNLABELLED = sources.image_fields((6, 6, 3), 0)
SOURCES = {
    "columns": columns,
    "unlabelled": lambda: sources.Columns({"image": IMAGES}),
    "resized": lambda: sources.Fitted(columns(), ["image"], 1, (4, 8)),
    "memory": lambda: sources.Memory(Slow(), FIELDS),
    "memory unlabelled": lambda: sources.Memory(Slow(), UNLABELLED),
    "subset": lambda: sources.Subset(columns(), np.arange(20)[::-1]),
    "slow": Slow,
    "slow subset": lambda: sources.Subset(Slow(), np.arange(20)[::-1]),
    "chosen": lambda: sources.Chosen(columns(), {"shade": "image"}),
    "slow chosen": lambda: sources.Chosen(Slow(), {"image": "image"}),
    "joined": lambda: sources.Joined(Slow(), sources.Columns({"extra": LABELS[::-1]})),
}


def test_a_file_of_arrays_is_read_whole(tmp_path, monkeypatch):
    np.savez(tmp_path / "file.npz", image=IMAGES, label=LABELS)
    for channels, size in ((0, ()), (3, 6)):
        keys = {"path": str(tmp_path / "file.npz"), "channels": channels, "image_size": size}
        source = arrays.load(dataset(name="npz", **keys)).splits["train"]
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
    memory = sources.Memory(slow, FIELDS)
    for _ in range(2):
        memory.take(np.array([4, 2, 4]))
        memory[2]
    assert sorted(slow.read) == [2, 4]


def test_a_batch_is_a_copy():
    source = sources.Columns({"image": IMAGES.copy(), "label": LABELS})
    source.take(np.array([1, 2]))["image"][:] = 0
    np.testing.assert_array_equal(source[1]["image"], IMAGES[1])
