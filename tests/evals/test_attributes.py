"""The judge of attributes, with a classifier whose answers can be read off the pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import avatars
from genjax.data.catalogue import Dataset
from genjax.data.sources import Columns
from genjax.evals import features, judges
from genjax.evals.judges import attributes
from genjax.method import DataSpec, Field
from genjax.parallel.mesh import make_mesh

SHAPE, LABELS = (2, 2, 1), {"color": 3, "form": 2}
# Of twelve examples, 6, 4 and 2 have the three colours, and 7 and 5 the two forms.
COLOR = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2], np.int32)
FORM = np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1], np.int32)


def drawn(color, form):
    """Pictures whose first pixel is the colour's number, and whose second the form's."""
    images = np.zeros((len(color), *SHAPE), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = color, form
    return images


def dataset(images, target="image", dtype=np.uint8, labels=LABELS, **columns):
    fields = {"image": Field("image", SHAPE, np.dtype(dtype))}
    for name, classes in labels.items():
        fields[name] = Field("label", (), np.dtype(np.int32), {"num_classes": classes})
    split = Columns({"image": images, **columns})
    return Dataset(DataSpec("toy", fields, target, {"train": len(images)}), {"train": split}, "")


def built(data):
    """The judge that a config names."""
    config = configs.base()
    config.evals.judges = ("attributes",)
    (judge,) = judges.build(judges.with_sections(config, {}), data, make_mesh(config))
    return judge


def apply(params, images):
    pixels = images[:, 0, :, 0]
    logits = [jax.nn.one_hot(pixels[:, i], n) for i, n in enumerate(LABELS.values())]
    return pixels.astype(jnp.float32), jnp.concatenate(logits, 1)


@pytest.fixture
def judge(monkeypatch):
    """The judge, with a reader of pixels as its classifier."""
    reader = features.Features("classifier", 2, {}, apply, "0" * 64, LABELS)
    monkeypatch.setattr(features, "build", lambda name, dataset: reader)
    made = built(dataset(drawn(COLOR, FORM), color=COLOR, form=FORM))
    made.prepare()
    return made


def test_the_references_themselves_score_what_the_classifier_does(judge):
    """It misreads two colours, one of them of a picture whose form it misreads too."""
    images = drawn(COLOR, FORM)
    images[:2, 0, 0, 0] = 2
    images[1, 0, 1, 0] = 1 - images[1, 0, 1, 0]
    found = judge.judge(images, images, {"color": COLOR, "form": FORM})
    assert set(found) == set(judge.metrics)
    assert found["color_accuracy"] == pytest.approx(10 / 12)
    assert found["form_accuracy"] == pytest.approx(11 / 12)
    assert found["attribute_accuracy"] == pytest.approx(21 / 24)
    assert found["all_attributes"] == pytest.approx(10 / 12)
    shares = np.array([1 / 2, 0, *[1] * 10])
    assert found["attribute_accuracy_se"] == pytest.approx(shares.std() / 12**0.5)
    for name in ("attribute_accuracy", "all_attributes"):
        assert found[f"reference_{name}"] == found[name]


def test_samples_of_other_rows_are_right_by_chance(judge):
    """Each picture for each row: a label is right with the sum of its classes' squared shares."""
    samples = np.repeat(np.arange(12), 12)
    rows = np.tile(np.arange(12), 12)
    images, known = drawn(COLOR, FORM), {"color": COLOR[rows], "form": FORM[rows]}
    found = judge.judge(images[samples], images[rows], known)
    assert found["color_accuracy"] == pytest.approx((6**2 + 4**2 + 2**2) / 12**2)
    assert found["form_accuracy"] == pytest.approx((7**2 + 5**2) / 12**2)
    assert found["attribute_accuracy"] == pytest.approx((56 + 74) / 288)
    pairs = np.unique(np.stack([COLOR, FORM]), axis=1, return_counts=True)[1]
    assert found["all_attributes"] == pytest.approx((pairs**2).sum() / 12**2)
    assert found["reference_attribute_accuracy"] == found["reference_all_attributes"] == 1


def test_it_asks_for_the_labels_of_the_rows(judge):
    assert judge.fields == ("color", "form")
    assert judge.paired
    assert judge.samples == attributes.Options().generated


def test_the_first_caption_of_an_avatar_determines_every_attribute():
    """Characters with the same first caption have the same attributes."""
    drawn_characters = avatars.characters()["test_unseen"]
    captions = [wordings[0] for wordings in avatars.captions(drawn_characters)]
    rows = [tuple(sorted(one.items())) for one in drawn_characters.named()]
    assert len(set(zip(captions, rows, strict=True))) == len(set(captions)) == len(set(rows))
    partial = [wordings[-1] for wordings in avatars.captions(drawn_characters)]
    assert len(set(partial)) < len(set(rows))


def test_data_that_it_cannot_judge():
    images = drawn(COLOR, FORM)
    with pytest.raises(ConfigError, match=r"needs data with labels, and toy has none.*avatars"):
        built(dataset(images, labels={}))
    with pytest.raises(ConfigError, match=r"8-bit images, but 'image' of toy.*float32.*dequantize"):
        built(dataset(images, dtype=np.float32))
    with pytest.raises(ConfigError, match=r"8-bit images, but 'form' of toy is of kind 'label'"):
        built(dataset(images, target="form"))
    with pytest.raises(ConfigError, match=r"uint8\[12, 1, 2, 1\]: expected uint8\[N, 2, 2, 1\]"):
        attributes.check(images[:, :1], dataset(images))
