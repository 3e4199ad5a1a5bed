from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.data import packages, subwords, tokenizers
from genjax.data.alphabets import Bytes, Characters, ends

GOLDEN = Path(__file__).parents[1] / "golden" / "gpt2_tokenizer.npz"
VERSE = "Shall I compare thee to a summer's day? Thou art more lovely and more temperate:\n" * 3


def any_text(seed, count=300):
    """Characters of every plane, half of them of the first 600, with many spaces."""
    rng = np.random.default_rng(seed)
    points = np.where(
        rng.random(count) < 0.5, rng.integers(0, 600, count), rng.integers(0, 0x110000, count)
    )
    kept = [chr(p) for p in points if not 0xD800 <= p < 0xE000]
    return "".join(c if rng.random() < 0.7 else " \n"[rng.integers(2)] for c in kept)


@pytest.fixture(scope="module")
def made():
    """Every lossless kind, made from the same texts."""
    texts = [VERSE, any_text(0)]
    kinds = ("bytes", "characters", "bpe", "unigram")
    return {kind: tokenizers.make(kind, texts, 1, 320, True) for kind in kinds}


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    """The first part of GPT-2's tokenizer, as its package would have it."""
    golden = np.load(GOLDEN)
    (tmp_path / "encoder.json").write_text(str(golden["vocabulary"]), "utf-8")
    (tmp_path / "vocab.bpe").write_text(str(golden["merges"]), "utf-8")
    files = {f"package/{path.name}": path for path in tmp_path.iterdir()}
    monkeypatch.setattr(packages, "fetch", lambda package: files)
    return tokenizers.make("gpt2", [], 0, 0, True)


def spelled(tokenizer, ids):
    """What the tokens add to a text, one after the other."""
    return b"".join(tokenizer.spelling[i] for i in ids).decode()


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe", "unigram"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_text_comes_back_and_its_bytes_add_up(made, kind, seed):
    tokenizer = made[kind]
    text = any_text(0) + VERSE if kind == "characters" else any_text(seed) + subwords.END
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert len(tokenizer.spelling) == tokenizer.vocabulary_size
    assert spelled(tokenizer, ids) == text
    assert not np.isin(list(tokenizer.special.values()), ids).any()
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocabulary_size
    np.testing.assert_array_equal(tokenizer.encode_all(["", text])[1], ids)
    assert tokenizer.encode("").shape == (0,)


def test_bytes_and_characters_are_numbered_in_order():
    assert Bytes({}).encode("añ€").tolist() == list("añ€".encode())
    assert Bytes({}).vocabulary_size == 256
    text = "to be, or not to be"
    found = tokenizers.make("characters", [text, "z"], 1, 0, False)
    alphabet = sorted(set(text + "z"))
    assert found.encode(text).tolist() == [alphabet.index(c) for c in text]
    assert found.vocabulary_size == len(alphabet)
    assert found.special == {}


def test_gpt2_gives_the_ids_of_its_peers(gpt2):
    golden = np.load(GOLDEN)
    texts = json.loads(str(golden["texts"]))
    for peer, lengths in zip(("node", "transformers"), golden["lengths"], strict=True):
        for text, ids in zip(texts, np.split(golden[peer], np.cumsum(lengths)[:-1]), strict=True):
            np.testing.assert_array_equal(gpt2.encode(text), ids, peer)
            assert gpt2.decode(ids) == text
    assert gpt2.special == {"eos": gpt2.vocabulary_size - 1}
    # The ids of tokens do not depend on how many merges there are.
    assert gpt2.encode("H").tolist() == [39]
    assert gpt2.encode("\n").tolist() == [198]


