"""The interface of tokenizers, and the two that need no training: bytes and characters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int32

from genjax.config import ConfigError


class Joined(NamedTuple):
    """A prompt and its text as tokens.

    Attributes:
      ids: the ids of the prompt and the text.
      prompt: the number of leading ids that contain nothing of the text.
    """

    ids: np.ndarray
    prompt: int


class Tokenizer(Protocol):
    """The interface of every tokenizer.

    Attributes:
      vocabulary_size: V; ids are 0 ... V - 1.
      special: role -> id. The tokens "bos", "eos", "pad" and "mask", where they exist, never come
        from a text; "eos_2", "eos_3", ... end a text too, but may also occur in one.
      begins: the ids that the tokenizer itself puts before each text, often none.
      spelling: the UTF-8 bytes that each token adds to a text; none for special tokens.
      chat_template: how messages become one text, in Jinja; "" if the tokenizer has none.
      unknown: the id that stands for any word or character that the tokenizer does not know; None
        if it knows all, or refuses them.
    """

    vocabulary_size: int
    special: dict[str, int]
    begins: tuple[int, ...]
    spelling: Sequence[bytes]
    chat_template: str
    unknown: int | None

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The ids of a text, without any special token.

        Raises:
          ConfigError: the text has a character that the tokenizer or UTF-8 cannot encode.
        """

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text."""

    def encode_joined(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Joined]:
        """The ids of each prompt followed by its text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids. Special ids and ids outside 0 ... V - 1 are skipped.

        Bytes that are not valid UTF-8, such as part of a character, become U+FFFD.
        """

    def to_json(self) -> str:
        """The whole tokenizer as JSON, for `from_json`."""


def token_bytes(tokenizer: Tokenizer) -> Int32[np.ndarray, " V"]:
    """The number of UTF-8 bytes that each token stands for, 0 for special tokens."""
    return np.array([len(piece) for piece in tokenizer.spelling], np.int32)


def ends(special: Mapping[str, int]) -> tuple[int, ...]:
    """The ids of the special tokens that end a text."""
    return tuple(token_id for role, token_id in special.items() if role.partition("_")[0] == "eos")


def utf8(text: str) -> bytes:
    """The text in UTF-8; ConfigError if a lone surrogate makes that impossible."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the text has half a surrogate pair, U+{ord(text[error.start]):04X}, at character "
            f"{error.start}: it is not valid Unicode. Expected text that UTF-8 can encode."
        ) from None


class Compared:
    """A tokenizer that equals any other with the same JSON."""

    def __eq__(self, other: object) -> bool:
        """Whether both tokenizers have the same JSON."""
        return isinstance(other, Compared) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        """The hash of the JSON."""
        return hash(self.to_json())


class Alphabet(Compared):
    """A tokenizer that encodes each byte or character on its own."""

    special: dict[str, int]
    chat_template = ""
    unknown = None

    @property
    def begins(self) -> tuple[int, ...]:
        """The bos token, unless it is also the eos token."""
        bos = self.special.get("bos")
        return () if bos in (None, self.special.get("eos")) else (bos,)

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_joined(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Joined]:
        """The ids of each prompt followed by its text."""
        pairs = zip(self.encode_all(prompts), self.encode_all(texts), strict=True)
        return [Joined(np.concatenate(pair), len(pair[0])) for pair in pairs]


class Bytes(Alphabet):
    """A token for each byte of UTF-8; its id is the byte."""

    def __init__(self, special: Mapping[str, int]):
        """The ids in `special` start at 256."""
        self.special = dict(special)
        self.vocabulary_size = 256 + len(special)
        self.spelling = [bytes([i]) for i in range(256)] + [b""] * len(special)

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The bytes of the text."""
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes among `ids`."""
        return bytes(int(i) for i in ids if 0 <= i < 256).decode(errors="replace")

    def to_json(self) -> str:
        """Kind and special ids."""
        return json.dumps({"kind": "bytes", "special": self.special})


class Characters(Alphabet):
    """A token for each character of a set, in the order of their code points."""

    def __init__(self, characters: str, special: Mapping[str, int]):
        """The ids in `special` follow those of the characters."""
        self.special = dict(special)
        self._characters = "".join(sorted(set(characters)))
        self._points = np.array([ord(c) for c in self._characters], np.uint32)
        self.vocabulary_size = len(self._characters) + len(special)
        self.spelling = [utf8(c) for c in self._characters] + [b""] * len(special)

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The positions of the text's characters in the set."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = np.searchsorted(self._points, points)
        known = ids < len(self._points)
        known[known] = self._points[ids[known]] == points[known]
        if not known.all():
            position = int(np.argmin(known))
            raise ConfigError(
                f"the character {text[position]!r} (U+{ord(text[position]):04X}) at offset "
                f"{position} of the text is not among the {len(self._points)} characters of the "
                "tokenizer. "
                "Leave it out, or train with the tokenizer bytes or bpe, which take any text."
            )
        return ids.astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The characters of `ids`."""
        return "".join(self._characters[i] for i in ids if 0 <= i < len(self._characters))

    def to_json(self) -> str:
        """Kind, characters and special ids."""
        state = {"kind": "characters", "characters": self._characters, "special": self.special}
        return json.dumps(state, ensure_ascii=False)
