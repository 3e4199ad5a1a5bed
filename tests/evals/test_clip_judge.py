"""Judges that see with a run of CLIP: scores and recalls by hand, the vectors of a stored run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import captions
from genjax.data.alphabets import Bytes, Characters
from genjax.data.catalogue import Dataset
from genjax.data.sources import Columns
from genjax.data.transforms import fit
from genjax.evals import contrastive, judges
from genjax.evals.judges import clip as judge_of_clip
from genjax.evals.judges import zero_shot as judge_of_labels
from genjax.method import DataSpec, Field
from genjax.methods import clip
from genjax.parallel.mesh import make_mesh
from genjax.training import workdir
from genjax.training.assemble import assemble
from genjax.training.checkpoint import Checkpoints

RNG = np.random.default_rng(0)
SMALL = {"model.vit.depth": 1, "model.vit.width": 8, "model.text.depth": 1, "model.text.width": 8}
SMALL |= {"clip.features": 4, "batch_size": 8, "model.vit.heads": 2, "dataset.text.length": 12}
LETTERS = Characters("abcdefghijklmnopqrstuvwxyz .", {"eos": 28})
COLOURS = ("red", "dark_green", "blue")
TEXTS = ["red", "blue", "red", "dark green", "blue", "red"]


def dataset(images=None, shape=(4, 4, 1), labels=("colour",), classes=COLOURS, **changes):
    """Images whose caption is the name of a colour, their label."""
    images = np.zeros((len(TEXTS), *shape), np.uint8) if images is None else images
    field = captions.field(LETTERS, 12)
    number = [COLOURS.index(t.replace(" ", "_")) for t in TEXTS]
    facts = {"num_classes": 3, **({"classes": classes} if classes else {})}
    fields = {"image": Field("image", shape, np.dtype(np.uint8)), "text": field}
    fields |= {name: Field("label", (), np.dtype(np.int32), facts) for name in labels}
    fields = {k: f for k, f in (fields | changes).items() if f is not None}
    rows = {"image": images, "text": captions.rows(TEXTS, field, "toy", "train")}
    rows |= {name: np.array(number, np.int32) for name in labels}
    spec = DataSpec("toy", fields, "image", {"train": len(images)})
    return Dataset(spec, {"train": Columns(rows)}, "")


def built(name, data, **options):
    """The judge that a config names."""
    config = configs.base()
    config.evals.judges, config.evals.batch_size = (name,), 8
    with config.unlocked():
        config.evals[name] = options
    mesh = make_mesh(config, jax.devices()[:1])
    (judge,) = judges.build(judges.with_sections(config, {}), data, mesh)
    return judge


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---- scores --------------------------------------------------------------------------------------


def test_scores_by_their_definitions():
    images, texts = unit(RNG.normal(size=(30, 5))), unit(RNG.normal(size=(30, 5)))
    found = judge_of_clip.scores(images, texts, 30)
    cosines = images @ texts.T
    own = np.diagonal(cosines)
    assert found["clip_score"] == pytest.approx(100 * np.where(own > 0, own, 0).mean())
    assert (own < 0).any()
    for k in (1, 5, 10):
        of_text = [list(np.argsort(-cosines[:, j])).index(j) < k for j in range(30)]
        of_image = [list(np.argsort(-cosines[i])).index(i) < k for i in range(30)]
        assert found[f"clip_r{k}"] == pytest.approx(np.mean(of_text))
        assert found[f"clip_caption_r{k}"] == pytest.approx(np.mean(of_image))


def test_pairs_are_searched_among_as_many_candidates_and_each_counts_once():
    counted = [np.arange(250)[group][part] for group, part in judge_of_clip.groups(250, 100)]
    np.testing.assert_array_equal(np.concatenate(counted), np.arange(250))
    assert {group.stop - group.start for group, _ in judge_of_clip.groups(250, 100)} == {100}
    assert [*judge_of_clip.groups(7, 100)] == [(slice(0, 7), slice(0, 7))]
    same = judge_of_clip.scores(np.ones((250, 1)), np.ones((250, 1)), 100)
    assert same["clip_score"] == 100
    assert same["clip_r5"] == pytest.approx(0.05)  # chance


def test_class_vectors_are_means_of_templates_and_images_have_the_nearest():
    vectors = unit(RNG.normal(size=(4, 3, 6)))
    classes = clip.zero_shot(jnp.float32(vectors))
    np.testing.assert_allclose(classes, unit(vectors.mean(1)), atol=1e-6)
    images = unit(RNG.normal(size=(9, 6)))
    right = (images @ np.asarray(classes).T).argmax(1)
    np.testing.assert_array_equal(clip.classify(jnp.float32(images), classes), right)


# ---- judges, with vectors that can be read off the pixels and the letters ------------------------


class Toy:
    """An encoder of three colours: an image is the colour of its first pixel."""

    def __init__(self, path, key, batch_size, mesh):
        self.prepare, self.asked = (lambda: None), []

    def images(self, rows):
        return np.eye(3)[rows[:, 0, 0, 0]]

    def texts(self, texts):
        self.asked += texts
        plain = [c.replace("_", " ") for c in COLOURS]
        return np.array([[float(c in text) for c in plain] for text in texts])


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(contrastive, "Encoder", Toy)


def test_samples_are_compared_with_the_captions_of_held_out_examples(toy):
    data = dataset()
    judge = built("clip", data)
    assert (judge.paired, judge.fields, judge.samples) == (True, ("text",), 1000)
    rows = data.splits["train"].take(np.arange(6))
    samples, references = np.zeros((6, 4, 4, 1), np.uint8), np.zeros((6, 4, 4, 1), np.uint8)
    references[:, 0, 0, 0] = rows["colour"]
    found = judge.of(samples, "image", {**rows, "image": references}, {}, 6)
    assert set(found) == set(judge.metrics)
    assert found["clip_score"] == pytest.approx(50)  # three of six captions are "red"
    assert found["reference_clip_score"] == 100
    assert found["reference_clip_r1"] == pytest.approx(3 / 6)  # one of each of three colours
    assert found["clip_r1"] == pytest.approx(1 / 6)
    several = np.stack([rows["text"], rows["text"][::-1]], 1)
    again = judge.judge(samples, references, {"text": several})
    assert again == found


def test_labels_are_read_by_texts_about_their_classes(toy):
    data = dataset(labels=("colour", "hue"))
    templates = ("a {class} thing.", "the {label} {class}.")
    judge = built("zero_shot", data, templates=templates)
    rows = data.splits["train"].take(np.arange(6))
    samples, references = np.zeros((6, 4, 4, 1), np.uint8), np.zeros((6, 4, 4, 1), np.uint8)
    references[:, 0, 0, 0] = rows["colour"]
    given = {"colour": rows["colour"], "hue": np.zeros(6, np.int32)}
    found = judge.judge(samples, references, given)
    assert set(found) == set(judge.metrics)
    assert found["zero_shot_colour_accuracy"] == pytest.approx(3 / 6)
    assert found["zero_shot_hue_accuracy"] == 1
    assert found["zero_shot_accuracy"] == pytest.approx(3 / 4)
    assert found["reference_zero_shot_accuracy"] == pytest.approx(3 / 4)
    assert judge_of_labels.texts_of("a_b", ("dark_green",), templates) == [
        ["a dark green thing.", "the a b dark green."]
    ]
    one = built("zero_shot", data, labels=("colour",))
    assert one.metrics == ("zero_shot_accuracy", "reference_zero_shot_accuracy")


@pytest.mark.parametrize(
    ("name", "data", "options", "says"),
    [
        (
            "clip",
            {"text": None},
            {},
            r"needs one caption for each image.*has the fields image, col",
        ),
        ("clip", {"image": Field("real", (3,), np.dtype(np.float32))}, {}, "judges 8-bit images"),
        ("zero_shot", {"labels": ()}, {}, "needs data with labels, and toy has none"),
        ("zero_shot", {"classes": ()}, {}, r"the classes of 'colour' of toy have numbers"),
        ("zero_shot", {}, {"labels": ("color",)}, r"labels='color'.*colour"),
        ("zero_shot", {}, {"templates": ()}, "templates is empty"),
        (
            "zero_shot",
            {},
            {"templates": ("a photo",)},
            r"'a photo': expected a text with \{class\}",
        ),
        ("zero_shot", {}, {"templates": ("{class} {x}",)}, "no other braces"),
        ("zero_shot", {}, {"templates": ("{class} {",)}, "no other braces"),
    ],
)
def test_data_and_options_that_do_not_fit_are_refused(toy, name, data, options, says):
    with pytest.raises(ConfigError, match=says):
        built(name, dataset(**data), **options)


# ---- a stored run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A run of CLIP on other data: colour images of 8 x 8, and bytes; its assembly and state."""
    folder = tmp_path_factory.mktemp("clip")
    config = configs.load("configs/clip.py:tiny", SMALL)
    fields = {"image": Field("image", (8, 8, 3), np.dtype(np.uint8))}
    fields["text"] = captions.field(Bytes({"eos": 256}), 12)
    spec = DataSpec("other", fields, "image", {"train": 64, "validation": 64})
    run = assemble(config, spec, devices=jax.devices()[:1])
    state = run.init()
    average = {"0.98": jax.tree.map(lambda x: x + 0.1, state.ema["0.98"])}
    state = state.replace(ema=average)
    workdir.write_config(folder, config, spec, ["test"], 1)
    checkpoints = Checkpoints(folder, config)
    checkpoints.save(state, 1, {})
    checkpoints.close()
    return folder, run, average["0.98"]


