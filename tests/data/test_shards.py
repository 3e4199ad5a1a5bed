"""Pictures with captions in several archives, as WebDataset writes them, and several captions."""

from __future__ import annotations

import io
import json
import logging
import tarfile

import numpy as np
import pytest
from datasets import arrays, dataset
from PIL import Image

from genjax import modalities
from genjax.config import ConfigError
from genjax.data import archives, catalogue, folders, loader


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))


def picture(value):
    content = io.BytesIO()
    Image.new("L", (3, 2), value).save(content, "PNG")
    return content.getvalue()


def shard(path, members):
    """A tar of members: name -> a picture's grey, or a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            content = picture(content) if isinstance(content, int) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def shards(folder, names, first=0):
    """Archives with two pictures each, whose greys count on; captions in .txt and .json."""
    for number, name in enumerate(names):
        grey = first + 2 * number
        members = {
            "000000.png": grey,
            "000000.txt": f"grey {grey}\n",
            "000000.json": json.dumps({"url": "somewhere", "caption": "not this one"}),
            "000001.png": grey + 1,
            "000001.json": json.dumps({"caption": f"grey {grey + 1}", "width": 3}),
        }
        shard(folder / f"{name}.tar", members)
    return folder


def load(path, **keys):
    return catalogue.load(dataset(name="folder", path=str(path), **{"text.length": 16, **keys}))


def said(loaded, split):
    """The grey of each picture, and its caption or captions."""
    read = arrays(loaded.splits[split])
    decode = loaded.spec.fields["text"].facts["tokenizer"].decode
    texts = [
        decode(row) if row.ndim == 1 else tuple(decode(one) for one in row) for row in read["text"]
    ]
    return list(zip(read["image"][:, 0, 0, 0].tolist(), texts, strict=True))


@pytest.mark.parametrize("pattern", ["", "{000..002}.tar", "00{0,1,2}.tar"])
def test_pictures_of_all_shards_keep_their_captions(tmp_path, pattern):
    shards(tmp_path / "set", ["000", "001", "002"])
    loaded = load(tmp_path / "set" / pattern)
    assert set(loaded.spec.fields) == {"image", "text"}
    assert said(loaded, "train") == [(n, f"grey {n}") for n in range(6)]


@pytest.mark.parametrize(
    "names",
    [
        ("train-{n}", "val-{n}"),
        ("cc3m-train-{n}", "cc3m-validation-{n}"),
        ("train/{n}", "val/{n}"),
    ],
)
def test_shards_called_like_a_split_belong_to_it(tmp_path, names, caplog):
    train, validation = names
    shards(tmp_path / "set", [train.format(n=f"{n:05d}") for n in range(3)])
    shards(tmp_path / "set", [validation.format(n=f"{n:05d}") for n in range(2)], 100)
    pattern = ""
    if "/" in train:
        pattern = "{train,val}/{00000..00001}.tar"
    with caplog.at_level(logging.INFO):
        loaded = load(tmp_path / "set" / pattern)
    assert [n for n, _ in said(loaded, "train")] == list(range(4 if pattern else 6))
    assert said(loaded, "validation") == [(n, f"grey {n}") for n in range(100, 104)]
    assert f"{validation.rpartition('/')[2][:-3]}00000.tar to" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{9..10}", ["9", "10"]),
        ("{a,b}/{0..1}", ["a/0", "b/0", "a/1", "b/1"]),
        ("x{}.tar", ["x{}.tar"]),
        ("{a}", ["{a}"]),
        ("{,b}c", ["c", "bc"]),
    ],
)
def test_braces_are_expanded_as_in_a_shell(pattern, names):  # bash 5: echo PATTERN
    assert sorted(archives.expanded(pattern)) == sorted(names)


def test_braces_that_ask_for_too_much_are_refused():
    with pytest.raises(ConfigError, match=r"\{9\.\.3\}.*the smaller first"):
        archives.expanded("{9..3}.tar")
    with pytest.raises(ConfigError, match="more than 100000 names"):
        archives.expanded("{0..999}/{0..999}.tar")


def test_a_folder_of_one_archive_has_the_splits_inside(tmp_path):
    members = {f"train/{i}.png": i for i in range(3)} | {"test/9.png": 9}
    shard(tmp_path / "set" / "all.tar", members)
    splits = load(tmp_path / "set").splits
    sizes = {split: len(source) for split, source in splits.items() if len(source)}
    assert sizes == {"train": 3, "test": 1}


def test_a_missing_shard_is_named_and_counted(tmp_path):
    shards(tmp_path, ["000", "002"])
    with pytest.raises(ConfigError, match=r"2 of its 4 files are missing; the first is .*001\.tar"):
        load(tmp_path / "{000..003}.tar")
    with pytest.raises(ConfigError, match="val-0 but no archive or folder called train"):
        load(shards(tmp_path / "set", ["val-0"]) / "val-{0..0}.tar")


def test_a_picture_without_caption_is_named_with_its_shard(tmp_path):
    shards(tmp_path, ["000"])
    shard(tmp_path / "001.tar", {"7.png": 7, "7.cls": "1"})
    with pytest.raises(ConfigError, match=r"001-\w+/7\.png has no caption, and 2 of 3 pictures"):
        load(tmp_path)


LINES = {"a.png": 0, "a.txt": "one\ntwo\n\nthree\n", "b.png": 1, "b.txt": "four\nfive"}
OBJECTS = {
    **{"a.png": 0, "a.json": json.dumps({"captions": ["one", "two", " ", "three"]})},
    **{"b.png": 1, "b.json": json.dumps({"captions": ["four", "five"], "caption": "no"})},
}


def rows(*pairs):
    return "".join(json.dumps({"file_name": file, "text": text}) + "\n" for file, text in pairs)


TABLE = {
    **{"a.png": 0, "b.png": 1},
    "captions.jsonl": rows(("a.png", ["one", "two"]), ("b.png", "four"), ("a.png", "three"))
    + rows(("b.png", "five")),
}


@pytest.mark.parametrize("members", [LINES, OBJECTS, TABLE], ids=["lines", "objects", "table"])
def test_a_picture_may_have_several_captions(tmp_path, members, caplog):
    shard(tmp_path / "a.tar", members)
    with caplog.at_level(logging.INFO):
        loaded = load(tmp_path / "a.tar")
    assert loaded.spec.fields["text"].facts["wordings"] == 3
    assert said(loaded, "train") == [(0, ("one", "two", "three")), (1, ("four", "five", "four"))]
    assert "with 2 to 3 captions each, of which training draws one" in caplog.text
    assert "not read" not in caplog.text


def test_training_draws_one_of_the_captions_and_evaluation_takes_the_first(tmp_path):
    shard(tmp_path / "a.tar", LINES)
    asked = dataset(name="folder", path=str(tmp_path / "a.tar"), **{"text.length": 8})
    loaded = catalogue.load(asked)
    decode = loaded.spec.fields["text"].facts["tokenizer"].decode
    drawn = {0: set(), 1: set()}

    def batches(train, seed):
        transform = modalities.transforms(asked, loaded.spec, train=train)
        return loader.train_batches(
            loaded.splits["train"], seed=seed, batch_size=2, transform=transform
        )

    training = batches(True, 0)
    for step in range(20):
        for grey, row in zip(
            training[step]["image"][:, 0, 0, 0], training[step]["text"], strict=True
        ):
            assert row.shape == (8,)
            drawn[int(grey)].add(decode(row))
    assert drawn == {0: {"one", "two", "three"}, 1: {"four", "five"}}
    again = batches(True, 0)
    np.testing.assert_array_equal(
        [training[step]["text"] for step in range(20)], [again[step]["text"] for step in range(20)]
    )
    held_out = batches(False, 0)
    firsts = {decode(row) for step in range(5) for row in held_out[step]["text"]}
    assert firsts == {"one", "four"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.txt": "x\n" * 65}, r"a\.png has 65 captions, expected at most 64"),
        ({"a.json": "[1]"}, r"a\.json cannot be read .*the list captions, or the text"),
        ({"a.json": '{"captions": [1]}'}, r"a\.json cannot be read .*the text 1"),
    ],
)
def test_bad_captions_beside_a_picture_are_one_clear_error(tmp_path, members, message):
    shard(tmp_path / "a.tar", {"a.png": 0, **members})
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "a.tar")


def test_other_json_beside_pictures_is_no_caption(tmp_path):
    shard(tmp_path / "a.tar", {"a.png": 0, "a.json": '{"shapes": []}', "all.json": "{}"})
    raw = folders.read(dataset(name="folder", path=str(tmp_path / "a.tar")))
    assert raw.texts is None
