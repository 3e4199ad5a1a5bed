"""Feature extractors: the classifier trained once, published weights, names."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
import pathlib
import signal
import urllib.error

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data.catalogue import Dataset
from genjax.data.digest import data_digest
from genjax.data.sources import Chosen, Columns, image_fields
from genjax.evals import features, metric_names, trained
from genjax.method import DataSpec, Field
from genjax.methods import classifier
from genjax.parallel.mesh import make_mesh
from genjax.training import loop
from genjax.training.checkpoint import Checkpoints

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Watched(Columns):
    """A source that does something when its examples are read."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        note = np.zeros((len(images), 2), np.float32)  # that no classifier asks for
        super().__init__({"image": images, "label": labels, "note": note})
        self.look = lambda: None

    def __getitem__(self, index):
        self.look()
        return super().__getitem__(index)

    def take(self, indices):
        for _ in indices:
            self.look()
        return super().take(indices)


def sides(count, seed, labelled=True, dtype=np.uint8, name="sides"):
    """Noise that is brighter on the left (0) or on the right (1)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)
    images = rng.integers(0, 128, (count, 6, 6, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 3] += 128
    train, test = (Watched(images[s], labels[s]) for s in (slice(40, None), slice(40)))
    fields = image_fields((6, 6, 1), 2 if labelled else 0)
    fields["image"] = fields["image"]._replace(dtype=np.dtype(dtype))
    fields["note"] = Field("real", (2,), np.dtype(np.float32))
    spec = DataSpec(name, fields, "image", {"train": len(train), "test": len(test)})
    return Dataset(spec, {"train": train, "test": test}, "made here")


@pytest.fixture
def short(monkeypatch):
    """The classifier's own config, but small and trained for a moment."""
    own = trained.classifier_config

    def config():
        changed = {
            "duration": "30_steps",
            "batch_size": 16,
            "optimizer.learning_rate": 1e-2,
            "model.channels": (8,),
            "model.features": 8,
            "evals.batch_size": 16,
            "checkpoint.every": "10_steps",
        }
        return configs.override(own(), changed)

    monkeypatch.setattr(trained, "classifier_config", config)


def folders(cache):
    return list((cache / "classifiers").iterdir())


def test_the_classifier_is_trained_once_and_right(short, cache, caplog, monkeypatch):
    data = sides(200, 0, dtype=np.float32)  # a dequantised run: its sources are 8-bit all the same
    locked = []

    def look():  # the lock is free while the digest is taken, and held in training
        for path in (cache / "locks").glob("classifier-*"):
            with path.open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked.append(path)

    data.splits["train"].look = look
    mesh = make_mesh(configs.base())
    with caplog.at_level(logging.INFO, "genjax"), jax.set_mesh(mesh):
        found = features.build("classifier", data)
    data.splits["train"].look = lambda: None
    assert len(set(locked)) == 1
    assert "classifier of sides has an accuracy of 100.00 % on the test split" in caplog.text
    announced, *lines = (r.getMessage() for r in caplog.records if r.name == "genjax")
    assert "needs a classifier of sides, which is now trained once, on 30 steps" in announced
    assert all(line.startswith("classifier: ") for line in lines[:-1])
    assert any("step 30/30, loss" in line for line in lines)
    assert (found.name, found.dim) == ("classifier", 8)
    images = np.stack([data.splits["test"][i]["image"] for i in range(40)])
    labels = np.array([data.splits["test"][i]["label"] for i in range(40)])
    values, logits = jax.jit(found.apply)(found.params, images)
    assert values.shape == (40, 8)
    assert values.dtype == logits.dtype == np.float32
    np.testing.assert_array_equal(logits.argmax(-1), labels)

    monkeypatch.setattr(loop, "train", lambda *args: pytest.fail("trained again"))
    again = features.build("classifier", data)
    assert again.digest == found.digest
    jax.tree.map(np.testing.assert_array_equal, again.params, found.params)
    (folder,) = folders(cache)
    assert json.loads((folder / "config.json").read_text())["config"]["method"] == "classifier"
    (folder / "parameters.npz").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"parameters\.npz cannot be read.*Delete it"):
        features.build("classifier", data)


