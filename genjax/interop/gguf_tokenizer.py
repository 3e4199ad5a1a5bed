"""The tokenizer in the metadata of a GGUF file, as a tokenizer of genjax.

Two types are read: "gpt2", byte-level BPE with its merges, and "llama", SentencePiece's BPE, whose
merges follow from the scores of the tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from genjax.checks import ConfigError, one_of, require, shown
from genjax.data import tokenizers
from genjax.data.alphabets import Tokenizer

State = dict[str, Any]

KEY = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # types of tokens

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_WORDS = (  # with the most digits that are one word
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _words(digits: int) -> State:
    pattern = {"Regex": _WORDS % digits}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def _before_byte_level(part: State, use_regex: bool) -> State:
    pieces = [part, {**_BYTE_LEVEL, "use_regex": use_regex}]
    return {"type": "Sequence", "pretokenizers": pieces}


# What cuts a text into words, before the words are cut into tokens, by the name in the file.
_PRE = {
    "gpt-2": {**_BYTE_LEVEL, "use_regex": True},
    "smollm": _before_byte_level({"type": "Digits", "individual_digits": True}, True),
    "llama-bpe": _before_byte_level(_words(3), False),
    "qwen2": _before_byte_level(_words(1), False),
}
_NORMALIZERS = {"qwen2": {"type": "NFC"}}
_WHOLE_WORDS = ("llama-bpe",)  # a word that is a token is not cut, whatever the merges say
_BEGINNING = ("llama-bpe",)  # of "gpt2": puts bos before a text unless the file says otherwise


class _Vocabulary(NamedTuple):
    """What a file says of each token."""

    tokens: Sequence[str]
    types: np.ndarray

    def of_type(self, *types: int) -> list[int]:
        """The ids of all tokens of these types."""
        return np.flatnonzero(np.isin(self.types, types)).tolist()


def _array(path: str, metadata: Mapping[str, Any], name: str, count: int) -> np.ndarray:
    """An array of numbers, one for each token."""
    values = metadata.get(f"{KEY}{name}")
    fits = isinstance(values, np.ndarray) and len(values) == count
    require(fits, f"{path}: {KEY}{name}", values, f"{count} numbers, one for each token")
    return values


def _strings(path: str, metadata: Mapping[str, Any], name: str) -> list[str]:
    values = metadata.get(f"{KEY}{name}")
    require(isinstance(values, list) and values, f"{path}: {KEY}{name}", values, "a list of texts")
    return values


def _vocabulary(path: str, metadata: Mapping[str, Any]) -> _Vocabulary:
    tokens = _strings(path, metadata, "tokens")
    ((token, times),) = Counter(tokens).most_common(1)
    if times > 1:
        raise ConfigError(
            f"{path}: the token {shown(token)} comes {times} times: expected it once."
        )
    return _Vocabulary(tokens, _array(path, metadata, "token_type", len(tokens)))


def _merges(path: str, metadata: Mapping[str, Any]) -> list[list[str]]:
    """The merges of a "gpt2" tokenizer, in the order in which they are applied."""
    merges = [merge.split(" ") for merge in _strings(path, metadata, "merges")]
    wrong = next((merge for merge in merges if len(merge) != 2), None)
    require(wrong is None, f"{path}: {KEY}merges", wrong, "two tokens with a space between them")
    return merges


def _merges_by_score(vocabulary: _Vocabulary, scores: np.ndarray) -> list[list[str]]:
    """The merges of SentencePiece's BPE: the pair whose joint token has the best score is first."""
    normal = vocabulary.of_type(NORMAL)
    ids = {vocabulary.tokens[i]: i for i in normal}
    order = sorted(normal, key=lambda i: (-scores[i], i))
    return [
        [token[:cut], token[cut:]]
        for token in (vocabulary.tokens[i] for i in order)
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]