def test_vectors_are_those_of_the_averages_of_pictures_resized_and_texts_encoded_anew(stored):
    folder, run, average = stored
    mesh = make_mesh(configs.base(), jax.devices()[:1])
    encoder = contrastive.Encoder(str(folder), "config.evals.clip.path", 4, mesh)
    encoder.prepare()
    images = RNG.integers(0, 256, (6, 12, 16, 1), np.uint8)
    texts = ["a cat", "b", "çé", "a long text that is cut", "d", "e"]
    batch = {
        "image": np.stack([fit(x, 3, (8, 8)) for x in images]),
        "text": captions.rows(texts, run.spec.fields["text"], "test", "test"),
    }
    mutable = {name: {} for name in clip.NETWORKS}
    expected = run.method.apply(average, mutable, jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(encoder.images(images), expected["image"], atol=1e-5)
    np.testing.assert_allclose(encoder.texts(texts), expected["text"], atol=1e-5)
    with pytest.raises(ConfigError, match="text 2 of the split judged is empty"):
        encoder.texts(["a", " "])


def test_a_run_that_is_missing_or_of_another_method_is_named(stored, tmp_path):
    key = r"config\.evals\.clip\.path"
    with pytest.raises(ConfigError, match=rf"{key}='': expected the workdir"):
        built("clip", dataset())
    with pytest.raises(ConfigError, match=rf"{key}='{tmp_path}': no run there"):
        built("clip", dataset(), path=str(tmp_path))
    config, spec = configs.load("configs/classifier.py:tiny"), stored[1].spec
    labelled = {**spec.fields, "label": Field("label", (), np.dtype(np.int32), {"num_classes": 2})}
    labelled.pop("text")
    workdir.write_config(tmp_path, config, spec._replace(fields=labelled), ["test"], 1)
    with pytest.raises(ConfigError, match=rf"{key}=.*a run of method 'classifier', which has no v"):
        built("clip", dataset(), path=str(tmp_path))
