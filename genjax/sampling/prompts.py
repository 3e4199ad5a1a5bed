"""Texts on the command line: stop texts, banned and allowed texts, and texts with gaps."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int32

from genjax.checks import ConfigError, literal, require
from genjax.data.alphabets import Tokenizer, ends, utf8
from genjax.sampling.stopping import automaton, can_be_found

GAP = re.compile(r"\[MASK(?: (\d{1,9}))?\]")


class Gaps:
    """A tokenizer for texts with gaps: [MASK] is one token to draw, [MASK 9] is nine of them."""

    def __init__(self, tokenizer: Tokenizer, end: Sequence[int] = ()):
        """`tokenizer` encodes the text between the gaps; the tokens `end` follow the text."""
        self.tokenizer, self.end = tokenizer, end

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The tokens of a text, with -1 for each token to draw.

        Raises:
          ConfigError: a character that the tokenizer does not know, or more than 2^20 tokens in
            a gap.
        """
        parts, at = [], 0
        for gap in GAP.finditer(text):
            width = int(gap[1] or 1)
            require(1 <= width <= 2**20, "a gap", gap[0], "[MASK 1] to [MASK 1048576]")
            parts += [self.tokenizer.encode(text[at : gap.start()]), np.full(width, -1, np.int32)]
            at = gap.end()
        parts += [self.tokenizer.encode(text[at:]), self.end]
        return np.concatenate(parts).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens that are not to be drawn."""
        return self.tokenizer.decode(ids)


def readers(tokenizer: Tokenizer) -> dict[str, Callable[[str], Any]]:
    """Parsers of the options `stop`, `banned` and `allowed` of `methods.lm`, for `Method.options`.

    Each option is a text, a text in quotes, or a Python tuple of texts. A stop text is found
    however it is split into tokens. A ban covers the tokens of a text at the start, after a space
    and within a line. The end of a text is always allowed.
    """
    return {name: partial(_read, name, tokenizer) for name in _READERS}


def _read(name: str, tokenizer: Tokenizer, value: str) -> Any:
    """The value of option `name`.

    Raises:
      ConfigError: an empty text, or one that the tokenizer cannot encode.
    """
    texts = _texts(value)
    require(all(texts), f"--{name}", value, "at least one character")
    forms_by_text = [_READERS[name](text, tokenizer) for text in texts]
    for text, forms in zip(texts, forms_by_text, strict=True):
        require(forms, f"--{name}", text, "text that the tokenizer knows")
    forms = list(dict.fromkeys(itertools.chain.from_iterable(forms_by_text)))
    if name == "stop":
        return automaton(forms, tokenizer.spelling)
    if name == "banned":
        return tuple(forms)
    return tuple(sorted({*itertools.chain(*forms), *ends(tokenizer.special)}))


def _stops(text: str, tokenizer: Tokenizer) -> list[bytes]:
    """The spellings of `text` that tokens can produce.

    A tokenizer of words spells a space before each word and each punctuation mark.
    """
    forms = [utf8(text)]
    for tokens in _tokens(text, tokenizer):
        if _letters(tokenizer.decode(tokens)) == _letters(text):  # nothing unknown
            spelled = b"".join(tokenizer.spelling[i] for i in tokens)
            forms.append(spelled if text[0].isspace() else spelled.removeprefix(b" "))
    return [form for form in forms if form and can_be_found(automaton([form], tokenizer.spelling))]


def _letters(text: str) -> str:
    """A text without white space, in lower case: some tokenizers keep neither."""
    return "".join(text.split()).casefold()


def _tokens(text: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The tokens of a text, in a list; empty if the tokenizer cannot encode it."""
    try:
        tokens = tuple(tokenizer.encode(text).tolist())
    except ConfigError:
        return []
    return [tokens] if tokens else []


def _bans(text: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The tokens of a text at the start of a text, after a space, and within a line."""
    (newline,) = _tokens("\n", tokenizer) or [()]
    within = _tokens(f"\n{text}", tokenizer) if newline else []
    cut = [tokens[len(newline) :] for tokens in within if tokens[: len(newline)] == newline]
    return [*_tokens(text, tokenizer), *_tokens(f" {text}", tokenizer), *filter(None, cut)]


_READERS = {"stop": _stops, "banned": _bans, "allowed": _tokens}


def _texts(text: str) -> list[str]:
    if text[:1] in ("(", "[", "'", '"'):
        with contextlib.suppress(ValueError, TypeError):
            value = literal(text)
            values = [value] if isinstance(value, str) else list(value)
            if values and all(isinstance(v, str) for v in values):
                return values
    return [text]