def test_texts_are_cut_where_gpt2_sees_no_difference(gpt2, monkeypatch):
    rng = np.random.default_rng(3)
    monkeypatch.setattr(subwords, "CHUNK", 10)
    monkeypatch.setattr(subwords, "GROUP", 200)
    pieces = [
        "a",
        "don't",
        "!",
        ".",
        "  ",
        "\n",
        "\n\n",
        " ",
        "\t",
        "\x1c",
        "\x85",
        "é",
        "12",
        "'s",
    ]
    text = "".join(rng.choice(pieces, 4000))
    assert len(list(subwords.chunks(text))) > 100
    assert "".join(subwords.chunks(text)) == text
    whole = gpt2.inner.encode(text, add_special_tokens=False).ids
    np.testing.assert_array_equal(gpt2.encode(text), whole)


def test_what_looks_special_is_text(gpt2):
    assert gpt2.special["eos"] not in gpt2.encode(subwords.END)
    assert gpt2.decode([*gpt2.encode("a"), gpt2.special["eos"], *gpt2.encode("b")]) == "ab"


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe", "unigram"])
def test_decoding_never_fails(made, kind):
    tokenizer = made[kind]
    whole = tokenizer.encode("day")
    some = [-1, *whole, tokenizer.vocabulary_size, 10**9, tokenizer.special["eos"]]
    assert tokenizer.decode(np.array(some)) == "day"
    if kind != "characters":
        assert tokenizer.decode(tokenizer.encode("日")[:2]) == "\ufffd"


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_the_same_texts_give_the_same_tokenizer(kind):
    words = "".join(f" {a}{b}{c}" for a in "kst" for b in "aeiou" for c in "lmnr")
    texts = [VERSE + words, "only for validation: Q"]
    found = {tokenizers.make(kind, texts, 1, 330, True).to_json() for _ in range(4)}
    assert len(found) == 1
    assert 'validation"' not in found.pop()


def test_wordpiece_is_trained_on_words():
    tokenizer = tokenizers.make("wordpiece", [VERSE], 1, 300, True)
    text = "compare a lovely summer"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert spelled(tokenizer, ids) == f" {text}"  # with a space before the first word
    assert tokenizer.inner.encode("lovely日").tokens[-1] == subwords.UNKNOWN
    with pytest.raises(ConfigError, match="characters of the data alone make"):
        tokenizers.make("wordpiece", [any_text(5, 3000)], 1, 300, True)


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe", "unigram"])
def test_a_tokenizer_travels_as_json(made, kind, tmp_path):
    tokenizer = made[kind]
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizers.check(str(place), 0)
        back = tokenizers.make(str(place), [], 0, 0, True)
        assert back.to_json() == tokenizer.to_json()
        assert back.special == tokenizer.special
        np.testing.assert_array_equal(back.encode(VERSE), tokenizer.encode(VERSE))
    names = (kind, str(tmp_path))
    before = [tokenizers.identity(name) for name in names]
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json() + " ", "utf-8")
    assert [tokenizers.identity(name) for name in names] == before  # the same tokenizer
    other = tokenizers.from_json(tokenizer.to_json())
    other.special["pad"] = other.special["eos"]
    (tmp_path / "tokenizer.json").write_text(other.to_json(), "utf-8")
    assert tokenizers.identity(str(tmp_path)) != before[1]


