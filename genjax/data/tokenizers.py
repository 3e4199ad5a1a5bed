"""Tokenizers by name: text to token ids and back.

Bytes and characters are in `alphabets`; byte-level BPE, WordPiece, Unigram, GPT-2's own and files
of Hugging Face in `subwords`. A text is only ever text: what looks like a special token in it is
encoded by its characters.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genjax.config import ConfigError, nearest
from genjax.data import subwords
from genjax.data.alphabets import Bytes, Characters, Tokenizer, ends
from genjax.files import LONGEST, read_json, shown

log = logging.getLogger(__name__)

TRAINED = ("bpe", "wordpiece", "unigram")
NAMES = ("bytes", "characters", *TRAINED, "gpt2")
# What may stand beside a tokenizer.json and says what its special tokens are for.
BESIDE = ("tokenizer_config.json", "generation_config.json", "config.json")

# What files that do not say it call the tokens that begin, end and pad a text.
_ROLES = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]", "[CLS]"),
    "eos": ("</s>", "<eos>", subwords.END, "<|end_of_text|>", "[EOS]", "[SEP]"),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
}


def special_tokens(tokenizer: Tokenizer, ended: bool = True) -> dict[str, int]:
    """The special ids that a method needs: "start", and those that end and pad if there are any.

    Args:
      tokenizer: of the data.
      ended: whether documents end with eos. If not, no text has it, and a text starts as after a
        newline.
    """
    own = {k: v for k, v in tokenizer.special.items() if k.startswith(("eos", "pad"))}
    bos = tokenizer.special.get("bos")
    start = next((i for i in (*tokenizer.begins[:1], own.get("eos"), bos) if i is not None), None)
    if start is None or not ended:
        try:
            newline = tokenizer.encode("\n")
        except ConfigError:
            newline = ()
        start = int(newline[0]) if len(newline) == 1 else 0
    return {"start": start, **own}


def begins(tokenizer: Tokenizer, special: Mapping[str, int], documents: str) -> tuple[int, ...]:
    """The tokens that a prompt goes on from.

    They are those that the tokenizer puts in front of a text by its own rule, and otherwise the
    start that each row of whole documents has. In a stream a text may as well go on from the middle
    of one.

    Args:
      tokenizer: of the data.
      special: what `special_tokens` gives.
      documents: `dataset.text.documents`.
    """
    if tokenizer.begins[:1] == (special["start"],):
        return tokenizer.begins
    return () if documents == "stream" else (special["start"],)


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
        return hashlib.sha256(read(name).to_json().encode()).hexdigest()
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
    text; without it they are known by their usual names. `generation_config.json` and
    `config.json` add what it leaves open, and further tokens that end a text. Tokens that were
    added beyond the `vocab_size` of config.json, which its model does not know, are left out.

    The post-processor alone decides what stands in front of each text, whatever `add_bos_token` of
    tokenizer_config.json says: so does transformers 5 where there is a tokenizer.json.

    Raises:
      ConfigError: no such file, or no tokenizer in it.
    """
    file = _file(path)
    beside = [file.with_name(name) for name in BESIDE]
    if (size := file.stat().st_size) > LONGEST:
        raise ConfigError(f"{file} has {size} bytes: expected a tokenizer of at most {LONGEST}.")
    roles, generation, config = (read_json(one) if one.is_file() else {} for one in beside)
    try:
        return from_json(file.read_text("utf-8"), roles, config | generation)
    except ValueError as error:  # ConfigError, and what json and UTF-8 raise
        raise ConfigError(f"{file}: {error}") from error


