"""Texts: tokens of the field's tokenizer, of fixed length; prompts have any length."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import captions
from genjax.data.documents import decode
from genjax.data.transforms import Transform, one_of, shift
from genjax.method import DataSpec, Field

SAMPLES = 1

# Visible symbols for control characters, which could move a terminal's cursor or worse.
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
VISIBLE |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def parse(given: str, field: Field) -> np.ndarray:
    """A text as tokens; those of a prompt follow the tokens that begin a text, if there are any.

    Raises:
      ConfigError: it is empty, has a character that the tokenizer does not know, has no word that
        it knows, or is too long.
    """
    prompt = field.shape == (None,)
    if not (given if prompt else given.strip()):
        raise ConfigError(
            "an empty text: expected at least one character; leave it out to start a new text."
        )
    ids = field.facts["tokenizer"].encode(given)
    if not len(ids):
        raise ConfigError(f"{given!r}: the tokenizer gives no tokens for this text. Give another.")
    if captions.says_nothing(ids, field):
        raise ConfigError(
            f"{given[:60]!r}: the tokenizer knows no word of this text: it is in a script or a "
            "language that the training data lack. Give another text, or train with the tokenizer "
            "bytes or bpe, which take any text."
        )
    if prompt:
        return np.concatenate([field.facts.get("begin", ()), ids]).astype(np.int32)
    ids = captions.encode(given, field)
    if len(ids) > field.shape[0]:
        raise ConfigError(
            f"{given[:60]!r}: a text of {len(ids)} tokens, expected at most {field.shape[0]}, "
            "including the one that ends it. Give a shorter text."
        )
    return captions.padded(ids, field)


def text_condition(spec: DataSpec, key: str, names: tuple[str, ...]) -> dict[str, Field]:
    """`Method.conditions` of a method whose config's `key` names the text that it is told, or none.

    Raises:
      ConfigError: these are not the name of one text of the data beside the generated field.
    """
    texts = [name for name, f in spec.fields.items() if f.kind == "text" and name != spec.target]
    if not isinstance(names, tuple) or len(names) > 1 or any(name not in texts for name in names):
        raise ConfigError(
            f"config.{key}={names!r}: expected (), or one text of the data, such as ('text',). "
            f"Beside {spec.target!r}, {spec.name} has the texts {', '.join(texts) or 'none'}. Data "
            "with captions are 'emoji', 'stamps', 'avatars', or a folder in which every a.png has "
            "its caption in a.txt."
        )
    return {name: spec.fields[name] for name in names}


def strings(samples: np.ndarray, field: Field) -> list[str]:
    """The text of each row of tokens; ids below 0 are left out."""
    return [field.facts["tokenizer"].decode(ids) for ids in samples]


def text(samples: np.ndarray, field: Field) -> str:
    """The texts, each under a heading.

    Control characters other than tab and newline are shown by their symbols.

    Raises:
      ValueError: samples that are not integers [N, S].
    """
    if samples.ndim != 2 or not np.issubdtype(samples.dtype, np.integer):
        raise ValueError(f"expected token ids [N, S], got {samples.dtype} {list(samples.shape)}")
    parts = []
    for index, (ids, string) in enumerate(zip(samples, strings(samples, field), strict=True), 1):
        head = f"===== sample {index} of {len(samples)}: {(ids >= 0).sum()} tokens ====="
        parts.append(f"{head}\n{string.translate(VISIBLE)}\n")
    return "\n".join(parts)


def files(samples: np.ndarray, field: Field) -> dict[str, bytes]:
    """The texts under their headings."""
    return {".txt": text(samples, field).encode()}


def read_file(flag: str, file: str) -> str:
    """The text in the file that a command-line flag names.

    Raises:
      ConfigError: the file cannot be read as UTF-8.
    """
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag}={file}: {error.strerror}.") from error
    return decode(content, f"{flag}={file}")


def lines(flag: str, file: str) -> list[str]:
    """The lines of a file. They end at newlines only, as in a terminal: not at U+2028, say."""
    content = io.StringIO(read_file(flag, file), newline=None)
    return [line.removesuffix("\n") for line in content]


def transforms(dataset: ConfigDict, spec: DataSpec, train: bool) -> list[Transform]:
    """In training, windows of a text stream start at a random token.

    If an example has several captions, one is drawn in training; in evaluations it is the first.
    """
    streamed = spec.target == "token" and dataset.text.documents == "stream"
    worded = [name for name, field in spec.fields.items() if "wordings" in field.facts]
    return [shift] * (train and streamed) + [one_of(train, *worded)] * bool(worded)
