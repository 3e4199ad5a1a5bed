"""Tokenizers by name: text to token ids and back.

Bytes and characters are in `alphabets`; byte-level BPE, WordPiece, Unigram, GPT-2's own and files
of Hugging Face in `subwords`. A text is only ever text: what looks like a special token in it is
encoded by its characters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genjax.config import ConfigError, nearest
from genjax.data import subwords
from genjax.data.alphabets import Bytes, Characters, Tokenizer

TRAINED = ("bpe", "wordpiece", "unigram")
NAMES = ("bytes", "characters", *TRAINED, "gpt2")

# What files that do not say it call the tokens that begin, end and pad a text.
_ROLES = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]", "[CLS]"),
    "eos": ("</s>", "<eos>", subwords.END, "<|end_of_text|>", "[EOS]", "[SEP]"),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
}


def special_tokens(tokenizer: Tokenizer, ended: bool = True) -> dict[str, int]:
    """The special ids that a method needs: "start", and "eos" and "pad" if there are any.

    Args:
      tokenizer: of the data.
      ended: whether documents end with eos. If not, no text has it, and a text starts as after a
        newline.
    """
    own = {k: v for k, v in tokenizer.special.items() if k in ("eos", "pad")}
    start = tokenizer.special.get("bos", own.get("eos")) if ended else None
    if start is None:
        try:
            newline = tokenizer.encode("\n")
        except ConfigError:
            newline = ()
        start = int(newline[0]) if len(newline) == 1 else 0
    return {"start": start, **own}


def check(name: str, vocabulary_size: int) -> None:
    """Raises ConfigError unless `name` is one of `NAMES`, with a size it can have, or a path."""
    if _is_path(name):
        _file(name)
    elif name not in NAMES:
        raise ConfigError(
            f"config.dataset.text.tokenizer={name!r}: no such tokenizer. Nearest: "
            f"{nearest(name, NAMES)}. Expected one of {', '.join(NAMES)}, or the path of a "
            "tokenizer.json."
        )
    elif name in TRAINED and vocabulary_size < 300:
        raise ConfigError(
            f"config.dataset.text.vocabulary_size={vocabulary_size}: the tokenizer {name} is "
            "trained on the data; expected the number of its tokens, at least 300 (such as 4096)."
        )
    elif name not in ("bytes", "characters"):
        subwords.library()


def identity(name: str) -> str:
    """What tells tokenizers of the same name apart, before they are made."""
    if _is_path(name):
        files = (_file(name), _file(name).with_name("tokenizer_config.json"))
        content = [file.read_bytes() for file in files if file.is_file()]
        return hashlib.sha256(b"\0".join(content)).hexdigest()
    return json.dumps(subwords.GPT2) if name == "gpt2" else name


def make(name: str, texts: Sequence[str], train: int, vocabulary_size: int, end: bool) -> Tokenizer:
    """The tokenizer `name` for `texts`.

    Args:
      name: one of `NAMES`, or the path of a tokenizer.json.
      texts: all texts of the data. Characters are those of any of them, as in nanoGPT.
      train: how many of them, from the first on, are for training; BPE, WordPiece and Unigram
        see no others.
      vocabulary_size: of those three, with all special tokens.
      end: whether documents are to end with a token of their own.

    Raises:
      ConfigError: a bad file, no such package, or a file without such a token.
    """
    if name == "bytes":
        return Bytes({"eos": 256} if end else {})
    if name == "characters":
        found = "".join(sorted(set().union(*texts)))
        return Characters(found, {"eos": len(found)} if end else {})
    if name in TRAINED:
        return subwords.train(name, texts[:train], vocabulary_size, end)
    made = subwords.gpt2() if name == "gpt2" else read(name)
    if end and "eos" not in made.special:
        raise ConfigError(
            f"config.dataset.text.tokenizer={name!r} has no token that ends a document, and the "
            "data are of several, or documents is not 'stream'. Give a tokenizer that has an eos "
            "token; tokenizer_config.json beside the file can say which it is."
        )
    return made


def read(path: str | Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, of genjax or of Hugging Face, or in a folder that has one.

    Of Hugging Face's, `tokenizer_config.json` beside it says which tokens begin, end and pad a
    text; without it they are known by their usual names.

    Raises:
      ConfigError: no such file, or no tokenizer in it.
    """
    file = _file(path)
    beside = file.with_name("tokenizer_config.json")
    try:
        roles = json.loads(beside.read_text("utf-8")) if beside.is_file() else {}
        return from_json(file.read_text("utf-8"), roles)
    except ValueError as error:  # ConfigError, and what json and UTF-8 raise
        raise ConfigError(f"{file}: {error}") from error


def from_json(text: str, roles: Mapping[str, Any] | None = None) -> Tokenizer:
    """The inverse of `to_json`; takes Hugging Face's own tokenizer.json as well.

    Args:
      text: the JSON.
      roles: Hugging Face's tokenizer_config.json: "bos_token", "eos_token", "pad_token".

    Raises:
      ConfigError: it is no tokenizer.
    """
    try:
        state = json.loads(text)
        kind = state.get("kind", "")
        if kind == "bytes":
            return Bytes(state["special"])
        if kind == "characters":
            return Characters(state["characters"], state["special"])
        inner = state["tokenizer"] if kind == "huggingface" else state
        parsed = subwords.library().Tokenizer.from_str(json.dumps(inner))
    except ConfigError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(
            f"not a tokenizer: {error}. Expected the tokenizer.json of a run, or of Hugging Face."
        ) from error
    if kind == "huggingface":
        return subwords.HuggingFace(parsed, state["special"])
    return subwords.HuggingFace(parsed, _roles(parsed, roles or {}))


def _roles(inner: Any, roles: Mapping[str, Any]) -> dict[str, int]:
    """The ids of the tokens that begin, end and pad a text."""
    special = {}
    for role, usual in _ROLES.items():
        given = roles.get(f"{role}_token")
        given = given.get("content") if isinstance(given, dict) else given
        names = (given,) if given else usual if not roles else ()
        ids = [i for i in map(inner.token_to_id, names) if i is not None]
        if ids:
            special[role] = ids[0]
    return special


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(".json") or (name not in NAMES and Path(name).exists())


def _file(path: str | Path) -> Path:
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ConfigError(
            f"config.dataset.text.tokenizer={str(path)!r}: no file {file}. Give the path of a "
            f"tokenizer.json, or one of {', '.join(NAMES)}."
        )
    return file
