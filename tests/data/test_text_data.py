from __future__ import annotations

import json
import re
import threading

import numpy as np
import pytest
from datasets import dataset as base

from genjax import config, modalities
from genjax.config import ConfigError
from genjax.data import catalogue, loader, sources, text, tokenizers, windows

RNG = np.random.default_rng(0)
WORDS = ("the", "quick", "brown", "fox", "日本", "naïve", "\n", "over", "a")


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(text, "GROUP", 25)  # so that a few documents are several groups


def prose(words, seed=0):
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def dataset(path, validation="", test="", **options):
    made = base(name="text", path=str(path), validation=validation, test=test)
    for key, value in options.items():
        made.text[key] = value
    return made


@pytest.fixture
def long_text(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(prose(300), "utf-8")
    return path


LENGTHS = (1, 30, 2, 7, 7, 90, 12, 3, 5, 40, 1, 8)
DOCUMENTS = [f"{n} {prose(words, seed=n)}" for n, words in enumerate(LENGTHS)]


@pytest.fixture
def several(tmp_path):
    path = tmp_path / "several.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return path


def all_of(source):
    return source.take(np.arange(len(source)))


def tokenizer_of(loaded):
    return loaded.spec.generated.facts["tokenizer"]


def check_spec(loaded, wanted):
    """`spec` is what `spec` says, what the sources hold, and what the loader delivers."""
    assert catalogue.spec(wanted) == loaded.spec
    assert {s: len(x) for s, x in loaded.splits.items()} == loaded.spec.sizes
    facts = loaded.spec.generated.facts
    assert facts["vocabulary_size"] == facts["tokenizer"].vocabulary_size
    for train in (True, False):
        transform = modalities.transforms(wanted, loaded.spec, train)
        source = loaded.splits["train"]
        batches = loader.train_batches(source, seed=1, batch_size=2, transform=transform)
        batch = batches[len(source)]
        found = {k: (v.shape, v.dtype) for k, v in batch.items()}
        fields = loaded.spec.fields.items()
        assert found == {k: ((2, *f.shape), np.dtype(f.dtype)) for k, f in fields}
    stacked = sources.stack([loaded.splits["train"][i] for i in range(len(source))])
    for name, rows in all_of(source).items():
        assert rows.dtype == stacked[name].dtype
        np.testing.assert_array_equal(rows, stacked[name])


def test_a_stream_gives_every_byte_as_a_target_once(long_text):
    wanted = dataset(long_text, length=16)
    loaded = catalogue.load(wanted)
    content = np.frombuffer(long_text.read_bytes(), np.uint8)
    batch = all_of(loaded.splits["train"])
    targets = batch["token"][:, 1:].ravel()
    assert len(targets) == (len(content) - 1) // 16 * 16
    np.testing.assert_array_equal(targets, content[1 : 1 + len(targets)])
    np.testing.assert_array_equal(batch["token"][1:, 0], batch["token"][:-1, -1])
    np.testing.assert_array_equal(batch["bytes"], 16)
    assert loaded.spec.target == "token"
    assert loaded.spec.generated.kind == "text"
    assert loaded.spec.generated.facts["special"] == {"start": 10}
    assert loaded.spec.generated.facts["vocabulary_size"] == 256
    check_spec(loaded, wanted)


def test_a_stream_is_shifted_in_training_and_only_there(long_text):
    wanted = dataset(long_text, length=16, tokenizer="characters")
    loaded = catalogue.load(wanted)
    source, content = loaded.splits["train"], long_text.read_text("utf-8")
    shift = modalities.transforms(wanted, loaded.spec, train=True)
    assert modalities.transforms(wanted, loaded.spec, train=False) is None
    packed = dataset(long_text, documents="packed")
    assert modalities.transforms(packed, loaded.spec, train=True) is None
    seen = set()
    for index in range(len(source)):
        for seed in range(60):
            moved = shift(source[index], np.random.default_rng(seed))
            by = int(np.random.default_rng(seed).integers(16))
            start = min(index * 16 + by, len(content) - 17)
            read = tokenizer_of(loaded).decode(moved["token"])
            assert read == content[start : start + 17]
            assert moved["bytes"] == len(read[1:].encode())
            seen.add(by)
    assert seen == set(range(16))
    batches = loader.train_batches(source, seed=0, batch_size=4, transform=shift)
    np.testing.assert_array_equal(batches[7]["token"], batches[7]["token"])
    assert (batches[0]["token"] != batches[len(source) // 4]["token"]).any()


def test_held_out_is_the_end_of_one_text(long_text):
    content = long_text.read_text("utf-8")
    loaded = catalogue.load(
        dataset(long_text, "20_percent", "10_percent", length=8, tokenizer="characters")
    )
    kept = {s: tokenizer_of(loaded).decode(x._tokens.ids) for s, x in loaded.splits.items()}
    border = [int(len(content) * part) for part in (0.7, 0.9)]
    assert kept["train"] == content[: border[0]]
    assert kept["validation"] == content[border[0] : border[1]]
    assert kept["test"] == content[border[1] :]


def test_documents_in_a_stream_end_with_eos(several):
    wanted = dataset(several, "25_percent", length=8)
    loaded = catalogue.load(wanted)
    kept = {}
    for split, source in loaded.splits.items():
        ids = source._tokens.ids
        parts = np.split(ids, source._tokens.ends)[:-1]
        assert all(part[-1] == 256 and (part[:-1] < 256).all() for part in parts)
        kept[split] = [bytes(part[:-1].astype(np.uint8)).decode() for part in parts]
    assert len(kept["validation"]) == 3
    places = {s: [DOCUMENTS.index(t) for t in found] for s, found in kept.items()}
    assert sorted(places["train"] + places["validation"]) == list(range(len(DOCUMENTS)))
    assert places["train"] == sorted(places["train"])
    assert loaded.spec.generated.facts["special"] == {"start": 256, "eos": 256}
    first = loaded.splits["validation"][0]
    assert first["bytes"] == (first["token"][1:] < 256).sum()
    check_spec(loaded, wanted)


@pytest.mark.parametrize("documents", ["packed", "padded"])
@pytest.mark.parametrize("length", [20, 1000])
def test_rows_hold_every_document_once(several, documents, length):
    wanted = dataset(several, length=length, documents=documents)
    loaded = catalogue.load(wanted)
    rows = all_of(loaded.splits["train"])
    found, targets, size = [], 0, 0
    for token, segment, count in zip(rows["token"], rows["segment"], rows["bytes"], strict=True):
        used = int((segment > 0).sum())
        assert (segment[:used] > 0).all()  # padding is on the right
        assert (token[used:] == 256).all()
        assert (np.isin(np.diff(segment[:used]), (0, 1))).all()
        numbers = np.unique(segment[:used])
        np.testing.assert_array_equal(numbers, np.arange(1, len(numbers) + 1))
        assert documents == "packed" or len(numbers) == 1
        parts = [token[segment == number] for number in numbers]
        assert count == sum((part[1:] < 256).sum() for part in parts)
        targets += sum(len(part) - 1 for part in parts)
        size += count
        found += [tuple(part) for part in parts]
    whole = [(256, *t.encode(), 256) for t in DOCUMENTS]
    expected = [
        piece
        for tokens in whole
        for start in range(0, len(tokens) - 1, length)
        if (piece := tokens[start : start + length + 1])
    ]
    assert sorted(found) == sorted(expected)
    assert targets == sum(len(tokens) - 1 for tokens in whole)
    assert size == sum(len(t.encode()) for t in DOCUMENTS)
    if documents == "padded":
        assert found == expected
    elif length == 1000:
        assert len(rows["token"]) == -(-sum(len(tokens) for tokens in whole) // 1001)
    check_spec(loaded, wanted)


def test_a_start_that_documents_have_of_their_own_is_there_once(several, tmp_path):
    own = tmp_path / "tokenizer.json"
    own.write_text('{"kind": "bytes", "special": {"eos": 256, "bos": 257}}')
    loaded = catalogue.load(dataset(several, length=1000, documents="packed", tokenizer=str(own)))
    rows, found = all_of(loaded.splits["train"]), []
    for token, segment in zip(rows["token"], rows["segment"], strict=True):
        found += [tuple(token[segment == n]) for n in range(1, segment.max() + 1)]
    assert sorted(found) == sorted((257, *t.encode(), 256) for t in DOCUMENTS)


def test_packing_fills_rows_and_loses_nothing():
    order, ends = windows.pack(np.array([5, 3, 8, 5, 2, 7, 1]), 10)
    rows = [sorted(row.tolist()) for row in np.split(order, ends)[:-1]]
    assert rows == [[2, 4], [1, 5], [0, 3], [6]]  # by hand: 8+2, 7+3, 5+5, 1
    sizes = RNG.integers(1, 65, 500)
    order, ends = windows.pack(sizes, 64)
    assert sorted(order) == list(range(500))
    filled = [sizes[row].sum() for row in np.split(order, ends)[:-1]]
    assert max(filled) <= 64
    assert len(filled) <= 11 / 9 * np.ceil(sizes.sum() / 64) + 1  # the bound of best-fit decreasing


@pytest.mark.parametrize("documents", ["stream", "packed", "padded"])
def test_prompts_do_not_count(tmp_path, documents):
    path = tmp_path / "a.jsonl"
    pairs = [("2+2=", "4"), ("Zoë?", "naïve"), ("", "only"), ("nothing:", "")] * 3
    path.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in pairs))
    wanted = dataset(path, length=30, documents=documents, field="a", prompt_field="q")
    loaded = catalogue.load(wanted)
    rows = all_of(loaded.splits["train"])
    assert rows["loss_mask"].dtype == bool
    answers = b"".join(a.encode() for _, a in pairs)
    counted = rows["token"][:, 1:][rows["loss_mask"][:, 1:]]
    if documents == "stream":  # the end of the stream is in no window
        assert answers.startswith(bytes(counted[counted < 256].astype(np.uint8)))
        np.testing.assert_array_equal(
            rows["bytes"], ((rows["token"] < 256) & rows["loss_mask"])[:, 1:].sum(1)
        )
    else:
        assert sorted(counted[counted < 256]) == sorted(answers)
        assert (counted == 256).sum() == len(pairs)
        assert rows["bytes"].sum() == len(answers)
        assert not rows["loss_mask"][:, 0].any()
    check_spec(loaded, wanted)


@pytest.mark.parametrize(
    ("tokenizer", "dtype"), [("bytes", np.uint16), ("characters", np.uint16), ("bpe", np.uint16)]
)
def test_text_is_tokenised_once_into_a_mapped_array(several, monkeypatch, tokenizer, dtype):
    wanted = dataset(several, "25_percent", length=8, tokenizer=tokenizer, vocabulary_size=300)
    first = catalogue.load(wanted)
    monkeypatch.setattr(tokenizers, "make", lambda *_: pytest.fail("tokenised again"))
    for changed in (wanted, dataset(several, "25_percent", length=9, documents="packed")):
        changed.text.tokenizer, changed.text.vocabulary_size = tokenizer, 300
        again = catalogue.load(changed)
    for split in first.splits:
        ids = again.splits[split]._tokens.ids
        assert ids.dtype == dtype
        assert isinstance(ids.base, np.memmap)
        np.testing.assert_array_equal(ids, first.splits[split]._tokens.ids)
    assert tokenizer_of(again).to_json() == tokenizer_of(first).to_json()
    several.write_text(several.read_text() + '{"text": "more"}\n')
    with pytest.raises(pytest.fail.Exception, match="tokenised again"):
        catalogue.load(wanted)


def test_what_is_kept_depends_on_all_that_made_it(several):
    def place(**changed):
        wanted = {"length": 8, "tokenizer": "bpe", "vocabulary_size": 300, **changed}
        return catalogue.load(dataset(several, **wanted)).route

    different = [{}, {"vocabulary_size": 301}, {"tokenizer": "bytes"}, {"validation": "20_percent"}]
    assert len({place(**d) for d in different}) == len(different)
    assert place(tokenizer="bytes") == place(tokenizer="bytes", vocabulary_size=999)


def test_large_vocabularies_take_four_bytes(tmp_path):
    points = [p for p in range(0x20, 0x11800) if not 0xD800 <= p < 0xE000]
    (tmp_path / "a.txt").write_text("".join(map(chr, points)), "utf-8")
    loaded = catalogue.load(dataset(tmp_path / "a.txt", tokenizer="characters", length=4))
    ids = loaded.splits["train"]._tokens.ids
    assert ids.dtype == np.uint32
    np.testing.assert_array_equal(ids, np.arange(len(points)))


def test_loads_at_once_make_it_once(several, monkeypatch):
    made, makes, found = tokenizers.make, [], []

    def slow(*arguments):
        makes.append(arguments[0])
        threading.Event().wait(0.2)
        return made(*arguments)

    monkeypatch.setattr(tokenizers, "make", slow)
    wanted = dataset(several, length=8)
    threads = [
        threading.Thread(target=lambda: found.append(catalogue.load(wanted).route))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert makes == ["bytes"]
    left = [p.name for p in (text.packages.cache_root() / "text").iterdir()]
    assert len(left) == 1


def test_a_crash_leaves_nothing_half_made(several, monkeypatch, tmp_path):
    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as changed:
        changed.setattr(text._Growing, "add", full)
        with pytest.raises(OSError, match="no space left"):
            catalogue.load(dataset(several, length=8))
    assert not list((tmp_path / "cache" / "text").iterdir())
    assert catalogue.load(dataset(several, length=8)).splits["train"]


def test_bits_per_byte_do_not_depend_on_what_a_tokenizer_loses(several):
    options = {"length": 2000, "documents": "padded", "vocabulary_size": 300}
    true = sum(len(t.encode()) for t in DOCUMENTS)
    for tokenizer in ("bytes", "characters", "bpe", "unigram", "wordpiece"):
        loaded = catalogue.load(dataset(several, tokenizer=tokenizer, **options))
        total = all_of(loaded.splits["train"])["bytes"].sum()
        np.testing.assert_allclose(total, true, rtol=1e-6)
        lossless = tokenizer != "wordpiece"
        assert (loaded.splits["train"]._tokens.weights.max() % 1 == 0) == lossless


def test_characters_are_those_of_all_splits_and_bpe_sees_train_only(tmp_path):
    for name, content in {"train.txt": "ab " * 50, "val.txt": "xyz " * 50}.items():
        (tmp_path / name).write_text(content)
    loaded = catalogue.load(dataset(tmp_path, length=8, tokenizer="characters"))
    assert loaded.spec.generated.facts["vocabulary_size"] == len(set("ab xyz"))
    loaded = catalogue.load(dataset(tmp_path, length=8, tokenizer="bpe", vocabulary_size=300))
    vocabulary = tokenizer_of(loaded).inner.get_vocab()
    assert "Ġab" in vocabulary
    assert not any("xy" in token for token in vocabulary)
    assert set(loaded.splits) == {"train", "validation"}


def test_bad_text_is_one_clear_error(tmp_path, long_text):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for wanted, said in (
        (dataset(empty), "no text in the split train"),
        (dataset(long_text, length=10**6), r"has \d+ tokens; an example takes .* = 1000001"),
        (dataset(long_text, "1_percent", length=40), "the split validation of text has"),
        (dataset(long_text, tokenizer="byte"), "Nearest: bytes"),
        (dataset(long_text, "5_examples"), "Expected a share of it"),
    ):
        with pytest.raises(ConfigError, match=said):
            catalogue.load(wanted)
    assert not list((tmp_path / "cache" / "text").glob(".*"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("length", 0, "expected at least 1"),
        ("vocabulary_size", -1, "expected at least 0"),
        ("documents", "pack", "expected one of stream, packed, padded. Nearest: packed"),
        ("tokenizer", "", "expected a name or a path"),
    ],
)
def test_options_out_of_range_are_refused(key, value, said):
    made = config.base()
    made.method = "lm"
    made.dataset.text[key] = value
    with pytest.raises(ConfigError, match=rf"config\.dataset\.text\.{key}={value!r}: {said}"):
        config.validate(made)


@pytest.mark.parametrize(
    ("key", "value"),
    [("flip", True), ("crop_padding", 4), ("dequantize", True), ("image_size", 8), ("channels", 1)],
)
def test_what_is_done_to_images_is_refused(long_text, key, value):
    wanted = base(name="text", path=str(long_text), **{key: value})
    given = re.escape(repr(wanted[key]))
    with pytest.raises(ConfigError, match=rf"config\.dataset\.{key}={given} is for images"):
        catalogue.spec(wanted)


def test_a_handful_of_files_hold_out_their_ends(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(name * 90 + name.upper() * 10)
    wanted = dataset(tmp_path, validation="10_percent", length=8)
    loaded = catalogue.load(wanted)
    tokens = {split: source._tokens.ids for split, source in loaded.splits.items()}
    eos = tokenizer_of(loaded).special["eos"]
    for split, expected in (("train", "{}" * 90), ("validation", "{}" * 10)):
        case = str.lower if split == "train" else str.upper
        documents = [[*(expected.replace("{}", case(name))).encode(), eos] for name in "abcd"]
        assert tokens[split].tolist() == [token for one in documents for token in one]
    # More of them hold out whole documents, as ever, and lines of prompts always do.
    assert catalogue.load(dataset(tmp_path, validation="25_percent", length=8)).spec.sizes
    half = catalogue.load(dataset(tmp_path, validation="50_percent", length=8))
    assert len(half.splits["train"]._tokens.ids) == 2 * 101
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"q": "q", "text": f"{i}" * 9}) + "\n" for i in range(4)))
    asked = dataset(lines, validation="1_percent", length=8, prompt_field="q", documents="padded")
    sizes = {s: len(x._tokens.ends) for s, x in catalogue.load(asked).splits.items()}
    assert sizes == {"train": 3, "validation": 1}
