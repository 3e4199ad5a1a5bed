"""Sets of images against each other, through a small linear extractor."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import sources
from genjax.data.catalogue import Dataset
from genjax.data.sources import Columns, image_fields
from genjax.evals import distances, features
from genjax.evals.judges import fidelity
from genjax.evals.judges.fidelity import Comparison
from genjax.method import DataSpec, Field
from genjax.parallel.mesh import make_mesh

SHAPE, DIM = (4, 4, 1), 3
RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (150, *SHAPE), dtype=np.uint8)
TEST = RNG.integers(0, 200, (60, *SHAPE), dtype=np.uint8)
WEIGHTS = RNG.normal(size=(16, DIM + 2)).astype(np.float32)


def linear(images):
    """(features, logits) in numpy."""
    out = images.reshape(len(images), -1).astype(np.float32) / 255 @ WEIGHTS
    return out[:, :DIM], out[:, DIM:]


def apply(weights, images):
    out = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255 @ weights
    return out[:, :DIM], out[:, DIM:]


EXTRACTOR = features.Features("classifier", DIM, WEIGHTS, apply, "0" * 64)


@pytest.fixture(autouse=True)
def extractor(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path))
    monkeypatch.setattr(features, "build", lambda name, dataset, inception_path="": EXTRACTOR)
    return tmp_path


def dataset():
    spec = DataSpec("toy", image_fields(SHAPE, 2), "image", {"train": 150, "test": 60})
    splits = {
        name: Columns({"image": x, "label": np.arange(len(x), dtype=np.int32) % 2})
        for name, x in (("train", TRAIN), ("test", TEST))
    }
    return Dataset(spec, splits, "memory")


def made(devices=8, batch=64, data=None, **options):
    config = configs.base()
    config.evals.batch_size = batch
    mesh = make_mesh(config, jax.devices()[:devices])
    return Comparison(fidelity.Options(**options), config.evals, data or dataset(), mesh)


def test_metrics_are_those_of_the_features():
    found = made()(TEST)
    (real, _), (fake, logits) = linear(TRAIN), linear(TEST)
    (m1, c1), (m2, c2) = ((f.mean(0), np.cov(f, rowvar=False)) for f in (fake, real))
    assert found["fd_classifier"] == pytest.approx(distances.frechet_distance(m1, c1, m2, c2), 1e-4)
    assert found["diversity_classifier"] == pytest.approx(np.trace(c1) / np.trace(c2), rel=1e-4)
    assert found["score_classifier"] == pytest.approx(distances.inception_score(logits)[0], 1e-4)
    real = real[sources.order(len(real))]  # as many of them as there are samples
    near = distances.prdc(real[: len(fake)], fake, fidelity.NEIGHBOURS)
    for name, value in near.items():
        assert found[f"{name}_classifier"] == pytest.approx(value), name
    kid, error = distances.kid(fake, real, subset_size=len(fake))
    assert found["kid_classifier"] == pytest.approx(kid, rel=1e-3)
    assert found["kid_classifier_se"] == pytest.approx(error, rel=1e-3)
    assert set(found) == set(fidelity.metrics_of(("classifier",)))


def test_several_labels_have_no_inception_score(monkeypatch):
    one = made()(TEST)
    several = EXTRACTOR._replace(labels={"color": 1, "form": 1})
    monkeypatch.setattr(features, "build", lambda name, dataset, inception_path="": several)
    scores = {"score_classifier", "score_classifier_std"}
    assert made()(TEST) == {name: value for name, value in one.items() if name not in scores}


def test_the_data_themselves_are_at_distance_zero():
    found = made()(TRAIN)
    assert found["fd_classifier"] == pytest.approx(0.0, abs=1e-5)
    assert found["diversity_classifier"] == pytest.approx(1.0, rel=1e-5)
    assert found["precision_classifier"] == found["coverage_classifier"] == 1.0


def test_devices_and_batches_make_no_difference(extractor):
    first = made(devices=8, batch=64)(TEST)
    for path in (extractor / "statistics").iterdir():
        path.unlink()
    other = made(devices=1, batch=7)(TEST)
    for name, value in first.items():
        assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name


PROCESS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import pytest
import test_fidelity as here
from genjax.evals import features
from genjax.parallel import distributed

distributed.initialize()
features.build = lambda name, dataset, inception_path="": here.EXTRACTOR
print(json.dumps(here.made(devices=2, batch=16)(here.TEST)))
"""


