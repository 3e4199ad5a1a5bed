"""Labels by name and by number."""

import numpy as np
import pytest

from genjax import modalities
from genjax.config import ConfigError
from genjax.data import sources
from genjax.method import DataSpec, Field
from genjax.modalities import label

CLOTHES = ("bags", "hats", "shirts", "shoes")
NAMED = sources.image_fields((2, 2, 1), 4, CLOTHES)["label"]
NUMBERED = sources.image_fields((2, 2, 1), 12)["label"]


def test_a_class_is_given_by_its_name_or_number():
    for given, number in (("shoes", 3), ("bags", 0), ("3", 3), ("0", 0)):
        found = label.parse(given, NAMED)
        assert found.shape == ()
        assert found.dtype == np.int32
        assert found == number
    assert label.parse("11", NUMBERED) == 11


def test_a_name_that_is_a_number_is_a_name():
    sizes = sources.image_fields((2, 2, 1), 3, ("2", "4", "8"))["label"]
    assert label.parse("2", sizes) == 0
    assert label.parse("1", sizes) == 1  # no name


@pytest.mark.parametrize("given", ["shoos", "4", "-1", "1.0", "", "99"])
def test_no_class_is_one_clear_error(given):
    with pytest.raises(ConfigError, match=f"'{given}': expected a class from 0 to 3, or a name: "):
        label.parse(given, NAMED)
    if given != "4":
        with pytest.raises(ConfigError, match=f"'{given}': expected a class from 0 to 11\\.$"):
            label.parse(given, NUMBERED)


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ConfigError, match="a name: shoes"):
        label.parse("shoos", NAMED)


def test_samples_are_names():
    samples = np.array([3, 0, 1], np.int32)
    assert modalities.text_of(samples, NAMED) == "shoes\nbags\nhats\n"
    assert label.files(samples, NAMED) == {".txt": b"shoes\nbags\nhats\n"}
    assert label.text(samples, NUMBERED) == "3\n0\n1\n"
    assert modalities.picture_of(samples, NAMED) is None


def test_what_methods_are_told_of_labels():
    with_labels = DataSpec("made", sources.image_fields((2, 2, 1), 4, CLOTHES), "image", {})
    without = DataSpec("made", {"image": Field("image", (2, 2, 1), np.dtype("u1"))}, "image", {})
    assert label.num_classes(with_labels) == 4
    assert label.num_classes(without) == 0
    assert label.required_classes(with_labels, "gan.labels=True", True) == 4
    assert label.required_classes(with_labels, "gan.labels=False", False) == 0
    assert label.required_classes(without, "gan.labels=False", False) == 0
    with pytest.raises(ConfigError, match=r"config\.gan\.labels=True, but made has no labels"):
        label.required_classes(without, "gan.labels=True", True)
    assert label.label_condition(with_labels, True) == {"label": NAMED}
    assert label.label_condition(with_labels, False) == {}