def test_data_with_several_labels_have_a_classifier_of_all(short, monkeypatch):
    data, seen = sides(200, 0), {}
    names = {"image": "image", "side": "label", "other": "label", "note": "note"}
    facts = {name: {"num_classes": n} for name, n in (("side", 2), ("other", 3))}
    fields = {name: data.spec.fields[field] for name, field in names.items()}
    fields |= {n: Field("label", (), np.dtype(np.int32), f) for n, f in facts.items()}
    splits = {split: Chosen(source, names) for split, source in data.splits.items()}

    def train(config, dataset, path):
        seen["fields"], seen["example"] = dataset.spec.fields, dataset.splits["train"][0]
        weights, _ = classifier.network(config, dataset.spec).init(jax.random.key(0))
        path.parent.mkdir(parents=True)
        np.savez(path, accuracy=1.0, **flatten_dict(weights, sep="/"))

    monkeypatch.setattr(trained, "_train", train)
    data = data._replace(spec=data.spec._replace(fields=fields), splits=splits)
    found = features.build("classifier", data)
    assert list(seen["fields"]) == ["image", "side", "other"]
    assert set(seen["example"]) == set(seen["fields"])
    assert found.labels == {"side": 2, "other": 3}
    assert found.params["head"]["bias"].shape == (5,)


def test_an_interrupted_training_goes_on_and_ends_the_same(short, cache, monkeypatch):
    data = sides(200, 0)
    whole = features.build("classifier", data)
    monkeypatch.setenv("GENJAX_DATA", str(cache / "other"))
    reads = []

    def look():
        reads.append(None)
        if len(reads) == 15 * 16:
            os.kill(os.getpid(), signal.SIGTERM)

    data.splits["train"].look = look
    with pytest.raises(SystemExit) as caught:
        features.build("classifier", data)
    assert caught.value.code == 128 + signal.SIGTERM
    data.splits["train"].look = lambda: None
    steps, restore = [], Checkpoints.restore

    def watched(*arguments):
        state = restore(*arguments)
        steps.append(int(state.step))
        return state

    monkeypatch.setattr(Checkpoints, "restore", watched)
    resumed = features.build("classifier", data)
    assert len(steps) == 2  # to go on, and to take the parameters
    assert 0 < steps[0] < steps[1] == 30
    assert resumed.digest == whole.digest
    (folder,) = folders(cache / "other")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 30


