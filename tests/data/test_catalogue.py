from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from datasets import arrays, dataset

from genjax import modalities
from genjax.config import ConfigError
from genjax.data import catalogue, loader, records, transforms
from genjax.modalities import label


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def environment(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(cache))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


CAPTIONED = ("emoji", "emoji_tones", "openmoji", "openclipart", "stamps")


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
        ("emoji_tones", (64, 64, 3), 10, {"train": 3786}),
        ("openmoji", (64, 64, 3), 12, {"train": 4495}),
        ("openclipart", (64, 64, 3), 22, {"train": 3972}),
        ("stamps", (64, 64, 3), 16, {"train": 785}),
        ("photos", (64, 64, 3), 0, {"train": 3341}),
    ],
)
def test_spec_of_a_name_needs_no_data(name, shape, num_classes, sizes, cache, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(cache / "empty"))
    spec = catalogue.spec(dataset(name=name))
    assert spec.name == name
    assert spec.target == "image"
    assert spec.generated.kind == "image"
    assert spec.generated.shape == shape
    assert spec.generated.dtype == np.uint8
    assert ("label" in spec.fields) == bool(num_classes)
    assert ("text" in spec.fields) == (name in CAPTIONED)
    assert label.num_classes(spec) == num_classes
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
    transform = modalities.transforms(wanted, foretold, train=True)
    batch = loader.train_batches(loaded.splits["train"], seed=0, batch_size=4, transform=transform)[
        0
    ]
    assert set(batch) == set(foretold.fields)
    for key, field in foretold.fields.items():
        assert batch[key].shape == (4, *field.shape)
        assert batch[key].dtype == field.dtype


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
    asked = dataset(name="cifar10", validation="10_percent", test="10_percent")
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
        ({"name": "digits", "image_size": -1}, r"image_size=\(-1,\): expected a side"),
        ({"name": "digits", "image_size": (8, 0)}, r"image_size=\(8, 0\): expected a side"),
        ({"name": "digits", "image_size": (8, 8, 1)}, r"image_size=\(8, 8, 1\): expected a side"),
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
    assert set(loaded.spec.fields) == {"image"}


def test_classes_have_the_names_that_the_data_give_them(tmp_path):
    from PIL import Image

    for index, name in enumerate(("shoes", "bags", "hats")):
        (tmp_path / name).mkdir()
        Image.new("L", (2, 2), index).save(tmp_path / name / "0.png")
    field = catalogue.load(dataset(name="folder", path=str(tmp_path))).spec.fields["label"]
    assert field.facts == {"num_classes": 3, "classes": ("bags", "hats", "shoes")}
    assert label.parse("shoes", field) == label.parse("2", field) == 2
    with pytest.raises(ConfigError, match="or a name: shoes"):
        label.parse("shoe", field)
    digits = catalogue.spec(dataset(name="digits")).fields["label"]
    assert digits.facts == {"num_classes": 10, "classes": ()}  # they are but their numbers
    assert label.parse("7", digits) == 7
    groups = catalogue.spec(dataset(name="emoji")).fields["label"]
    assert groups.facts["classes"][label.parse("Flags", groups)] == "Flags"
    clothes = catalogue.spec(dataset(name="fashion_mnist")).fields["label"]
    assert label.parse("Sneaker", clothes) == 7


def test_digits_of_a_height_and_a_width():
    wanted = dataset(name="digits", image_size=(24, 48))
    foretold, loaded = catalogue.spec(wanted), catalogue.load(wanted)
    assert foretold == loaded.spec
    assert foretold.generated.shape == (24, 48, 1)
    native = catalogue.load(dataset(name="digits")).splits["train"]
    for index in (0, 1000):
        image = loaded.splits["train"][index]["image"]
        np.testing.assert_array_equal(image, transforms.fit(native[index]["image"], 1, (24, 48)))
    stamps = catalogue.spec(dataset(name="stamps", image_size=(24, 48)))
    assert stamps.generated.shape == (24, 48, 3)


def test_a_module_of_ones_own_is_a_data_set(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(
        "from genjax.data.catalogue import Dataset\n"
        "from genjax.data.sources import Columns, image_fields\n"
        "from genjax.method import DataSpec\n"
        "import numpy as np\n"
        "def load(dataset):\n"
        "    size = {'train': 3}\n"
        "    spec = DataSpec(dataset.name, image_fields((2, 2, 1), 0), 'image', size)\n"
        "    source = Columns({'image': np.zeros((3, 2, 2, 1), np.uint8)})\n"
        "    return Dataset(spec, {'train': source}, 'out of thin air')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = catalogue.load(dataset(name="own_data"))
    assert loaded.route == "out of thin air"
    assert catalogue.spec(dataset(name="own_data")) == loaded.spec
    with pytest.raises(ConfigError, match=r"no module 'no\.such'"):
        catalogue.load(dataset(name="no.such"))
    with pytest.raises(ConfigError, match=r"genjax\.flags has no load"):
        catalogue.load(dataset(name="genjax.flags"))


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
    assert routes == [
        "1797 the installed scikit-learn",
        "1797 the installed scikit-learn, prepared before",
    ]
    assert records.root().is_dir()