def test_two_processes_find_what_one_does(tmp_path):
    """Over gloo; both print all metrics, of statistics that they computed together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"GENJAX_COORDINATOR": f"127.0.0.1:{port}", "GENJAX_PROCESS_COUNT": "2"}
    shared |= {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1"),
        "GENJAX_DATA": str(tmp_path / "other"),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(Path(__file__).parent)],
            env={**os.environ, **shared, "GENJAX_PROCESS_INDEX": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    one = made(devices=1, batch=16)(TEST)
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert json.loads(out.splitlines()[-1]) == pytest.approx(one, rel=1e-4, abs=1e-7)


def test_collapsed_samples_show_no_diversity():
    found = made()(np.repeat(TEST[:1], 60, axis=0))
    assert found["diversity_classifier"] == pytest.approx(0.0, abs=1e-9)
    assert found["recall_classifier"] == 0.0


def test_reference_statistics_are_kept_and_may_be_named(extractor, monkeypatch):
    ((name, path, count),) = made().references()
    assert (name, count) == ("classifier", 150)
    assert path.parent == extractor / "statistics"
    first = made()(TEST)
    assert made(reference=str(path))(TEST) == first
    monkeypatch.setattr(Comparison, "_compute", None)  # not needed again
    assert made()(TEST) == first
    path.write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match="cannot be read"):
        made()(TEST)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (TEST.astype(np.float32), r"float32.*expected uint8\[N, 4, 4, 1\]"),
        (np.zeros((60, 5, 4, 1), np.uint8), r"\[60, 5, 4, 1\]"),
        (TEST[:5], r"5 images to evaluate: expected at least 11"),
    ],
)
def test_images_that_cannot_be_judged(images, says):
    with pytest.raises(ConfigError, match=says):
        made()(images)


def test_data_sorted_by_class_are_judged_by_all_classes(monkeypatch):
    """More reference examples than samples, and more data than are kept: no class is left out."""
    dark, light = TRAIN // 4, TRAIN // 4 + 190
    both = np.concatenate([dark, light])
    splits = {"train": Columns({"image": both})}
    spec = dataset().spec._replace(name="sorted", sizes={"train": len(both)})
    monkeypatch.setattr(fidelity, "KEPT", 200)
    judge = made(data=Dataset(spec, splits, ""))
    assert judge(light)["precision_classifier"] > 0.9
    assert judge(dark)["precision_classifier"] > 0.9


def test_statistics_of_other_weights_are_refused(monkeypatch):
    ((_, path, _),) = made().references()
    monkeypatch.setattr(features, "build", lambda *_, **__: EXTRACTOR._replace(digest="1" * 64))
    judge = made(reference=str(path))
    with pytest.raises(ConfigError, match="other weights"):
        judge.prepare()


def test_references_that_do_not_exist():
    with pytest.raises(ConfigError, match=r"reference='validation': expected a split of toy"):
        made(reference="validation")
    with pytest.raises(ConfigError, match=r"no reference statistics at /nowhere\.npz"):
        made(reference="/nowhere.npz")


def float_images():
    data = dataset()
    fields = {"image": Field("image", SHAPE, np.dtype(np.float32))}
    return data._replace(spec=data.spec._replace(fields=fields))


def texts():
    data = dataset()
    fields = {"token": Field("text", (9,), np.dtype(np.int32))}
    return data._replace(spec=data.spec._replace(fields=fields, target="token"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": texts()}, r"fidelity judges images, but 'token' of toy is of kind 'text'"),
        ({"data": float_images()}, r"8-bit images: set dataset\.dequantize=False"),
        ({"features": ()}, r"config\.evals\.fidelity\.features is empty: give classifier"),
    ],
)
def test_what_the_judge_cannot_be_built_for(options, says):
    with pytest.raises(ConfigError, match=says):
        made(**options)


def test_too_few_samples_to_judge_are_refused():
    with pytest.raises(ConfigError, match=r"fidelity\.generated=10: expected at least 11"):
        configs.read_options(ConfigDict({"generated": 10}), "evals.fidelity", fidelity.Options)


def test_the_judge_asks_for_as_many_samples_as_its_section_says():
    config = configs.base()
    options = fidelity.Options(generated=60)
    judge = fidelity.build_judge(options, config.evals, dataset(), make_mesh(config))
    assert (judge.samples, judge.paired) == (60, False)
    assert judge.judge(TEST, TEST, {}) == made()(TEST)
    assert set(judge.metrics) == set(judge.judge(TEST, TEST, {}))
