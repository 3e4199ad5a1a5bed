"""Texts: given as tokens, read under headings."""

import numpy as np
import pytest

from genjax import modalities
from genjax.config import ConfigError
from genjax.data import captions, tokenizers
from genjax.data.alphabets import Bytes, Characters
from genjax.method import DataSpec, Field
from genjax.methods import lm
from genjax.modalities import text

INT32 = np.dtype(np.int32)


class Letters:
    """A tokenizer whose ids are code points."""

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i >= 0)


LETTERS = Field("text", (5,), INT32, {"tokenizer": Letters()})


def prompt(tokenizer, documents="stream", ended=True):
    """The field of a prompt, as the method `lm` has it."""
    facts = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "special": tokenizers.special_tokens(tokenizer, ended),
        "tokenizer": tokenizer,
    }
    spec = DataSpec("made", {"token": Field("text", (9,), INT32, facts)}, "token", {})
    return lm.prompt_field(spec, documents)


def test_text_is_read_by_the_tokenizer():
    ids = np.array([[-1, 104, 233, 10, 120], [97, 27, 155, -1, -1]], np.int32)
    said = (
        "===== sample 1 of 2: 4 tokens =====\nhé\nx\n\n===== sample 2 of 2: 3 tokens =====\na␛�\n"
    )
    assert text.text(ids, LETTERS) == modalities.text_of(ids, LETTERS) == said
    assert text.files(ids, LETTERS) == {".txt": said.encode()}
    assert text.strings(ids, LETTERS) == ["hé\nx", "a\x1b\x9b"]
    for bad in (ids[0], ids / 1.0):
        with pytest.raises(ValueError, match="expected token ids"):
            text.text(bad, LETTERS)


def test_each_prompt_is_its_own_tokens():
    plain = prompt(Bytes({}))
    found = [text.parse(given, plain) for given in ("abc", "a")]
    assert [row.tolist() for row in found] == [[97, 98, 99], [97]]
    assert {row.dtype for row in found} == {INT32}
    begun = prompt(Bytes({"eos": 256}), "packed")
    found = [text.parse(given, begun) for given in ("abc", "a")]
    assert [row.tolist() for row in found] == [[256, 97, 98, 99], [256, 97]]
    assert {row.dtype for row in found} == {INT32}
    for field in (plain, begun):
        with pytest.raises(ConfigError, match="at least one character"):
            text.parse("", field)


def test_what_stands_before_a_prompt(foreign):
    """Llama's <s> always; the end of a document where each example of the data begins with it."""
    ended = Bytes({"eos": 256})
    assert prompt(ended, "stream").facts["begin"] == ()
    assert prompt(ended, "packed").facts["begin"] == (256,)
    assert prompt(ended, "padded").facts["begin"] == (256,)
    llama = tokenizers.read(foreign)
    for documents in ("stream", "packed", "padded"):
        assert prompt(llama, documents).facts["begin"] == (llama.special["bos"],) == (1,)
    found = text.parse("the hot", prompt(llama, "stream"))
    assert llama.inner.decode(found.tolist(), skip_special_tokens=False) == "<s> the hot"


def test_a_text_of_one_length_is_ended_and_filled():
    """As captions of the data are: what is given in sampling is what was seen in training."""
    padded = captions.field(Bytes({"eos": 256, "pad": 257}), 5)
    row = text.parse("abc", padded)
    assert row.tolist() == [97, 98, 99, 256, 257]
    assert row.dtype == INT32
    ended = captions.field(Bytes({"eos": 256}), 5)
    assert text.parse("abc", ended).tolist() == [97, 98, 99, 256, 256]
    assert text.parse("abcd", ended).tolist() == [97, 98, 99, 100, 256]
    np.testing.assert_array_equal(
        captions.rows(["abc", "abcd"], ended, "made", "train"),
        [text.parse("abc", ended), text.parse("abcd", ended)],
    )
    with pytest.raises(ConfigError, match="a text of 6 tokens, expected at most 5"):
        text.parse("abcde", ended)
    for empty in ("", " "):
        with pytest.raises(ConfigError, match="at least one character"):
            text.parse(empty, ended)


@pytest.mark.parametrize("field", [prompt, lambda own: captions.field(own, 5)])
def test_a_character_that_the_tokenizer_lacks_is_named(field):
    with pytest.raises(ConfigError, match="the character 'x'"):
        text.parse("ax", field(Characters("ab", {"eos": 2})))


@pytest.mark.parametrize("made", [prompt, lambda own: captions.field(own, 9)])
def test_a_text_of_unknown_words_alone_is_refused(made):
    """BERT's tokenizers stand one token for every word of a script that they never saw."""
    own = tokenizers.make("wordpiece", ["a red fox and a cat"], 1, 300, True)
    field = made(own)
    assert text.parse("a лиса", field)[:2].tolist() == [own.encode("a")[0], own.unknown]
    for given in ("лиса", "лиса и кот"):
        with pytest.raises(ConfigError, match=f"'{given}': the tokenizer knows no word of this"):
            text.parse(given, field)
    with pytest.raises(ConfigError, match="gives no tokens for this text"):
        text.parse("\u200b", field)


def test_captions_of_unknown_words_alone_are_counted(caplog):
    own = tokenizers.make("wordpiece", ["a red fox"], 1, 300, True)
    field = captions.field(own, 4)
    assert len(captions.rows(["fox", "лиса", "red", "кот"], field, "made", "test")) == 4
    (record,) = [r for r in caplog.records if r.name.startswith("genjax")]
    assert "made: the tokenizer knows no word of 2 of the 4 texts of test" in record.getMessage()
    assert "the first is 'лиса'" in record.getMessage()
    with pytest.raises(ConfigError, match="knows no word of 1 of the 1 texts of train"):
        captions.rows(["лиса"], field, "made", "train")


def test_the_unknown_token_is_the_models(foreign):
    assert tokenizers.make("bpe", ["a cat"], 1, 300, True).unknown is None
    assert Bytes({}).unknown is Characters("a", {}).unknown is None
    llama = tokenizers.read(foreign)  # its own <unk>
    assert llama.unknown == llama.inner.token_to_id("<unk>") == 0


def test_lines_end_where_those_of_a_terminal_do(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\u2028still two\n\nfour".encode())
    assert text.lines("--prompts", str(path)) == ["one", "two\u2028still two", "", "four"]
    path.write_bytes(b"a\xff")
    with pytest.raises(ConfigError, match=r"--prompts=.*a\.txt is not UTF-8.*offset 1"):
        text.lines("--prompts", str(path))
    with pytest.raises(ConfigError, match=r"--prompts=.*gone\.txt: No such file"):
        text.lines("--prompts", str(tmp_path / "gone.txt"))


def test_texts_have_no_picture_and_no_sound():
    ids = np.zeros((2, 3), np.int32)
    assert modalities.picture_of(ids, LETTERS) is None
    assert modalities.player_of(ids, LETTERS) is None
    assert modalities.number(LETTERS) == 1
    assert modalities.number(Field("image", (2, 2, 1), np.dtype(np.uint8))) == 64
