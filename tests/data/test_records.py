"""TFDS without TensorFlow: builders that would need it are run on small files made here."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import socket
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from datasets import arrays, dataset
from tensorflow_datasets.image_classification import cifar as tfds_cifar
from tensorflow_datasets.image_classification import mnist as tfds_mnist

from genjax.config import ConfigError
from genjax.data import catalogue, packages, records
from genjax.modalities import label

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
MASKS = RNG.integers(0, 256, (7, 6, 5, 1), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "cache"


class Plain(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder as TFDS users write them: arrays, nested features, a jpeg encoding."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(6, 5, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=3),
                "extra": {"mask": tfds.features.Image(shape=(6, 5, 1))},
                "frames": tfds.features.Sequence(tfds.features.Image(shape=(6, 5, 3))),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, description="x", disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield (
                i,
                {
                    "image": PICTURES[i],
                    "label": i % 3,
                    "extra": {"mask": MASKS[i]},
                    "frames": [PICTURES[i]],
                },
            )


def test_a_builder_of_arrays_is_prepared_losslessly_and_read_without_tensorflow(cache):
    built = Plain(data_dir=records.root())
    records._prepare_quietly(built)
    loaded = catalogue.load(dataset(name="plain", validation="2_examples"))
    assert label.num_classes(loaded.spec) == 3
    assert loaded.spec.sizes == {"train": 3, "validation": 2, "test": 2}
    assert loaded.route.startswith("prepared")
    test = arrays(loaded.splits["test"])
    np.testing.assert_array_equal(test["image"], PICTURES[:2])
    np.testing.assert_array_equal(test["label"], [0, 1])
    whole = np.concatenate([arrays(loaded.splits[s])["image"] for s in ("train", "validation")])
    np.testing.assert_array_equal(
        np.unique(whole.reshape(5, -1), axis=0), np.unique(PICTURES[:5].reshape(5, -1), axis=0)
    )
    masks = built.as_data_source("train")[3]["extra"]["mask"]
    np.testing.assert_array_equal(masks, MASKS[3])
    assert "tensorflow" not in sys.modules


class Unsized(Plain):
    """TFDS knows its name, for it is registered, but not how large it is."""


def test_spec_prepares_what_nobody_knows_the_size_of():
    asked = dataset(name="unsized", validation="2_examples")
    spec = catalogue.spec(asked)
    assert spec.sizes == {"train": 3, "validation": 2, "test": 2}
    assert spec == catalogue.load(asked).spec


def test_spec_says_why_sizes_cannot_be_known(monkeypatch):
    def out_of_reach(url):
        raise ConfigError(f"{url} is out of reach")

    monkeypatch.setattr(records, "_probe", out_of_reach)
    with pytest.raises(
        ConfigError, match=r"could not be loaded[\s\S]*official download: .*out of r"
    ):
        catalogue.spec(dataset(name="unsized"))


class Trainless(Plain, skip_registration=True):
    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples(2), "extra": self._generate_examples(5)}


@pytest.mark.parametrize("ask", [catalogue.spec, catalogue.load])
def test_a_data_set_without_a_train_split_is_refused(ask):
    records._prepare_quietly(Trainless(data_dir=records.root()))
    with pytest.raises(ConfigError, match=r"'trainless': it has no train split.*test, extra"):
        ask(dataset(name="trainless"))


def test_conversion_and_memory_agree_with_reading_from_disk(monkeypatch):
    records._prepare_quietly(Plain(data_dir=records.root()))
    kept = catalogue.load(dataset(name="plain", image_size=4, channels=1))
    assert kept.spec.generated.shape == (4, 4, 1)
    monkeypatch.setattr("genjax.data.sources.MEMORY_LIMIT", 0)
    direct = catalogue.load(dataset(name="plain", image_size=4, channels=1))
    for split in ("train", "test"):
        twice = [arrays(kept.splits[split]) for _ in range(2)]
        for key, value in arrays(direct.splits[split]).items():
            np.testing.assert_array_equal(twice[0][key], value)
            np.testing.assert_array_equal(twice[1][key], value)


def test_a_builder_that_needs_more_of_tensorflow_says_so():
    class Needy(Plain, skip_registration=True):
        def _generate_examples(self, count):
            from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

            yield 0, {"image": tf.image.resize(PICTURES[0], (3, 3))}

    with pytest.raises(ConfigError, match=r"needs TensorFlow.*dataset\.path"):
        records._prepare_quietly(Needy(data_dir=records.root()))


def test_file_functions_of_tensorflow_are_replaced_and_put_back(tmp_path):
    original = tfds_mnist.tf
    (tmp_path / "a.txt").write_text("abc")
    with records._file_functions(tfds_mnist.FashionMNIST):
        gfile = tfds_mnist.tf.io.gfile
        assert gfile.exists(tmp_path / "a.txt")
        assert gfile.isdir(tmp_path)
        assert gfile.listdir(tmp_path) == ["a.txt"]
        assert gfile.glob(str(tmp_path / "*.txt")) == [str(tmp_path / "a.txt")]
        assert [files for _, _, files in gfile.walk(tmp_path)] == [["a.txt"]]
        with gfile.GFile(tmp_path / "a.txt") as file:
            assert file.read() == "abc"
        with pytest.raises(ImportError, match=r"tf\.image"):
            tfds_mnist.tf.image  # noqa: B018
    assert tfds_mnist.tf is original


class Serve:
    """An HTTP server of the files in a folder."""

    def __init__(self, folder):
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        handler = functools.partial(Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def test_cifar10_by_its_own_builder_from_an_official_archive(tmp_path, monkeypatch):
    images = RNG.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5, 9], np.uint8)
    rows = np.concatenate([labels[:, None], images.reshape(6, -1)], 1)
    site = tmp_path / "site"
    site.mkdir()
    with tarfile.open(site / "cifar-10-binary.tar.gz", "w:gz") as file:
        contents = {f"data_batch_{i + 1}.bin": rows[i : i + 1].tobytes() for i in range(5)}
        contents |= {"test_batch.bin": rows[5:].tobytes()}
        contents |= {"batches.meta.txt": b"\n".join(b"c%d" % i for i in range(10))}
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    official = tfds_cifar.Cifar10._cifar_info.fget

    def info(self):
        return official(self)._replace(url=f"{served.url}cifar-10-binary.tar.gz")

    monkeypatch.setattr(records, "_probe", lambda url: None)
    with Serve(site) as served:
        monkeypatch.setattr(tfds_cifar.Cifar10, "_cifar_info", property(info))
        loaded = catalogue.load(dataset(name="cifar10"))
    assert loaded.route.startswith("the official download")
    train = arrays(loaded.splits["train"])
    order = np.argsort(train["label"], kind="stable")
    assert sorted(train["label"]) == [1, 1, 3, 4, 5]
    np.testing.assert_array_equal(train["image"][order][-1], images[4].transpose(1, 2, 0))
    np.testing.assert_array_equal(
        arrays(loaded.splits["test"])["image"][0], images[5].transpose(1, 2, 0)
    )


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A small fashion_mnist: the four official files, and where each route gets them."""
    monkeypatch.setattr(tfds_mnist, "_TRAIN_EXAMPLES", 20)
    monkeypatch.setattr(tfds_mnist, "_TEST_EXAMPLES", 10)
    site = tmp_path / "site"
    site.mkdir()
    truth = {}
    for split, count in (("train", 20), ("t10k", 10)):
        images = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = RNG.integers(0, 10, count).astype(np.uint8)
        (site / f"{split}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (site / f"{split}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
        truth[split] = images
    return site, truth


def by_pixels(array):
    flat = array.reshape(len(array), -1)
    return flat[np.lexsort(flat.T)]


def test_the_three_routes_to_fashion_mnist_give_the_same_examples(fashion, monkeypatch, tmp_path):
    site, truth = fashion
    wanted = dataset(name="fashion_mnist", validation="4_examples")
    got = {}

    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "official"))
    monkeypatch.setattr(records, "_probe", lambda url: None)
    with Serve(site) as served:
        monkeypatch.setattr(tfds_mnist.FashionMNIST, "URL", served.url)
        got["the official download"] = catalogue.load(wanted)
    got["the official download, prepared before"] = catalogue.load(wanted)

    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "debian"))

    def out_of_reach(url):
        raise ConfigError(f"{url} is out of reach")

    monkeypatch.setattr(records, "_probe", out_of_reach)
    monkeypatch.setattr(
        packages, "fetch", lambda package: {str(p): p for p in sorted(site.iterdir())}
    )
    got["the Debian package dataset-fashion-mnist"] = catalogue.load(wanted)

    first = next(iter(got.values()))
    assert first.spec.sizes == {"train": 16, "validation": 4, "test": 10}
    for route, loaded in got.items():
        assert loaded.route.startswith(route + " (")
        for split in ("train", "validation", "test"):
            for key, value in arrays(first.splits[split]).items():
                np.testing.assert_array_equal(arrays(loaded.splits[split])[key], value)
    whole = np.concatenate([arrays(first.splits[s])["image"] for s in ("train", "validation")])
    np.testing.assert_array_equal(by_pixels(whole), by_pixels(truth["train"]))
    np.testing.assert_array_equal(
        by_pixels(arrays(first.splits["test"])["image"]), by_pixels(truth["t10k"])
    )


