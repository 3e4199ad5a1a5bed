"""Tokenizers by name: text to token ids and back.

Bytes and characters are in `alphabets`; byte-level BPE, WordPiece, Unigram, GPT-2's tokenizer and
Hugging Face's files are in `subwords`. Text is never parsed for special tokens: if it contains the
name of one, the name is encoded as characters.
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
# Files next to a tokenizer.json that may define the roles of its special tokens.
BESIDE = ("tokenizer_config.json", "generation_config.json", "config.json")

# The usual names of the tokens that begin, end, pad and mask a text, if no file defines them.
_ROLES = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]", "[CLS]"),
    "eos": ("</s>", "<eos>", subwords.END, "<|end_of_text|>", "[EOS]", "[SEP]"),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
    "mask": ("<mask>", "[MASK]"),
}
# What encoders of the kind of BERT call the tokens of these roles.
_ALSO = {"bos": "cls_token", "eos": "sep_token"}


def special_tokens(tokenizer: Tokenizer, ended: bool = True) -> dict[str, int]:
    """The special ids that a method needs: "start", and the end and pad ids if there are any.

    Args:
      tokenizer: the tokenizer of the data.
      ended: whether documents end with eos. If not, the data have no eos, and "start" is a newline
        or, if that is not one token, 0.
    """
    special = {k: v for k, v in tokenizer.special.items() if k.startswith(("eos", "pad"))}
    bos = tokenizer.special.get("bos")
    start = next(
        (i for i in (*tokenizer.begins[:1], special.get("eos"), bos) if i is not None), None
    )
    if start is None or not ended:
        try:
            newline = tokenizer.encode("\n")
        except ConfigError:
            newline = ()
        start = int(newline[0]) if len(newline) == 1 else 0
    return {"start": start, **special}


def begins(tokenizer: Tokenizer, special: Mapping[str, int], documents: str) -> tuple[int, ...]:
    """The tokens to put before a prompt.

    They are the tokens that the tokenizer itself puts before a text; otherwise the start token that
    begins each row of whole documents. For a stream there are none, because its windows may begin
    in the middle of a text.

    Args:
      tokenizer: the tokenizer of the data.
      special: the result of `special_tokens`.
      documents: `dataset.text.documents`.
    """
    if tokenizer.begins[:1] == (special["start"],):
        return tokenizer.begins
    return () if documents == "stream" else (special["start"],)


def check(name: str, vocabulary_size: int) -> None:
    """Raises ConfigError unless `name` is a path or one of `NAMES`, with a valid size."""
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
    """A string that identifies the tokenizer `name` before it is made."""
    if _is_path(name):
        return hashlib.sha256(read(name).to_json().encode()).hexdigest()
    return json.dumps(subwords.GPT2) if name == "gpt2" else name


def make(name: str, texts: Sequence[str], train: int, vocabulary_size: int, end: bool) -> Tokenizer:
    """The tokenizer `name` for `texts`.

    Args:
      name: one of `NAMES`, or the path of a tokenizer.json.
      texts: all texts of the data. "characters" uses the characters of all of them, as nanoGPT.
      train: the number of texts, from the first on, that are for training; BPE, WordPiece and
        Unigram are trained on these only.
      vocabulary_size: of BPE, WordPiece and Unigram, including special tokens.
      end: whether documents end with an end token.

    Raises:
      ConfigError: a bad file, a missing package, or a file without an end token.
    """
    if name == "bytes":
        return Bytes({"eos": 256} if end else {})
    if name == "characters":
        characters = "".join(sorted(set().union(*texts)))
        return Characters(characters, {"eos": len(characters)} if end else {})
    if name in TRAINED:
        return subwords.train(name, texts[:train], vocabulary_size, end)
    tokenizer = subwords.gpt2() if name == "gpt2" else read(name)
    if end and "eos" not in tokenizer.special:
        raise ConfigError(
            f"config.dataset.text.tokenizer={name!r} has no token that ends a document, but the "
            "data have several documents, or dataset.text.documents is not 'stream'. Give a "
            "tokenizer with an eos token; a tokenizer_config.json next to the file can name it."
        )
    return tokenizer


def read(path: str | Path) -> Tokenizer:
    """Reads a tokenizer.json of genjax or Hugging Face, given by its path or its folder.

    For Hugging Face's files, `tokenizer_config.json` next to it says which tokens begin, end, pad
    and mask a text; without it they are found by their usual names. `generation_config.json` and
    `config.json` add missing roles, and further tokens that end a text. Tokens added beyond the
    `vocab_size` of config.json are left out, because the model does not know them. The template of
    chats is that of `chat_template.jinja`, or of tokenizer_config.json.

    Only the post-processor decides which tokens are put before each text; `add_bos_token` in
    tokenizer_config.json is ignored, as in transformers 5 if there is a tokenizer.json.

    Raises:
      ConfigError: no such file, or no tokenizer in it.
    """
    file = _file(path)
    config_files = [file.with_name(name) for name in BESIDE]
    if (size := file.stat().st_size) > LONGEST:
        raise ConfigError(f"{file} has {size} bytes: expected a tokenizer of at most {LONGEST}.")
    roles, generation, config = (
        read_json(config_file) if config_file.is_file() else {} for config_file in config_files
    )
    beside = file.with_name("chat_template.jinja")
    try:
        template = beside.read_text("utf-8") if beside.is_file() else ""
        return from_json(file.read_text("utf-8"), roles, config | generation, template)
    except ValueError as error:  # ConfigError, and what json and UTF-8 raise
        raise ConfigError(f"{file}: {error}") from error


def from_json(
    text: str,
    roles: Mapping[str, Any] | None = None,
    ids: Mapping[str, Any] | None = None,
    template: str = "",
) -> Tokenizer:
    """The inverse of `to_json`; also accepts Hugging Face's tokenizer.json.

    Args:
      text: the JSON.
      roles: Hugging Face's tokenizer_config.json: "bos_token", "eos_token", "pad_token",
        "chat_template".
      ids: its config.json or generation_config.json: "bos_token_id", "eos_token_id", ...
      template: its chat_template.jinja, if there is one.

    Raises:
      ConfigError: it is not a tokenizer.
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
                "the tokenizer is inconsistent: it changes when it is written and read again, for "
                "example because the ids of added tokens leave a gap. Fetch it again."
            )
        described = state if kind == "huggingface" else roles or {}
        template = template or _template(described.get("chat_template"))
        if kind == "huggingface":
            return _checked(subwords.HuggingFace(parsed, state["special"], template))
        special = _add_roles_by_id(_roles(parsed, roles or {}), parsed, ids or {})
        return subwords.HuggingFace(parsed, special, template)
    except ConfigError:
        raise
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"not a tokenizer: {reason}. Expected the tokenizer.json of a run, or of Hugging Face."
        ) from error