def from_json(
    text: str, roles: Mapping[str, Any] | None = None, ids: Mapping[str, Any] | None = None
) -> Tokenizer:
    """The inverse of `to_json`; takes Hugging Face's own tokenizer.json as well.

    Args:
      text: the JSON.
      roles: Hugging Face's tokenizer_config.json: "bos_token", "eos_token", "pad_token".
      ids: its config.json or generation_config.json: "bos_token_id", "eos_token_id", ...

    Raises:
      ConfigError: it is no tokenizer.
    """
    try:
        state = json.loads(text)
        kind = state.get("kind", "")
        if kind == "bytes":
            return _checked(Bytes(state["special"]))
        if kind == "characters":
            return _checked(Characters(state["characters"], state["special"]))
        inner = state["tokenizer"] if kind == "huggingface" else state
        if kind != "huggingface":
            inner = _known_to_model(inner, (ids or {}).get("vocab_size"))
        _check_ids(inner)
        content, parse = json.dumps(inner), subwords.library().Tokenizer.from_str
        parsed = subwords.guarded(lambda: parse(content))
        written = parsed.to_str()
        if subwords.guarded(lambda: parse(written)).to_str() != written:
            raise ConfigError(
                "a tokenizer that contradicts itself: read, written and read again it is another "
                "one, as where ids of added tokens leave a gap. Fetch it again."
            )
        if kind == "huggingface":
            return _checked(subwords.HuggingFace(parsed, state["special"]))
        special = _numbered(_roles(parsed, roles or {}), parsed, ids or {})
        return subwords.HuggingFace(parsed, special)
    except ConfigError:
        raise
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"not a tokenizer: {reason}. Expected the tokenizer.json of a run, or of Hugging Face."
        ) from error


def _check_ids(state: Mapping[str, Any]) -> None:
    """Refuses ids so large that the library would fill the memory with what lies between them."""
    vocabulary = state["model"].get("vocab", {})
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [token["id"] for token in state.get("added_tokens") or []]
    most = max(2 * len(ids), subwords.MOST)
    wrong = [number for number in ids if type(number) is not int or not 0 <= number < most]
    if wrong:
        raise ConfigError(
            f"a tokenizer of {len(ids)} tokens with the id {shown(wrong[0])}: expected whole "
            f"numbers below {most}."
        )


def _known_to_model(state: Mapping[str, Any], vocabulary_size: Any) -> Mapping[str, Any]:
    """A tokenizer.json without the tokens that were added beyond the vocabulary of its model."""
    added = state.get("added_tokens") or []
    if type(vocabulary_size) is not int:
        return state
    beyond = [token for token in added if token["id"] >= vocabulary_size]
    if not beyond:
        return state
    log.warning(
        "the tokens %s are left out: they were added to the tokenizer, and the model of its "
        "config.json knows the %d below them",
        ", ".join(shown(token["content"]) for token in beyond[:8]),
        vocabulary_size,
    )
    return {**state, "added_tokens": [token for token in added if token not in beyond]}


def _checked(tokenizer: Tokenizer) -> Tokenizer:
    """Raises ConfigError if a special id is of no token, or of one that texts have."""
    spelling = tokenizer.spelling
    for role, number in tokenizer.special.items():
        known = type(number) is int and 0 <= number < len(spelling)
        # Several tokens may end a text, and texts may have those beyond the first, as a newline.
        if not known or (spelling[number] and not role.startswith("eos_")):
            raise ConfigError(
                f"not a tokenizer: {role} is the token {number!r}, expected one of the "
                f"{len(spelling)} tokens from 0 on, and one that stands for no text."
            )
    return tokenizer


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


def _numbered(special: dict[str, int], inner: Any, ids: Mapping[str, Any]) -> dict[str, int]:
    """The roles with those that only ids are given for; a text may end in several ways.

    An end may be any token. What begins or pads a text has to be an added one: what stands in texts
    is no special token.
    """
    special, added = dict(special), inner.get_added_tokens_decoder()
    known = set(inner.get_vocab(with_added_tokens=True).values())
    for role in _ROLES:
        given = ids.get(f"{role}_token_id")
        for number in given if isinstance(given, list) else [given]:
            if type(number) is not int or number not in (known if role == "eos" else added):
                continue
            if role not in special:
                special[role] = number
            elif role == "eos" and number not in ends(special):
                special[f"eos_{len(ends(special)) + 1}"] = number
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
