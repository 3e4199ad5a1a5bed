"""What is kept in the cache and was damaged is made again, and what tells data apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import dataset
from PIL import Image

from genjax.config import ConfigError
from genjax.data import catalogue, digest, records, sources, sums, transforms
from genjax.data.digest import content_digests
from genjax.training import workdir


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))


def texts(tmp_path, content="to be or not to be, that is the question. " * 40):
    (tmp_path / "t.txt").write_text(content)
    made = dataset(name="text", path=str(tmp_path / "t.txt"), validation="20_percent")
    made.text.length = 16
    return made


def zeros(path):
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("train_ids.npy", zeros),
        ("train_ids.npy", lambda path: path.write_bytes(path.read_bytes()[:-3])),
        ("validation_ends.npy", lambda path: path.unlink()),
        ("about.json", lambda path: path.write_text("{")),
        ("tokenizer.json", zeros),
        (sums.FILE, lambda path: path.write_text("[1]")),
        (sums.FILE, lambda path: path.unlink()),
    ],
)
def test_damaged_tokens_are_made_again(file, damage, tmp_path, caplog):
    whole = catalogue.load(texts(tmp_path))
    before = whole.splits["train"].take(np.arange(5))
    before = {name: rows.copy() for name, rows in before.items()}
    (place,) = (tmp_path / "cache" / "text").iterdir()
    damage(place / file)
    left = place.with_name(f".{place.name}.killed")
    left.mkdir()
    again = catalogue.load(texts(tmp_path))
    after = again.splits["train"].take(np.arange(5))
    for name, rows in before.items():
        np.testing.assert_array_equal(after[name], rows)
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "are damaged" in said
    assert "made again" in said
    assert not left.exists()
    caplog.clear()
    catalogue.load(texts(tmp_path))
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_a_cache_that_is_whole_is_read_without_writing(tmp_path, monkeypatch):
    catalogue.load(texts(tmp_path))
    catalogue.load(dataset(name="digits"))

    def refused(name):
        raise AssertionError(f"the lock {name} is taken")

    monkeypatch.setattr("genjax.data.packages.lock", refused)
    catalogue.load(texts(tmp_path))
    catalogue.load(dataset(name="digits"))


def test_of_a_large_file_some_blocks_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(sums, "BLOCK", 4)
    monkeypatch.setattr(sums, "READ", 3)
    (tmp_path / "a").write_bytes(bytes(range(40)))
    sums.write(tmp_path)
    assert sums.damage(tmp_path) == ""
    for place, noticed in ((0, True), (39, True), (17, True), (9, False)):
        content = bytearray(range(40))
        content[place] ^= 1
        (tmp_path / "a").write_bytes(content)
        assert bool(sums.damage(tmp_path)) == noticed


def test_what_is_read_of_many_files_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(sums, "BLOCK", 4)
    monkeypatch.setattr(sums, "READ", 10)
    for name in "abcd":
        (tmp_path / name).write_bytes(bytes(range(40)))
    (tmp_path / "small").write_bytes(b"1")
    sums.write(tmp_path)
    read, blocks = [], sums._blocks

    def counted(path, numbers):
        numbers = list(numbers)
        read.extend((path.name, number) for number in numbers)
        return blocks(path, numbers)

    monkeypatch.setattr(sums, "_blocks", counted)
    assert sums.damage(tmp_path) == ""
    assert len(read) <= 10 + len("abcd") + 1
    assert {("a", 0), ("d", 9), ("small", 0)} <= set(read)


def test_checksums_that_are_nested_too_deeply_are_damage(tmp_path):
    (tmp_path / sums.FILE).write_bytes(b"[" * 200_000)
    assert "nested too deeply" in sums.damage(tmp_path)


def test_damaged_records_are_prepared_again(tmp_path, caplog):
    def load():
        return catalogue.load(dataset(name="digits")).splits["train"]

    first = load()[7]["image"].copy()
    (place,) = records.root().glob("digits/*")
    for damage, pattern in (
        (zeros, "*array_record*"),
        (zeros, "dataset_info.json"),
        (lambda path: path.write_bytes(b"[" * 200_000), "dataset_info.json"),
        (Path.unlink, "dataset_info.json"),
    ):
        (file,) = place.glob(pattern)
        damage(file)
        caplog.clear()
        np.testing.assert_array_equal(load()[7]["image"], first)
        assert "is damaged" in caplog.text
        assert "prepared again" in caplog.text


def test_damaged_records_without_checksums_are_one_clear_error(tmp_path):
    catalogue.load(dataset(name="digits"))
    (place,) = records.root().glob("digits/*")
    (place / sums.FILE).unlink()
    (file,) = place.glob("*array_record*")
    whole = file.read_bytes()
    for damaged in (bytes(len(whole)), whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"is damaged .*Delete that folder"):
            catalogue.load(dataset(name="digits")).splits["train"][7]
    (place / "dataset_info.json").write_text('{"a": ' + "[" * 200_000)
    assert len(catalogue.load(dataset(name="digits")).splits["train"]) == 1797
    assert file.read_bytes() == whole


def digests(keys):
    return content_digests(catalogue.load(keys))


def test_content_tells_data_of_one_shape_apart(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3000, 2, 2), dtype=np.uint8)
    labels = np.arange(3000) % 3
    kept = {}

    def npz(change=lambda images, labels: None):
        now = images.copy(), labels.copy()
        change(*now)
        np.savez(tmp_path / "a.npz", image=now[0], label=now[1])
        return digests(dataset(name="npz", path=str(tmp_path / "a.npz"), test="10_percent"))

    assert npz() == npz()
    assert sorted(npz()) == ["test", "train"]

    def pixel(images, labels):
        images[2999, 1, 1] ^= 1

    def label(images, labels):
        labels[0] = 2

    kept = {str(npz(change)) for change in (lambda *_: None, pixel, label)}
    assert len(kept) == 3

    first = digests(texts(tmp_path))
    assert first == digests(texts(tmp_path))
    changed = texts(tmp_path, "to be or not to be, that is the question. " * 39 + "x" * 42)
    assert digests(changed)["validation"] != first["validation"]

    for name in ("a", "b"):
        (tmp_path / "p" / name).mkdir(parents=True)
        Image.fromarray(images[0]).save(tmp_path / "p" / name / "0.bmp")
    folder = dataset(name="folder", path=str(tmp_path / "p"))
    first = digests(folder)
    assert first == digests(folder)
    Image.fromarray(images[1]).save(tmp_path / "p" / "a" / "0.bmp")
    assert digests(folder) != first


def test_pictures_that_are_decoded_as_they_are_read_too(tmp_path, monkeypatch):
    monkeypatch.setattr("genjax.data.sources.MEMORY_LIMIT", 0)
    test_content_tells_data_of_one_shape_apart(tmp_path)


def test_splits_that_share_a_source_read_it_once():
    reads = []

    class Counted(sources.Columns):
        def content(self):
            reads.append(1)
            yield from super().content()

    rows = Counted({"x": np.arange(10)})
    parts = {s: sources.Subset(rows, np.arange(i + 1)) for i, s in enumerate(("train", "test"))}
    found = digest.content_digests(catalogue.Dataset(None, parts, ""))
    assert len(reads) == 1
    assert len(set(found.values())) == 2
    other = {"train": sources.Subset(sources.Columns({"x": np.arange(10) + 1}), np.arange(1))}
    assert digest.content_digests(catalogue.Dataset(None, other, ""))["train"] != found["train"]


def test_of_a_large_array_some_blocks_are_looked_at(monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 8)
    monkeypatch.setattr(sources, "BLOCKS", 3)

    def parts(array):
        return [bytes(part) for part in sources.array_content("a", array)]

    large = np.arange(80, dtype=np.uint8)
    assert len(parts(large)) == 1 + 3
    for place, noticed in ((0, True), (79, True), (20, False)):
        changed = large.copy()
        changed[place] ^= 1
        assert (parts(changed) != parts(large)) == noticed
    assert b"".join(parts(large[:20])[1:]) == large[:20].tobytes()


def test_how_pictures_are_decoded_does_not_tell_them_apart(tmp_path, monkeypatch):
    Image.new("L", (4, 4), 7).save(tmp_path / "0.png")
    first = digests(dataset(name="folder", path=str(tmp_path)))
    decode = transforms.pixels
    monkeypatch.setattr(transforms, "pixels", lambda *a, **k: decode(*a, **k) + np.uint8(1))
    assert digests(dataset(name="folder", path=str(tmp_path))) == first


def test_a_run_without_digests_is_compared_by_its_looks(tmp_path):
    spec = catalogue.load(texts(tmp_path)).spec
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    from genjax import config

    given = config.base(), spec, [], 1
    workdir.write_config(tmp_path, *given, content={"train": "a"})
    with pytest.raises(ValueError, match=r"the content of train: sha256 a -> b"):
        workdir.check_same_data(tmp_path, spec, False, lambda: {"train": "b"})
    workdir.check_same_data(tmp_path, spec, False, lambda: {"train": "a", "test": "c"})
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["content"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    workdir.check_same_data(tmp_path, spec, False, lambda: {"train": "b"})
