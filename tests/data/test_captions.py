"""Pictures with captions: from files beside them, from tables, from prepared data sets."""

from __future__ import annotations

import csv
import json
import logging

import numpy as np
import pytest
import tensorflow_datasets as tfds
from datasets import arrays, dataset
from PIL import Image

from genjax import modalities
from genjax.config import ConfigError
from genjax.data import captions, catalogue, loader, records
from genjax.data.alphabets import Bytes

SAID = ("a red fox", "naïve 日本", "one\u2028line", "x")


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def put(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (3, 2), value).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Pictures, of which the n-th is of the grey n."""
    for n in range(len(SAID)):
        put(tmp_path / "pictures" / f"{n}.png", n)
    return tmp_path / "pictures"


def wanted(path, length=16, **keys):
    return dataset(name="folder", path=str(path), **{"text.length": length, **keys})


def text_of(loaded, rows):
    return [loaded.spec.fields["text"].facts["tokenizer"].decode(row) for row in rows]


def beside(folder):
    for n, text in enumerate(SAID):
        (folder / f"{n}.txt").write_text(f"{text}\n", "utf-8")


def lines(name):
    def write(folder):
        rows = [{"file_name": f"{n}.png", "text": text} for n, text in enumerate(SAID)]
        made = [json.dumps(row, ensure_ascii=False) for row in reversed(rows)]
        (folder / name).write_text("\n".join([*made, ""]), "utf-8")

    return write


def table(folder):
    with (folder / "metadata.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [("file_name", "text", "more"), *((f"{n}.png", t, 1) for n, t in enumerate(SAID))]
        )


@pytest.mark.parametrize(
    "write",
    [beside, lines("metadata.jsonl"), lines("captions.jsonl"), table],
    ids=["files", "metadata.jsonl", "captions.jsonl", "metadata.csv"],
)
def test_captions_are_delivered_as_tokens(folder, write):
    write(folder)
    asked = wanted(folder, validation="1_examples")
    loaded = catalogue.load(asked)
    assert catalogue.spec(asked) == loaded.spec
    assert loaded.spec.target == "image"
    field = loaded.spec.fields["text"]
    assert (field.kind, field.shape, field.dtype) == ("text", (16,), np.int32)
    assert field.facts["vocabulary_size"] == 257
    assert field.facts["special"] == {"start": 256, "eos": 256}
    seen = {}
    for source in loaded.splits.values():
        read = arrays(source)
        assert read["text"].dtype == np.int32
        np.testing.assert_array_equal(source.take(np.arange(len(source)))["text"], read["text"])
        for number, row in zip(read["image"][:, 0, 0, 0], read["text"], strict=True):
            expected = [*SAID[number].encode(), *[256] * 16][:16]
            assert row.tolist() == expected
            seen[int(number)] = row
    assert sorted(seen) == [0, 1, 2, 3]
    assert text_of(loaded, [seen[n] for n in range(4)]) == list(SAID)


def test_captions_stay_with_their_pictures_in_batches(folder):
    beside(folder)
    asked = wanted(folder, flip=True, dequantize=True)
    loaded = catalogue.load(asked)
    transform = modalities.transforms(asked, loaded.spec, train=True)
    batches = loader.train_batches(
        loaded.splits["train"], seed=0, batch_size=2, transform=transform
    )
    for step in range(6):
        numbers = np.floor(batches[step]["image"][:, 0, 0, 0] * 256).astype(int)
        assert text_of(loaded, batches[step]["text"]) == [SAID[n] for n in numbers]


def test_captions_of_pictures_that_are_left_out_are_left_out(folder):
    beside(folder)
    (folder / "1.png").write_bytes(b"no picture")
    loaded = catalogue.load(wanted(folder, on_corrupt="skip"))
    read = arrays(loaded.splits["train"])
    assert read["image"][:, 0, 0, 0].tolist() == [0, 2, 3]
    assert text_of(loaded, read["text"]) == [SAID[0], SAID[2], SAID[3]]


def test_pictures_in_folders_of_classes_and_splits_have_captions(tmp_path):
    rows = {}
    for split, count in (("train", 3), ("test", 1)):
        for name in ("ant", "bee"):
            for n in range(count):
                put(tmp_path / split / name / f"{n}.png")
                rows.setdefault(split, []).append(
                    {"file_name": f"{name}/{n}.png", "text": f"{split} {name} {n}"}
                )
        text = "".join(json.dumps(row) + "\n" for row in rows[split])
        (tmp_path / split / "metadata.jsonl").write_text(text)
    loaded = catalogue.load(wanted(tmp_path))
    assert set(loaded.spec.fields) == {"image", "label", "text"}
    for split in ("train", "test"):
        read = arrays(loaded.splits[split])
        assert text_of(loaded, read["text"]) == [row["text"] for row in rows[split]]
        assert read["label"].tolist() == [int("bee" in row["file_name"]) for row in rows[split]]


def test_tokenizers_are_made_of_captions(folder):
    beside(folder)
    asked = wanted(folder, validation="1_examples", **{"text.tokenizer": "characters"})
    loaded = catalogue.load(asked)
    assert catalogue.spec(asked) == loaded.spec
    facts = loaded.spec.fields["text"].facts
    assert facts["vocabulary_size"] == len(set("".join(SAID))) + 1
    with pytest.raises(ConfigError, match="Nearest: bytes"):
        catalogue.load(wanted(folder, **{"text.tokenizer": "byte"}))


def test_a_caption_that_is_too_long_is_cut_and_counted(folder, caplog):
    beside(folder)
    with caplog.at_level(logging.WARNING):
        loaded = catalogue.load(wanted(folder, length=9))
    (record,) = [r for r in caplog.records if r.name.startswith("genjax")]
    for part in ("3 of the 4 texts of train", "longer than 9 tokens", "the longest has 14"):
        assert part in record.getMessage()
    rows = arrays(loaded.splits["train"])["text"]
    assert [row.tolist() for row in rows[:3]] == [list(text.encode()[:9]) for text in SAID[:3]]
    assert rows[3].tolist() == [ord("x"), *[256] * 8]
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # the longest is of 13 bytes and its end
        catalogue.load(wanted(folder, length=14))
    assert not [r for r in caplog.records if r.name.startswith("genjax")]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_caption_is_none(folder, text):
    beside(folder)
    (folder / "2.txt").write_text(text)
    with pytest.raises(ConfigError, match=r"2\.png has no caption, and 3 of 4 pictures"):
        catalogue.load(wanted(folder))
    for file in folder.glob("*.txt"):
        file.write_text(text)
    assert "text" not in catalogue.load(wanted(folder)).spec.fields


def test_a_table_of_something_else_is_no_table_of_captions(folder):
    (folder / "metadata.csv").write_text("file_name,label\n0.png,3\n")
    assert "text" not in catalogue.load(wanted(folder)).spec.fields


def test_an_empty_text_of_a_pair_is_refused():
    field = captions.field(Bytes({"eos": 256}), 4)
    with pytest.raises(ConfigError, match="made: text 2 of the split train is empty"):
        captions.rows(["a", " "], field, "made", "train")


@pytest.mark.parametrize("write", [beside, lines("metadata.jsonl")], ids=["files", "table"])
def test_captions_of_some_pictures_are_refused(folder, write):
    write(folder)
    put(folder / "9.png")
    said = r"9\.png has no caption, and 4 of 5 pictures .*Put its text into 9\.txt"
    with pytest.raises(ConfigError, match=said):
        catalogue.load(wanted(folder))
    (folder / "9.txt").write_text("nine")  # also beside a table
    loaded = catalogue.load(wanted(folder))
    assert text_of(loaded, arrays(loaded.splits["train"])["text"]) == [*SAID, "nine"]


def test_captions_of_one_split_are_refused(tmp_path):
    for split in ("train", "test"):
        put(tmp_path / split / "a.png")
    (tmp_path / "train" / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match="pictures of test have no captions, and others have"):
        catalogue.load(wanted(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "metadata.jsonl",
            b'{"file_name": "0.png"}\n{"file_name": "1.png", "text": "a"}',
            r"KeyError: 'text'.*file_name and text",
        ),
        ("metadata.jsonl", b'{"file_name": "0.png", "text": null}', "the text None.*file_name and"),
        ("metadata.jsonl", b"[1, 2]", "cannot be read .*file_name and text"),
        ("metadata.jsonl", b"{", "cannot be read .*file_name and text"),
        ("metadata.jsonl", b"[" * 200_000, "cannot be read .*nested too deeply"),
        ("metadata.csv", b"file,text\n0.png,a\n", r"KeyError: 'file_name'.*file_name and text"),
        ("metadata.csv", b"file_name,text\n0.png\n", "the text None.*file_name and text"),
        ("metadata.csv", b"file_name,text\n0.png,\xff\n", "is not UTF-8: byte 0xff"),
        ("0.txt", b"\xff", r"0\.txt is not UTF-8: byte 0xff"),
    ],
)
def test_bad_captions_are_one_clear_error(folder, name, content, said):
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        catalogue.load(wanted(folder))
    assert name in str(caught.value)


def test_rows_end_and_are_filled_up():
    padded = captions.field(Bytes({"eos": 256, "pad": 257}), 4)
    rows = captions.rows(["a", "abc", "abcd", "abcde"], padded, "made", "train")
    assert rows.dtype == np.int32
    assert rows.tolist() == [
        [97, 256, 257, 257],
        [97, 98, 99, 256],
        [97, 98, 99, 100],
        [97, 98, 99, 100],
    ]
    with pytest.raises(ConfigError, match="made: the split test has no text"):
        captions.rows([], padded, "made", "test")


class Captioned(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set with captions as TFDS users write them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        columns = {
            "image": tfds.features.Image(shape=(2, 3, 1)),
            "caption": tfds.features.Text(),
            "text": tfds.features.Text(),
        }
        features = tfds.features.FeaturesDict(columns)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for n, text in enumerate(SAID):
            image = np.full((2, 3, 1), n, np.uint8)
            yield n, {"image": image, "caption": text, "text": "something else"}


@pytest.mark.parametrize("limit", [2**30, 0])
def test_captions_of_a_prepared_data_set(monkeypatch, limit):
    monkeypatch.setattr("genjax.data.sources.MEMORY_LIMIT", limit)
    records._prepare_quietly(Captioned(data_dir=records.root()))
    for keys in ({}, {"text.tokenizer": "characters"}):
        asked = dataset(name="captioned", test="1_examples", **{"text.length": 14, **keys})
        loaded = catalogue.load(asked)
        assert catalogue.spec(asked) == loaded.spec
        assert set(loaded.spec.fields) == {"image", "text"}
        for split, count in (("train", 3), ("test", 1)):
            read = arrays(loaded.splits[split])
            assert len(read["text"]) == count
            numbers = read["image"][:, 0, 0, 0]
            assert text_of(loaded, read["text"]) == [SAID[n] for n in numbers]