def test_another_data_set_or_config_has_a_classifier_of_its_own(short, monkeypatch):
    seen = []

    def train(run, dataset, folder, start, evaluation, meter):
        seen.append(folder.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", train)
    plain = trained.classifier_config
    for data, change in (
        (sides(200, 0), {}),
        (sides(200, 0), {}),
        (sides(200, 1), {}),
        (sides(200, 0, name="name/config"), {}),
        (sides(200, 0), {"seed": 1}),
        (sides(200, 0), {"log.every": "1_steps"}),  # decides nothing
    ):
        monkeypatch.setattr(
            trained, "classifier_config", lambda c=change: configs.override(plain(), c)
        )
        with pytest.raises(KeyboardInterrupt):
            features.build("classifier", data)
    assert seen[0] == seen[1] == seen[-1]
    assert len(set(seen)) == 4


def test_a_key_that_all_configs_get_later_leaves_the_classifier_as_it_is(monkeypatch):
    config, base = trained.classifier_config(), configs.base

    def later():
        with (made := base()).unlocked():
            made.dataset.novelty = 1
        return made

    before = trained._digest(config)
    monkeypatch.setattr(configs, "base", later)
    assert trained._digest(trained.classifier_config()) == before
    config.optimizer.learning_rate = 1e-3
    assert trained._digest(config) != before


def test_the_data_digest_sees_pixels_labels_sizes_and_names():
    base = data_digest(sides(200, 0))
    assert data_digest(sides(200, 0)) == base
    assert data_digest(sides(200, 0, dtype=np.float32)) == base
    assert base not in map(
        data_digest,
        (sides(200, 1), sides(199, 0), sides(200, 0, name="x"), sides(200, 0, labelled=False)),
    )
    changed = sides(200, 0)
    changed.splits["train"].images[7, 0, 0, 0] ^= 1
    assert data_digest(changed) != base
    relabelled = sides(200, 0)
    relabelled.splits["train"].labels[7] ^= 1
    assert data_digest(relabelled) != base


def test_unlabelled_data_and_unknown_names_are_refused():
    data = sides(50, 0, labelled=False)
    with pytest.raises(
        ConfigError, match=r"sides has none.*features=efficientnet_lite0 or inception"
    ):
        features.build("classifier", data)
    with pytest.raises(ConfigError, match=r"'inceptio': no such extractor\. Nearest: inception"):
        features.build("inceptio", data)


def test_metrics_are_named_after_their_features():
    named = {
        ("fd", "inception"): "fid",
        ("kid", "inception"): "kid",
        ("score", "inception"): "inception_score",
        ("precision", "inception"): "precision_inception",
        ("fd", "classifier"): "fd_classifier",
        ("score", "classifier"): "score_classifier",
        ("kid", "efficientnet_lite0"): "kid_efficientnet",
        ("kid_se", "classifier"): "kid_classifier_se",
    }
    for (metric, extractor), name in named.items():
        assert metric_names.metric_name(metric, extractor) == name
    everything = [
        metric_names.metric_name(metric, extractor)
        for metric in metric_names.METRICS
        for extractor in ("classifier", "efficientnet_lite0", "inception")
    ]
    assert len(set(everything)) == len(everything)
    with pytest.raises(ValueError, match="expected one of fd, kid"):
        metric_names.metric_name("fid", "inception")


# ---- published weights ---------------------------------------------------------------------------


def test_efficientnet_takes_small_grey_8_bit_pictures(monkeypatch):
    monkeypatch.delenv("GENJAX_DATA")  # the weights are fetched once
    golden = np.load(GOLDEN / "efficientnet.npz")
    found = features.build("efficientnet_lite0", sides(50, 0))
    assert (found.name, found.dim) == ("efficientnet_lite0", 1280)
    values, logits = jax.jit(found.apply)(found.params, golden["tiny/image"][None])  # 28 x 28, grey
    np.testing.assert_allclose(values[0], golden["tiny/features"], atol=1e-4)
    np.testing.assert_allclose(logits[0], golden["tiny/logits"], atol=1e-4)


class Answer(io.BytesIO):
    """What urlopen returns."""

    def __exit__(self, *_):
        self.close()


def test_inception_is_downloaded_once_and_checked(cache, monkeypatch):
    asked = []

    def answer(content):
        def urlopen(url, timeout):
            asked.append(url)
            return Answer(content)

        monkeypatch.setattr(features.urllib.request, "urlopen", urlopen)

    answer(b"an error page")
    with pytest.raises(ConfigError, match=r"https://github.com/.*sent 13 bytes.*6726825d.*path"):
        features.inception_weights()
    assert not list(cache.rglob("*.pth"))
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    named = features.INCEPTION_URL.replace("6726825d", digest[:8])
    monkeypatch.setattr(features, "INCEPTION_URL", named)
    answer(content)
    path = features.inception_weights()
    assert path.read_bytes() == content
    assert features.inception_weights() == path
    assert len(asked) == 2


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    def urlopen(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(features.urllib.request, "urlopen", urlopen)
    with pytest.raises(
        ConfigError, match=r"github.com/toshas/.*no route to host.*evals\.fidelity\.inception_path"
    ):
        features.build("inception", sides(50, 0))


def test_weights_of_another_network_are_refused(tmp_path, monkeypatch):
    drawn = {"fc.weight": np.ones((10, 2048), np.float32), "fc.bias": np.ones(10, np.float32)}
    monkeypatch.setattr(features.torch_file, "read", lambda path: drawn)
    with pytest.raises(ConfigError, match=r"w\.pth holds the weights of another network; \d+ arr"):
        features.build("inception", sides(50, 0), inception_path=str(tmp_path / "w.pth"))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"no file .*w\.pth"):
        features.build("inception", sides(50, 0), inception_path=str(tmp_path / "w.pth"))


def test_few_images_are_not_passed_over_hundreds_of_times():
    few, many = (trained._config_for(sides(count, 0)) for count in (200, 10_040))
    assert few.duration == f"{160 * trained.MOST_EPOCHS}_examples"
    assert many.duration == trained.classifier_config().duration == "360000_examples"


def test_attributes_of_small_pictures_are_seen_at_every_pixel():
    data = sides(200, 0)
    for side, several, patch in ((15, False, 1), (16, False, 2), (16, True, 1), (17, True, 2)):
        fields = image_fields((side, side, 3), 0 if several else 2)
        names = ("hair", "eyes") if several else ()
        fields |= dict.fromkeys(names, Field("label", (), np.int32, {"num_classes": 2}))
        made = data._replace(spec=data.spec._replace(fields=fields))
        assert trained._config_for(made).model.patch_size == patch


@pytest.mark.parametrize("content", [b"PK", "nothing", "objects"])
def test_damaged_parameters_of_the_classifier_are_one_error(tmp_path, content):
    path = tmp_path / "parameters.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        arrays = {} if content == "nothing" else {"accuracy": np.array([{}], object)}
        np.savez(path, w=np.zeros(2), **arrays)
    with pytest.raises(ConfigError, match=r"parameters\.npz cannot be read .*Delete it"):
        trained._read(path)
