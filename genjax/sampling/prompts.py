"""Texts on the command line: what stops a text, what is banned, where a text has gaps."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int32

from genjax.checks import ConfigError, literal, require
from genjax.data.alphabets import Tokenizer, ends, utf8
from genjax.sampling.stopping import automaton, can_be_found

GAP = re.compile(r"\[MASK(?: (\d{1,9}))?\]")


class Gaps:
    """A tokenizer for texts with gaps: [MASK] is a token to be drawn, [MASK 9] are nine of them."""

    def __init__(self, tokenizer: Tokenizer):
        """`tokenizer` is that of the text between the gaps."""
        self.tokenizer = tokenizer

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The tokens of a text, and -1 for each that is to be drawn.

        Raises:
          ConfigError: a character that the tokenizer does not know, or more than 2^20 tokens in
            a gap.
        """
        parts, at = [], 0
        for gap in GAP.finditer(text):
            wide = int(gap[1] or 1)
            require(1 <= wide <= 2**20, "a gap", gap[0], "[MASK 1] to [MASK 1048576]")
            parts += [self.tokenizer.encode(text[at : gap.start()]), np.full(wide, -1, np.int32)]
            at = gap.end()
        return np.concatenate([*parts, self.tokenizer.encode(text[at:])]).astype(np.int32)


def readers(tokenizer: Tokenizer) -> dict[str, Callable[[str], Any]]:
    """How `stop`, `banned` and `allowed` of `methods.lm` are read: `Method.options`.

    Each is one text, or a Python tuple of texts, or one in quotes. A stop is found in whatever
    tokens it is written. Bans are of the tokens that the tokenizer makes of a text, as it stands
    and after a space. The end of a text is always allowed.
    """
    return {name: partial(_read, name, tokenizer) for name in _MADE}


def _read(name: str, tokenizer: Tokenizer, given: str) -> Any:
    """The option `name` of a text.

    Raises:
      ConfigError: an empty text, or one that the tokenizer cannot write.
    """
    texts = _texts(given)
    require(all(texts), f"--{name}", given, "at least one character")
    made = [_MADE[name](text, tokenizer) for text in texts]
    for text, forms in zip(texts, made, strict=True):
        require(forms, f"--{name}", text, "text that the tokenizer knows")
    forms = list(dict.fromkeys(itertools.chain.from_iterable(made)))
    if name == "stop":
        return automaton(forms, tokenizer.spelling)
    if name == "banned":
        return tuple(forms)
    return tuple(sorted({*itertools.chain(*forms), *ends(tokenizer.special)}))


def _stops(text: str, tokenizer: Tokenizer) -> list[bytes]:
    """What the tokens of a text that holds `text` may spell there, of what they can spell at all.

    A tokenizer of words spells a space ahead of each, punctuation marks too.
    """
    forms = [utf8(text)]
    for tokens in _tokens(text, tokenizer):
        if _letters(tokenizer.decode(tokens)) == _letters(text):  # nothing unknown
            spelled = b"".join(tokenizer.spelling[i] for i in tokens)
            forms.append(spelled if text[0].isspace() else spelled.removeprefix(b" "))
    return [form for form in forms if form and can_be_found(automaton([form], tokenizer.spelling))]


def _letters(text: str) -> str:
    """A text without white space and cases, which some tokenizers do not keep."""
    return "".join(text.split()).casefold()


def _tokens(text: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The tokens of a text as it stands, if the tokenizer knows it."""
    try:
        tokens = tuple(tokenizer.encode(text).tolist())
    except ConfigError:
        return []
    return [tokens] if tokens else []


def _bans(text: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The tokens of a text at the start of a text, after a space, and within a line."""
    (before,) = _tokens("\n", tokenizer) or [()]
    within = _tokens(f"\n{text}", tokenizer) if before else []
    cut = [tokens[len(before) :] for tokens in within if tokens[: len(before)] == before]
    return [*_tokens(text, tokenizer), *_tokens(f" {text}", tokenizer), *filter(None, cut)]


_MADE = {"stop": _stops, "banned": _bans, "allowed": _tokens}


def _texts(text: str) -> list[str]:
    if text[:1] in ("(", "[", "'", '"'):
        with contextlib.suppress(ValueError, TypeError):
            value = literal(text)
            values = [value] if isinstance(value, str) else list(value)
            if values and all(isinstance(v, str) for v in values):
                return values
    return [text]