def test_when_every_route_fails_the_error_lists_what_each_said(monkeypatch, tmp_path):
    def fails(package):
        raise ConfigError("the program apt-get is not installed")

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(
            records,
            "_probe",
            functools.partial(probe_instead, f"http://127.0.0.1:{unused.getsockname()[1]}/x"),
        )
        monkeypatch.setattr(packages, "fetch", fails)
        start = time.monotonic()
        with pytest.raises(ConfigError) as caught:
            catalogue.load(dataset(name="fashion_mnist"))
    assert time.monotonic() - start < 15
    for part in (
        f"prepared: nothing in {records.root()}; nothing in {tmp_path / 'tfds'}",
        "the official download: http://127.0.0.1",
        "cannot be reached",
        "the Debian package dataset-fashion-mnist: the program apt-get is not installed",
    ):
        assert part in str(caught.value)


def probe_instead(url, _, probe=records._probe):
    probe(url)


def test_a_data_set_prepared_as_tfrecord_is_not_taken_for_readable(tmp_path, monkeypatch):
    records._prepare_quietly(Plain(data_dir=tmp_path / "tfds"))
    info = tmp_path / "tfds" / "plain" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ConfigError, match=r"as tfrecord, which has no random access"):
        records.prepared("plain", [tmp_path / "tfds"])


def test_dataset_path_is_a_place_to_find_prepared_data(tmp_path):
    records._prepare_quietly(Plain(data_dir=tmp_path / "mine"))
    loaded = catalogue.load(dataset(name="plain", path=str(tmp_path / "mine")))
    assert loaded.spec.sizes == {"train": 5, "test": 2}
    with pytest.raises(ConfigError, match="'plain': no such data set"):
        catalogue.load(dataset(name="plain"))
