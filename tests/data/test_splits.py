from __future__ import annotations

import numpy as np
import pytest
from datasets import dataset

from genjax.config import ConfigError
from genjax.data import splits


def splitmix64(n):
    z = (n * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_splits_are_disjoint_cover_everything_and_do_not_move():
    def indices(**keys):
        carved = splits.carve({"train": 1000}, dataset(**keys))
        return {s: set(np.arange(1000) if i is None else i) for s, (_, i) in carved.items()}

    parts = indices(validation="10_percent", test="55_examples")
    assert list(parts) == ["train", "validation", "test"]
    assert {s: len(i) for s, i in parts.items()} == {"train": 845, "validation": 100, "test": 55}
    assert set.union(*parts.values()) == set(range(1000))
    assert indices(validation="20_percent", test="55_examples")["test"] == parts["test"]
    assert list(indices()) == ["train"]
    # The same on every machine and in every later version: SplitMix64, in whole numbers.
    assert splitmix64(1) == 0xE220A8397B1DCDAF  # the first output of the generator's seed 0
    by_hash = sorted(range(1000), key=lambda i: splitmix64(i + 1))
    assert indices(test="5_examples")["test"] == set(by_hash[:5])
    assert parts["validation"] == set(by_hash[55:155])
    # Spread over the whole set, as data sets are often sorted by class.
    assert abs(np.mean(list(parts["validation"])) - 500) < 4 * 1000 / np.sqrt(12 * 100)


def test_the_end_of_tiny_shakespeare_is_held_out_as_by_others():
    total = 1115394  # characters; nanoGPT trains on the first int(0.9 * total)
    found = splits.cut(total, (), dataset(validation="10_percent"))
    assert found == {"train": slice(0, 1003854), "validation": slice(1003854, total)}
    found = splits.cut(total, (), dataset(validation="5_percent", test="5_percent"))  # as TFDS
    sizes = {split: part.stop - part.start for split, part in found.items()}
    assert sizes == {"train": 1003854, "validation": 55770, "test": 55770}
    assert splits.cut(total, (), dataset()) == {"train": slice(0, total)}
    # In floats 65.1 * 1000 / 100 is a little below 651.
    assert splits.cut(1000, (), dataset(validation="34.9_percent"))["train"].stop == 651
    assert set(splits.cut(total, ("test",), dataset(validation="5_percent", test="5_percent"))) == {
        *("train", "validation"),
    }


@pytest.mark.parametrize("total", [10, 99, 12345])
@pytest.mark.parametrize(
    ("validation", "test"), [("7_percent", "29_percent"), ("", "33.3_percent")]
)
def test_parts_of_a_text_lie_side_by_side(total, validation, test):
    parts = list(splits.cut(total, (), dataset(validation=validation, test=test)).values())
    joined = np.concatenate([np.arange(total)[part] for part in parts])
    np.testing.assert_array_equal(joined, np.arange(total))


def test_a_split_that_cannot_be_is_one_clear_error():
    with pytest.raises(ConfigError, match=r"test='5_examples': the end of the text is held out"):
        splits.cut(100, (), dataset(test="5_examples"))
    with pytest.raises(ConfigError, match="leave nothing of the text"):
        splits.cut(100, (), dataset(validation="50_percent", test="50_percent"))
