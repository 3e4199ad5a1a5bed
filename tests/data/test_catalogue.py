from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from datasets import arrays, dataset

from genjax.config import ConfigError
from genjax.data import catalogue, loader, records, transforms


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def environment(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(cache))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.mark.parametrize(
    ("name", "shape", "num_classes", "sizes"),
    [
        ("digits", (8, 8, 1), 10, {"train": 1797}),
        ("mnist10k", (28, 28, 1), 10, {"train": 10000}),
        ("fashion_mnist", (28, 28, 1), 10, {"train": 60000, "test": 10000}),
        ("mnist", (28, 28, 1), 10, {"train": 60000, "test": 10000}),
        ("cifar10", (32, 32, 3), 10, {"train": 50000, "test": 10000}),
        ("celeb_a", (218, 178, 3), 0, {"train": 162770, "validation": 19867, "test": 19962}),
        ("emoji", (64, 64, 3), 10, {"train": 1911}),
        ("stamps", (64, 64, 3), 16, {"train": 785}),
        ("photos", (64, 64, 3), 0, {"train": 3341}),
    ],
)
def test_spec_of_a_name_needs_no_data(name, shape, num_classes, sizes, cache, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(cache / "empty"))
    spec = catalogue.spec(dataset(name=name))
    assert spec.name == name
    assert spec.modality == "image"
    assert spec.features["image"].shape == shape
    assert spec.features["image"].dtype == np.uint8
    assert ("label" in spec.features) == bool(num_classes)
    assert spec.num_classes == num_classes
    assert spec.sizes == sizes
    assert not (cache / "empty").exists()


def test_spec_foretells_what_is_loaded_and_batched():
    wanted = dataset(
        name="digits",
        validation="10_percent",
        test="100_examples",
        image_size=6,
        channels=3,
        dequantize=True,
        flip=True,
    )
    foretold, loaded = catalogue.spec(wanted), catalogue.load(wanted)
    assert foretold == loaded.spec
    assert foretold.sizes == {"train": 1517, "validation": 180, "test": 100}
    assert {s: len(x) for s, x in loaded.splits.items()} == foretold.sizes
    batch = loader.train_batches(
        loaded.splits["train"], seed=0, batch_size=4, transform=transforms.build(wanted, train=True)
    )[0]
    assert set(batch) == set(foretold.features)
    for key, feature in foretold.features.items():
        assert batch[key].shape == (4, *feature.shape)
        assert batch[key].dtype == feature.dtype


def test_digits_are_those_of_scikit_learn():
    loaded = catalogue.load(dataset(name="digits"))
    truth = sklearn.datasets.load_digits()
    train = arrays(loaded.splits["train"])
    np.testing.assert_array_equal(train["image"][..., 0], np.rint(truth.images * (255 / 16)))
    np.testing.assert_array_equal(train["label"], truth.target)
    assert "prepared" in loaded.route or "scikit-learn" in loaded.route


def test_carved_examples_are_those_of_train():
    whole = arrays(catalogue.load(dataset(name="digits")).splits["train"])
    loaded = catalogue.load(dataset(name="digits", validation="10_percent", test="10_percent"))
    rows = np.concatenate([arrays(s)["image"].reshape(len(s), -1) for s in loaded.splits.values()])
    expected = whole["image"].reshape(len(rows), -1)
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_official_splits_are_used_as_they_are():
    asked = dataset(name="celeb_a", validation="10_percent", test="10_percent")
    assert catalogue.spec(asked).sizes == {"train": 162770, "validation": 19867, "test": 19962}
    asked.name = "cifar10"
    assert catalogue.spec(asked).sizes == {"train": 45000, "validation": 5000, "test": 10000}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"name": "fashion_mnits"}, r"'fashion_mnits': no such data set\. Nearest: fashion_mnist"),
        ({"name": "digit"}, r"Nearest: digits"),
        ({"name": "../etc"}, r"etc"),
        ({"name": ""}, r"dataset\.name is empty"),
        ({"name": "imdb_reviews"}, r"TFDS data set with an image"),
        ({"name": "oxford_flowers102"}, r"vary in size\. Set dataset\.image_size"),
        ({"name": "downsampled_imagenet/65x65", "image_size": 8}, r"65x65"),
        ({"name": "digits", "validation": "90_percent", "test": "10_percent"}, r"all of the 1797"),
        ({"name": "digits", "validation": "10"}, r"dataset\.validation='10': expected a number"),
        ({"name": "digits", "test": "2_epochs"}, r"dataset\.test='2_epochs': .*examples or perc"),
        ({"name": "digits", "channels": 2}, r"dataset\.channels=2: expected one of 0, 1, 3"),
        ({"name": "digits", "on_corrupt": "ignore"}, r"on_corrupt='ignore'"),
        ({"name": "digits", "image_size": -1}, r"image_size=-1"),
        ({"name": "folder"}, r"needs dataset\.path"),
        ({"name": "npz", "path": "/nowhere.npz"}, r"nowhere"),
    ],
)
@pytest.mark.parametrize("ask", [catalogue.spec, catalogue.load])
def test_wrong_configs(ask, keys, says):
    with pytest.raises(ConfigError, match=says):
        ask(dataset(**keys))


def test_npz_and_folder_go_through_the_catalogue(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", image=images, label=np.arange(20))
    asked = dataset(name="npz", path=str(tmp_path / "a.npz"), validation="25_percent")
    assert catalogue.spec(asked).sizes == {"train": 15, "validation": 5}
    validation = arrays(catalogue.load(asked).splits["validation"])
    np.testing.assert_array_equal(validation["image"], images[validation["label"]])
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(images):
        from PIL import Image

        Image.fromarray(image).save(tmp_path / "pictures" / f"{i:02}.png")
    asked = dataset(name="folder", path=str(tmp_path / "pictures"), test="5_examples")
    loaded = catalogue.load(asked)
    assert loaded.spec == catalogue.spec(asked)
    assert loaded.spec.sizes == {"train": 15, "test": 5}
    assert set(loaded.spec.features) == {"image"}


def test_processes_at_once_prepare_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "fresh"))
    code = """
import sys, time
from pathlib import Path
from genjax import config
from genjax.data import catalogue, records
meet = Path(sys.argv[1])
(meet / sys.argv[2]).touch()
while len(list(meet.iterdir())) < 2:  # both have imported everything
    time.sleep(0.01)
build = records.build_from_examples
def slow(*args):
    time.sleep(0.5)
    build(*args)
records.build_from_examples = slow
dataset = config.base().dataset
dataset.name = "digits"
loaded = catalogue.load(dataset)
print(len(loaded.splits["train"]), loaded.route.split(" (")[0])
"""
    (tmp_path / "meet").mkdir()
    root = Path(catalogue.__file__).parents[2]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "meet"), str(index)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=100) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    routes = sorted(out.decode().strip() for out, _ in outputs)
    assert routes == ["1797 prepared", "1797 the installed scikit-learn"]
    assert records.root().is_dir()