def _byte_level(path: str, metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> State:
    """The parts of a "gpt2" tokenizer."""
    pre = metadata.get(f"{KEY}pre", "")
    one_of(f"{path}: {KEY}pre", pre, tuple(_PRE))
    return {
        "normalizer": _NORMALIZERS.get(pre),
        "pre_tokenizer": _PRE[pre],
        "decoder": {**_BYTE_LEVEL, "use_regex": True},
        "model": {
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _WHOLE_WORDS,
            "merges": _merges(path, metadata),
        },
    }


def _sentencepiece(path: str, metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> State:
    """The parts of a "llama" tokenizer."""
    scores = _array(path, metadata, "scores", len(vocabulary.tokens))
    spaced = metadata.get(f"{KEY}add_space_prefix", True)  # a text begins with a space
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    restore = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    normalizers = [{"type": "Prepend", "prepend": "▁"}] * bool(spaced) + [replace]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * bool(spaced)
    decoders = [restore, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    unknown = [vocabulary.tokens[i] for i in vocabulary.of_type(UNKNOWN)]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "unk_token": unknown[0] if unknown else None,
            "fuse_unk": True,
            "byte_fallback": bool(vocabulary.of_type(BYTE)),
            "ignore_merges": False,
            "merges": _merges_by_score(vocabulary, scores),
        },
    }


_TYPES = {"gpt2": _byte_level, "llama": _sentencepiece}
_ROLES = {
    **{"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id"},
    **{"eos_2": "eot_token_id", "eos_3": "eom_token_id"},  # the end of a turn, and of a message
}


def _roles(path: str, metadata: Mapping[str, Any], count: int) -> dict[str, int]:
    """The ids of the tokens that begin, end and pad a text."""
    roles: dict[str, int] = {}
    for role, key in _ROLES.items():
        token = metadata.get(f"{KEY}{key}")
        if token is None:
            continue
        valid = type(token) is int and 0 <= token < count
        require(valid, f"{path}: {KEY}{key}", token, f"a token from 0 to {count - 1}")
        ends = [i for name, i in roles.items() if name.startswith("eos")]
        if token not in ends or not role.startswith("eos"):
            roles["eos" if role.startswith("eos") and not ends else role] = token
    return roles


def _added(vocabulary: _Vocabulary, roles: Mapping[str, int]) -> list[State]:
    """The tokens that a text is searched for before it is cut; control tokens stand for no text."""
    silent = {*vocabulary.of_type(UNKNOWN, CONTROL)}
    silent |= {i for role, i in roles.items() if role in ("bos", "eos", "pad")}
    return [
        {
            "id": i,
            "content": vocabulary.tokens[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": i in silent,
        }
        for i in sorted({*silent, *vocabulary.of_type(USER_DEFINED)})
    ]


def _begins(token: str, number: int) -> State:
    """The post-processor that puts a token before each text."""
    pieces = [{"SpecialToken": {"id": token, "type_id": 0}}]
    single = [*pieces, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def read(path: str, metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer, with the roles of its special tokens and the template of its chats.

    Args:
      path: of the file, for errors.
      metadata: of the file.

    Raises:
      ConfigError: a type of tokenizer, or a way to find words, that is not known, or metadata that
        contradict themselves.
    """
    kind = metadata.get(f"{KEY}model", "none")
    one_of(f"{path}: {KEY}model", kind, tuple(_TYPES))
    vocabulary = _vocabulary(path, metadata)
    parts = _TYPES[kind](path, metadata, vocabulary)
    roles = _roles(path, metadata, len(vocabulary.tokens))
    default = kind == "llama" or metadata.get(f"{KEY}pre") in _BEGINNING
    begun = metadata.get(f"{KEY}add_bos_token", default) and "bos" in roles
    template = metadata.get(TEMPLATE, "")
    require(isinstance(template, str), f"{path}: {TEMPLATE}", template, "a text")
    state = {
        **{"version": "1.0", "truncation": None, "padding": None},
        **parts,
        "added_tokens": _added(vocabulary, roles),
        "post_processor": _begins(vocabulary.tokens[roles["bos"]], roles["bos"]) if begun else None,
        "model": {
            "type": "BPE",
            **{"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None},
            **parts["model"],
            "vocab": {token: i for i, token in enumerate(vocabulary.tokens)},
        },
    }
    whole = {"kind": "huggingface", "special": roles, "tokenizer": state}
    try:
        return tokenizers.from_json(json.dumps(whole | {"chat_template": template}))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