def _template(value: Any) -> str:
    """The chat template that a file gives: a text, or the one of several that is the default."""
    if isinstance(value, list):
        value = {part.get("name"): part.get("template") for part in value}.get("default")
    if not isinstance(value, str | None):
        raise ConfigError(f"chat_template={shown(value)}: expected a text, or a list of templates.")
    return value or ""


def _check_ids(state: Mapping[str, Any]) -> None:
    """Raises ConfigError for ids so large that the library would fill the memory with the gaps."""
    vocabulary = state["model"].get("vocab", {})
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [token["id"] for token in state.get("added_tokens") or []]
    limit = max(2 * len(ids), subwords.MOST)
    wrong = [number for number in ids if type(number) is not int or not 0 <= number < limit]
    if wrong:
        raise ConfigError(
            f"a tokenizer of {len(ids)} tokens with the id {shown(wrong[0])}: expected whole "
            f"numbers below {limit}."
        )


def _known_to_model(state: Mapping[str, Any], vocabulary_size: Any) -> Mapping[str, Any]:
    """A tokenizer.json without added tokens beyond the vocabulary size of the model."""
    added = state.get("added_tokens") or []
    if type(vocabulary_size) is not int:
        return state
    beyond = [token for token in added if token["id"] >= vocabulary_size]
    if not beyond:
        return state
    log.warning(
        "the tokens %s are left out: they were added to the tokenizer, but the model in its "
        "config.json has only %d tokens",
        ", ".join(shown(token["content"]) for token in beyond[:8]),
        vocabulary_size,
    )
    return {**state, "added_tokens": [token for token in added if token not in beyond]}


def _checked(tokenizer: Tokenizer) -> Tokenizer:
    """Raises ConfigError if a special id is not a token, or is a token that texts may contain."""
    spelling = tokenizer.spelling
    for role, token_id in tokenizer.special.items():
        exists = type(token_id) is int and 0 <= token_id < len(spelling)
        # Several tokens may end a text; all but the first may occur in texts, such as a newline.
        if not exists or (spelling[token_id] and not role.startswith("eos_")):
            raise ConfigError(
                f"not a tokenizer: {role} is the token {token_id!r}, expected one of the "
                f"{len(spelling)} tokens from 0 on, and one that does not stand for text."
            )
    return tokenizer


def _roles(inner: Any, roles: Mapping[str, Any]) -> dict[str, int]:
    """The ids of the tokens that begin, end, pad and mask a text."""
    special = {}
    for role, usual_names in _ROLES.items():
        configured = roles.get(f"{role}_token") or roles.get(_ALSO.get(role))
        configured = configured.get("content") if isinstance(configured, dict) else configured
        names = (configured,) if configured else usual_names if not roles else ()
        ids = [i for i in map(inner.token_to_id, names) if i is not None]
        if ids:
            special[role] = ids[0]
    return special


def _add_roles_by_id(special: dict[str, int], inner: Any, ids: Mapping[str, Any]) -> dict[str, int]:
    """Adds the roles for which only ids are given; several tokens may end a text.

    Any token may end a text. The others must be added ones, because a special token must not occur
    in texts.
    """
    special, added = dict(special), inner.get_added_tokens_decoder()
    known = set(inner.get_vocab(with_added_tokens=True).values())
    for role in _ROLES:
        role_ids = ids.get(f"{role}_token_id")
        for token_id in role_ids if isinstance(role_ids, list) else [role_ids]:
            if type(token_id) is not int or token_id not in (known if role == "eos" else added):
                continue
            if role not in special:
                special[role] = token_id
            elif role == "eos" and token_id not in ends(special):
                special[f"eos_{len(ends(special)) + 1}"] = token_id
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
