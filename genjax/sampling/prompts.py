"""What the command line says in words, as the tokens of a run's tokenizer."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from genjax.config import ConfigError, require
from genjax.data import tokenizers
from genjax.data.alphabets import ends, utf8
from genjax.data.documents import decode
from genjax.data.tokenizers import Tokenizer
from genjax.method import DataSpec
from genjax.sampling.stopping import automaton, can_be_found
from genjax.training import workdir
from genjax.training.pictures import write_atomic

FILE = "tokenizer.json"  # in a workdir


def read_tokenizer(folder: Path, spec: DataSpec) -> Tokenizer | None:
    """The tokenizer that the run in `folder` was trained with; None if its data are no text.

    Raises:
      ConfigError: it is missing or damaged, or it is another one.
    """
    if spec.modality != "text":
        return None
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(f"{path} is missing: put the run's tokenizer back from a copy.")
    content = path.read_text(encoding="utf-8")
    if digest(content) != workdir.read_digest(folder, "tokenizer"):
        raise ConfigError(
            f"{path} is not the tokenizer that the run was trained with: its tokens mean something "
            "else. Put the run's own back from a copy."
        )
    return tokenizers.from_json(content)


def keep_tokenizer(folder: Path, tokenizer: Tokenizer | None) -> str:
    """Writes the tokenizer of the data into a run's folder, and returns its digest ("" of None).

    Raises:
      ConfigError: the run goes on from a checkpoint that was trained with another one.
    """
    if tokenizer is None:
        return ""
    check_tokenizer(folder, tokenizer)
    content = tokenizer.to_json()
    write_atomic(folder / FILE, content.encode())
    return digest(content)


def with_own_tokenizer(dataset: ConfigDict, folder: Path) -> ConfigDict:
    """`config.dataset` with the run's copy of its tokenizer where the file it names has gone."""
    name, own = dataset.get("text", {}).get("tokenizer", ""), folder / FILE
    if name in ("", *tokenizers.NAMES) or Path(name).exists() or not own.is_file():
        return dataset
    dataset = dataset.copy_and_resolve_references()
    dataset.text.tokenizer = str(own)
    return dataset


def check_tokenizer(folder: Path, tokenizer: Tokenizer | None) -> None:
    """Raises ConfigError if a run that has begun has another tokenizer than its data now."""
    if tokenizer is None or not workdir.has_checkpoint(folder):
        return
    if workdir.read_digest(folder, "tokenizer") != digest(tokenizer.to_json()):
        raise ConfigError(
            f"the data's tokenizer is another than that which the run in {folder} was trained "
            "with: its tokens would mean something else. Put the data back, or give another "
            "--workdir."
        )


def digest(content: str) -> str:
    """The sha256 of a tokenizer's file."""
    return hashlib.sha256(content.encode()).hexdigest()


def read_prompts(given: Sequence[str], file: str) -> list[str]:
    """The texts of each `--prompt`, or that of `--prompt_file` without its last line's end.

    Raises:
      ConfigError: both are given, or the file cannot be read as UTF-8.
    """
    if not file:
        return list(given)
    if given:
        raise ConfigError("--prompt and --prompt_file are both given: leave one out.")
    return [read_text("--prompt_file", file).removesuffix("\n").removesuffix("\r")]


def read_text(flag: str, file: str) -> str:
    """The text in a file that a flag of the command line names.

    Raises:
      ConfigError: it cannot be read as UTF-8.
    """
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag}={file}: {error.strerror}.") from error
    return decode(content, f"{flag}={file}")


def encode_prompts(
    prompts: Sequence[str], tokenizer: Tokenizer, start: int | None
) -> list[Int[np.ndarray, "P"]]:
    """Prompts as tokens.

    Args:
      prompts: the texts.
      tokenizer: of the run.
      start: the token that stands before each, if there is one.

    Raises:
      ConfigError: one is empty, or has a character that the tokenizer does not know.
    """
    rows = [tokenizer.encode(text) for text in prompts]
    if not all(map(len, rows)):
        raise ConfigError(
            "--prompt or --prompt_file: expected at least one character, found none; leave it out "
            "to begin new."
        )
    if start is not None:
        rows = [np.concatenate([[start], row]) for row in rows]
    return [row.astype(np.int32) for row in rows]


def start_token(dataset: ConfigDict, spec: DataSpec, tokenizer: Tokenizer) -> int | None:
    """The token that stands before a prompt; None if there is none.

    It is the one that documents begin with, if it is for nothing else or each example of the data
    begins with it. In a stream of documents a text may as well go on from their middle.
    """
    start, special = spec.special_tokens["start"], tokenizer.special
    own = start == special.get("bos") and start != special.get("eos")
    return start if own or dataset.text.documents != "stream" else None


def check_number(num: int, given: int, options: Mapping[str, Any]) -> None:
    """Raises ConfigError at fewer texts than prompts, or more of a search, which would be the same.

    Args:
      num: texts to draw.
      given: prompts.
      options: of `methods.lm.sample`.
    """
    least = max(given, 1)
    require(num >= least, "--num", num, f"at least {least}, one text for each --prompt")
    one = f"{least} with --beams, which draws nothing: one text for each prompt, or one without"
    require(num == least or options.get("beams", 1) == 1, "--num", num, one)


def encode_texts(given: Mapping[str, str], tokenizer: Tokenizer) -> dict[str, Any]:
    """The options `stop`, `banned` and `allowed` of the command line, as `methods.lm` takes them.

    Each is one text, or a Python tuple of texts, or one in quotes. A stop is found in whatever
    tokens it is written. Bans are of the tokens that the tokenizer makes of a text, as it stands
    and after a space. The end of a text is always allowed.

    Raises:
      ConfigError: an empty text, or one that the tokenizer cannot write.
    """
    found = {}
    for name in {"stop", "banned", "allowed"} & given.keys():
        texts = _texts(given[name])
        require(all(texts), f"--{name}", given[name], "at least one character")
        made = [_MADE[name](text, tokenizer) for text in texts]
        for text, forms in zip(texts, made, strict=True):
            require(forms, f"--{name}", text, "text that the tokenizer knows")
        forms = list(dict.fromkeys(itertools.chain.from_iterable(made)))
        if name == "stop":
            found[name] = automaton(forms, tokenizer.spelling)
        elif name == "banned":
            found[name] = tuple(forms)
        else:
            found[name] = tuple(sorted({*itertools.chain(*forms), *ends(tokenizer.special)}))
    return found


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
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(text)
            values = [value] if isinstance(value, str) else list(value)
            if values and all(isinstance(v, str) for v in values):
                return values
    return [text]