def test_a_file_of_hugging_face_is_read(foreign):
    tokenizer = tokenizers.read(foreign)
    text = "the hot é"
    ids = tokenizer.encode(text)
    assert len(ids) > 2
    assert tokenizer.decode(ids) == text
    assert spelled(tokenizer, ids) == f" {text}"
    assert tokenizer.special == {"bos": 1, "eos": 2}
    assert tokenizers.special_tokens(tokenizer) == {"start": 1, "eos": 2}
    roles = {"eos_token": {"content": "<s>"}, "pad_token": "<unk>", "bos_token": None}
    (foreign / "tokenizer_config.json").write_text(json.dumps(roles))
    assert tokenizers.read(foreign).special == {"eos": 1, "pad": 0}
    assert tokenizers.read(foreign).decode([0, *ids, 1]) == text
    (foreign / "tokenizer_config.json").write_text("{}")
    assert tokenizers.read(foreign).special == {"bos": 1, "eos": 2}
    # What generates with it may name ends by their ids, and more of them.
    (foreign / "config.json").write_text('{"eos_token_id": 2, "pad_token_id": 0}')
    sep = tokenizer.inner.token_to_id("[SEP]")
    (foreign / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, sep, 5, 10000, None]})  # 5 stands in texts
    )
    special = tokenizers.read(foreign).special
    assert special == {"bos": 1, "eos": 2, "eos_2": sep, "eos_3": 5}  # pad is no added token
    assert ends(special) == (2, sep, 5)
    again = tokenizers.read(foreign)
    assert again.decode(ids) == text  # what ends a text may be in one
    assert tokenizers.from_json(again.to_json()).special == special
    (foreign / "generation_config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        tokenizers.read(foreign)
    for name in ("config.json", "generation_config.json"):
        (foreign / name).unlink()
    (foreign / "tokenizer_config.json").write_text('{"eos_token": null}')
    with pytest.raises(ConfigError, match="no token that ends a document"):
        tokenizers.make(str(foreign), [], 0, 0, True)


def test_the_start_of_a_text():
    ended, plain = Bytes({"eos": 256}), Bytes({})
    assert tokenizers.special_tokens(ended) == {"start": 256, "eos": 256}
    assert tokenizers.special_tokens(ended, ended=False) == {"start": 10, "eos": 256}
    assert tokenizers.special_tokens(plain) == {"start": 10}
    assert tokenizers.special_tokens(Characters("\n\tab", {})) == {"start": 1}
    assert tokenizers.special_tokens(Characters("ab", {})) == {"start": 0}
    assert tokenizers.special_tokens(Bytes({"pad": 256, "bos": 257, "eos": 258})) == {
        **{"start": 257, "eos": 258},
        "pad": 256,
    }


def test_a_character_outside_the_set_is_named():
    tokenizer = Characters("abc", {})
    for text, where in (("abd", r"'d' \(U\+0064\) at offset 2"), ("a\n", r"U\+000A\) at offset 1")):
        with pytest.raises(ConfigError, match=where):
            tokenizer.encode(text)
    with pytest.raises(ConfigError, match="not among the 0 characters"):
        Characters("", {}).encode("a")


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])
def test_half_a_surrogate_pair_is_refused(made, kind):
    with pytest.raises(ConfigError, match=r"U\+D83D"):
        made[kind].encode("ab\ud83d")


def test_bad_names_and_files_are_one_clear_error(made, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"tokenizer='bite'.*Nearest: bytes"):
        tokenizers.check("bite", 0)
    for name in ("bpe", "unigram", "wordpiece"):
        with pytest.raises(ConfigError, match=r"vocabulary_size=0.*at least 300"):
            tokenizers.check(name, 0)
    with pytest.raises(ConfigError, match=r"no file .*gone/tokenizer\.json"):
        tokenizers.check(str(tmp_path / "gone" / "tokenizer.json"), 0)
    bad = tmp_path / "tokenizer.json"
    for content in (b"", b"{", b"[]", b'{"kind": "bytes"}', b'{"model": 3}', b"\xff"):
        bad.write_bytes(content)
        with pytest.raises(ConfigError, match=r"tokenizer\.json: "):
            tokenizers.read(tmp_path)
    inner = made["bpe"].inner.to_str()
    kinds = ('"bytes"', '"characters", "characters": "ab"', f'"huggingface", "tokenizer": {inner}')
    wrong = ({"eos": 10**6}, {"eos": -1}, {"eos": True}, {"eos": [1]}, 7)
    files = [*itertools.product(kinds, wrong), ('"bytes"', {"eos": 65})]
    for kind, special in files:
        bad.write_text(f'{{"kind": {kind}, "special": {json.dumps(special)}}}', "utf-8")
        with pytest.raises(ConfigError, match="not a tokenizer"):
            tokenizers.read(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"launch/local\.sh .*pip install tokenizers"):
        tokenizers.check("bpe", 4096)
    tokenizers.check("characters", 0)
