"""Stops against Python's own search of texts, token by token."""

import itertools

import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.data import tokenizers
from genjax.data.alphabets import Bytes, Characters
from genjax.sampling import prompts
from genjax.sampling.stopping import automaton, can_be_found

VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n" * 3


def read(name, text, tokenizer):
    """An option as the command line's text of it is read."""
    return prompts.readers(tokenizer)[name](text)


def first_end(table, tokens):
    """How many tokens have come when a text is found; None if it never is."""
    state = 0
    for count, token in enumerate(tokens, 1):
        state = table[state, token]
        if state == len(table) - 1:
            return count
    return None


@pytest.mark.parametrize("seed", range(20))
def test_texts_are_found_where_python_finds_them(seed):
    """Few letters, so that texts overlap with themselves, with each other and with tokens."""
    draw = np.random.default_rng(seed)

    def word(most):
        return bytes(draw.integers(97, 99, draw.integers(1, most)).tolist())

    spelling = [b"", *(word(4) for _ in range(6))]
    texts = [word(7) for _ in range(1 + seed % 3)]
    table = automaton(texts, spelling)
    assert table.shape[1] == len(spelling)
    ends = set()
    for _ in range(50):
        tokens = draw.integers(0, len(spelling), 9)
        parts = list(itertools.accumulate(spelling[token] for token in tokens))
        expected = next((n for n, p in enumerate(parts, 1) if any(t in p for t in texts)), None)
        assert first_end(table, tokens) == expected
        ends.add(expected)
    assert len(ends) > 1


def test_what_no_token_spells_cannot_be_found():
    spelling = [b"ab", b"ba"]
    assert can_be_found(automaton([b"abba"], spelling))
    assert can_be_found(automaton([b"bb"], spelling))
    assert not can_be_found(automaton([b"bbb"], spelling))
    assert not can_be_found(automaton([b"c"], spelling))


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe", "unigram", "wordpiece"])
@pytest.mark.parametrize("stop", ["day?", "e", "Thou art", "summer's", "mer's", "\n", "ovel"])
def test_a_tokenizer_stops_where_its_text_has_the_stop(kind, stop):
    made = tokenizers.make(kind, [VERSE], 1, 320, True)
    if kind == "wordpiece" and stop == "\n":  # it drops newlines
        with pytest.raises(ConfigError, match="the tokenizer knows"):
            read("stop", stop, made)
        return
    table = read("stop", stop, made)
    tokens = made.encode(VERSE)
    told = made.decode(made.encode(stop))  # words' "summer's" is told as "summer ' s"
    expected = next(n for n in range(1, len(tokens)) if told in made.decode(tokens[:n]))
    assert first_end(table, tokens) == expected
    # A text cut in other places than the tokenizer's own.
    pieces = [piece for word in VERSE.split(" ") for piece in (word[:2], word[2:], " ") if piece]
    if kind not in ("wordpiece", "characters"):
        tokens = np.concatenate([made.encode(piece) for piece in pieces])
        expected = next(n for n in range(1, len(tokens)) if stop in made.decode(tokens[:n]))
        assert first_end(table, tokens) == expected


def test_sentencepiece_spells_a_space_that_no_stop_has(foreign):
    """`▁` ahead of a text that is encoded alone, and not within a text."""
    foreign = tokenizers.read(foreign)
    tokens = foreign.encode("the hot\nthe.")
    for stop in ("\n", ".", "t\nt", "the."):
        table = read("stop", stop, foreign)
        text = "the hot\nthe."
        end = first_end(table, tokens)
        assert foreign.decode(tokens[:end]) == text[: text.index(stop) + len(stop)]
    banned = read("banned", ".", foreign)
    assert (tokens[-1],) in banned


def test_stops_in_quotes_and_tuples():
    made = Bytes({})
    for given, texts in (("('a', 'bc')", [b"a", b"bc"]), ("'a b'", [b"a b"]), ("(", [b"("])):
        table = read("stop", given, made)
        np.testing.assert_array_equal(table, automaton(texts, made.spelling))


def test_bans_and_what_is_allowed():
    made = Characters("\n abQ", {"eos": 5})
    assert read("banned", "ab", made) == ((3, 4), (1, 3, 4))
    assert read("allowed", "('a', 'b')", made) == (3, 4, 5)


@pytest.mark.parametrize("name", ["stop", "banned", "allowed"])
@pytest.mark.parametrize("text", ["", "''", "('a', '')", "x", "('a', 'x')"])
def test_empty_and_unknown_texts_are_refused(name, text):
    with pytest.raises(ConfigError, match=rf"--{name}=.*expected"):
        read(name, text, Characters("\n ab", {}))
