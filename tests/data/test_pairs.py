"""Pairs of texts out of JSON Lines."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from datasets import arrays, dataset

from genjax import modalities
from genjax.config import ConfigError
from genjax.data import catalogue

PAIRS = [(f"{n} + {n}", f"= {2 * n}") for n in range(12)] + [("Zoë?", "naïve 日本")]


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))


def put(path, pairs=PAIRS, names=("source", "target")):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = [json.dumps(dict(zip(names, pair, strict=True), id=7)) for pair in pairs]
    path.write_text("\n".join([*made, ""]))
    return path


def wanted(path, length=16, **keys):
    return dataset(name="pairs", path=str(path), **{"text.length": length, **keys})


def said(loaded, split):
    """The pairs of a split, by the tokenizers of their fields."""
    read = arrays(loaded.splits[split])
    columns = [
        [field.facts["tokenizer"].decode(row) for row in read[name]]
        for name, field in loaded.spec.fields.items()
    ]
    return list(zip(*columns, strict=True))


def test_each_line_is_a_source_and_a_target(tmp_path):
    asked = wanted(put(tmp_path / "a.jsonl"))
    loaded = catalogue.load(asked)
    assert catalogue.spec(asked) == loaded.spec
    spec = loaded.spec
    assert (spec.name, spec.target, list(spec.fields)) == ("pairs", "target", ["source", "target"])
    for field in spec.fields.values():
        assert (field.kind, field.shape, field.dtype) == ("text", (16,), np.int32)
        assert field.facts["vocabulary_size"] == 257
        assert field.facts["special"]["eos"] == 256
    assert spec.sizes == {"train": 13}
    assert said(loaded, "train") == PAIRS
    example = loaded.splits["train"][2]
    assert example["source"].tolist() == [*b"2 + 2", *[256] * 11]
    assert example["target"].tolist() == [*b"= 4", *[256] * 13]
    assert example["target"].dtype == np.int32
    taken = loaded.splits["train"].take(np.array([2, 2]))
    np.testing.assert_array_equal(taken["source"], [example["source"]] * 2)
    assert "a.jsonl" in loaded.route
    assert modalities.transforms(asked, spec, train=True) is None


def test_other_names_and_the_first_as_the_target(tmp_path):
    path = put(tmp_path / "a.jsonl", names=("question", "answer"))
    fields = (("question", "text"), ("answer", "text"))
    loaded = catalogue.load(wanted(path, fields=fields))
    assert (loaded.spec.target, said(loaded, "train")) == ("answer", PAIRS)
    loaded = catalogue.load(wanted(path, fields=fields[::-1]))
    assert loaded.spec.target == "question"
    assert said(loaded, "train") == [pair[::-1] for pair in PAIRS]
    loaded = catalogue.load(wanted(path, fields=fields, target="question"))
    assert (loaded.spec.target, said(loaded, "train")) == ("question", PAIRS)
    assert (
        catalogue.load(wanted(put(tmp_path / "b.jsonl"), target="source")).spec.target == "source"
    )


def test_tokens_are_cached_and_made_again_if_damaged(tmp_path, caplog):
    path = put(tmp_path / "a.jsonl")
    first = catalogue.load(wanted(path))
    (folder,) = (tmp_path / "cache" / "pairs").iterdir()
    stamp = folder.stat().st_mtime_ns
    assert said(catalogue.load(wanted(path)), "train") == PAIRS
    assert folder.stat().st_mtime_ns == stamp
    rows = np.load(folder / "train_0.npy")
    np.save(folder / "train_0.npy", rows[::-1])
    with caplog.at_level(logging.WARNING):
        again = catalogue.load(wanted(path))
    assert "train_0.npy has different content" in caplog.text
    assert said(again, "train") == PAIRS
    assert again.spec == first.spec
    put(path, PAIRS[:5])
    assert said(catalogue.load(wanted(path)), "train") == PAIRS[:5]


def test_official_splits_are_used_and_others_carved_out_of_train(tmp_path):
    put(tmp_path / "all" / "train.jsonl")
    put(tmp_path / "all" / "val.jsonl", PAIRS[:3])
    asked = wanted(tmp_path / "all", validation="50_percent", test="2_examples")
    loaded = catalogue.load(asked)
    assert loaded.spec.sizes == {"train": 11, "validation": 3, "test": 2}
    assert catalogue.spec(asked) == loaded.spec
    assert said(loaded, "validation") == PAIRS[:3]
    assert sorted(said(loaded, "train") + said(loaded, "test")) == sorted(PAIRS)
    carved = catalogue.load(wanted(put(tmp_path / "a.jsonl"), validation="25_percent"))
    assert carved.spec.sizes == {"train": 10, "validation": 3}
    assert sorted(said(carved, "train") + said(carved, "validation")) == sorted(PAIRS)


def test_both_texts_are_of_one_tokenizer_that_is_made_of_both(tmp_path):
    path = put(tmp_path / "a.jsonl", [("ab", "cd"), ("ba", "cc"), ("aa", "xy")])
    loaded = catalogue.load(wanted(path, **{"text.tokenizer": "characters"}))
    source, target = loaded.spec.fields.values()
    assert source == target
    assert source.facts["vocabulary_size"] == len("abcdxy") + 1
    options = {"text.tokenizer": "bpe", "text.vocabulary_size": 300}
    (tmp_path / "split").mkdir()
    put(tmp_path / "split" / "train.jsonl", [("abab " * 9, "cdcd " * 9)] * 9)
    put(tmp_path / "split" / "test.jsonl", [("xyxy " * 9, "zwzw " * 9)] * 9)
    loaded = catalogue.load(wanted(tmp_path / "split", 64, **options))
    vocabulary = loaded.spec.generated.facts["tokenizer"].inner.get_vocab()
    assert any("ab" in token for token in vocabulary)
    assert any("cd" in token for token in vocabulary)
    assert not any("xy" in token or "zw" in token for token in vocabulary)  # of train alone
    assert said(loaded, "test")[0] == ("xyxy " * 9, "zwzw " * 9)


def test_texts_that_are_too_long_are_cut_and_counted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = catalogue.load(wanted(put(tmp_path / "a.jsonl"), 6, **{"text.cut": True}))
    first, second = (r.getMessage() for r in caplog.records if r.name.startswith("genjax"))
    assert "pairs source: 2 of the 13 texts of train" in first  # 10 + 10 and 11 + 11
    assert "the longest has 8" in first
    assert "pairs target: 1 of the 13 texts of train" in second
    assert said(loaded, "train")[10] == ("10 + 1", "= 20")
    with pytest.raises(ConfigError, match=r"source: 2 of the 13 texts of train .* has 8.*cut=True"):
        catalogue.load(wanted(tmp_path / "a.jsonl", 6))


def test_a_source_of_another_length(tmp_path):
    path = put(tmp_path / "a.jsonl", [("a long question", "yes")])
    lengths = {"text.source_length": 16}
    loaded = catalogue.load(wanted(path, 4, **lengths))
    assert {name: f.shape for name, f in loaded.spec.fields.items()} == {
        "source": (16,),
        "target": (4,),
    }
    assert said(loaded, "train") == [("a long question", "yes")]
    other = catalogue.load(wanted(path, 16, target="source", **{"text.source_length": 4}))
    assert other.spec.fields["target"].shape == (4,)
    with pytest.raises(ConfigError, match="pairs target: 1 of the 1 texts"):
        catalogue.load(wanted(path, 3, **lengths))


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"fields": (("source", "text"),)}, "pairs are two texts"),
        ({"fields": (("a", "text"), ("b", "text"), ("c", "text"))}, "pairs are two texts"),
        ({"fields": (("source", "text"), ("target", "image"))}, "pairs are two texts"),
        ({"target": "answer"}, r"target='answer': expected one of \['source', 'target'\]"),
        ({"fields": (("source", "text"), ("answer", "text"))}, r"line 1: .*field 'answer'"),
        ({"fields": (("question", "text"), ("target", "text"))}, r"line 1: .*field 'question'"),
        ({"text.tokenizer": "byte"}, "Nearest: bytes"),
        ({"flip": True}, "flip=True is for images; pairs is text"),
        ({"image_size": 8}, "image_size=.* is for images; pairs is text"),
        ({"path": ""}, 'dataset.name="pairs" needs dataset.path'),
    ],
)
@pytest.mark.parametrize("ask", [catalogue.spec, catalogue.load])
def test_wrong_fields_and_keys(tmp_path, keys, match, ask):
    given = {"path": str(put(tmp_path / "a.jsonl")), **keys}
    with pytest.raises(ConfigError, match=match):
        ask(dataset(name="pairs", **given))


@pytest.mark.parametrize("pair", [("", "a"), ("a", ""), ("a", " \n")])
def test_an_empty_text_is_refused(tmp_path, pair):
    path = put(tmp_path / "a.jsonl", [("a", "b"), pair])
    name = "source" if not pair[0] else "target"
    with pytest.raises(ConfigError, match=f"pairs {name}: text 2 of the split train is empty"):
        catalogue.load(wanted(path))


def test_files_that_are_no_pairs(tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(ConfigError, match="is, or holds, other text"):
        catalogue.load(wanted(tmp_path / "a.txt"))
    (tmp_path / "b.jsonl").write_text('{"source": "a", "target": "b"}\n{"source": "a"}\n')
    with pytest.raises(ConfigError, match=r"b\.jsonl, line 2: .*field 'target'"):
        catalogue.load(wanted(tmp_path / "b.jsonl"))
    assert catalogue.load(wanted(tmp_path / "b.jsonl", on_corrupt="skip")).spec.sizes["train"] == 1
    put(tmp_path / "split" / "train.jsonl")
    (tmp_path / "split" / "test.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="the split test has no text"):
        catalogue.load(wanted(tmp_path / "split"))
