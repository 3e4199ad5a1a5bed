"""--mode=chat: a conversation with a language model in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from genjax.config import ConfigError, require
from genjax.method import Tree, options_of
from genjax.modalities.text import VISIBLE
from genjax.modes.runs import parameters, restored, weights_of
from genjax.modes.sample import streamed
from genjax.sampling import chat as chats
from genjax.sampling.chat import Message
from genjax.sampling.draw import parse_options
from genjax.sampling.logits import ids, whole_number
from genjax.train_state import TrainState
from genjax.training.assemble import Assembly

logger = logging.getLogger("genjax")

ANSWER = 512  # default of the longest answer, in tokens
MARK = "> "  # before a message in the terminal


def chat(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Answers the messages of --prompt, or of the standard input, a line each."""
    require(jax.process_count() == 1, "--mode", "chat", "one process")
    run, state = restored(config, folder, flags.checkpoint)
    check(run)
    sampling = dict(flags.options)
    prompts, system = sampling.pop("prompt", []), sampling.pop("system", [])
    require(len(system) < 2, "--system", system, "one text")
    options = options_of_answers(run, parse_options(run.method, sampling))
    params = parameters(run, folder, state, weights_of(flags))
    asked, typed = _messages(prompts)
    messages: list[Message] = [{"role": "system", "content": text} for text in system]
    if typed:
        logger.info("a line is a message; Ctrl-C ends an answer, Ctrl-D the chat")
        logger.info("the first answer, and each of a longer chat, waits for its program")
    for text in asked:
        question = [*messages, {"role": "user", "content": text}]
        pieces = answer(run, params, state, question, options, flags.seed or 0)
        try:
            said = _printed(pieces, typed)
        except ConfigError as error:
            if not typed:
                raise
            print(f"error: {error}", file=sys.stderr)
            continue
        if said:
            messages = [*question, {"role": "assistant", "content": said}]
    return 0


def check(run: Assembly) -> None:
    """Raises ConfigError unless the run's model answers messages."""
    if "decode" not in options_of(run.method):
        raise ConfigError(
            f"--mode=chat is for methods that generate text, and method {run.config.method!r} does "
            "not."
        )
    chats.check(run.spec.generated.facts["tokenizer"])


def options_of_answers(run: Assembly, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of sampling, with those that answers need.

    An answer ends at every token that ends a text, and at the one that the template puts after an
    answer.

    Raises:
      ConfigError: the template cannot be rendered, or an option has a value of the wrong type.
    """
    longest = options.get("max_new_tokens", ANSWER)
    valid = whole_number(longest) and longest > 0
    require(valid, "--max_new_tokens", longest, "a whole number, at least 1")
    also = ids("--end_tokens", options.get("end_tokens", ()))
    end_tokens = (*also, *chats.ends(run.spec.generated.facts["tokenizer"]))
    return {**options, "max_new_tokens": longest, "end_tokens": end_tokens}


def answer(
    run: Assembly,
    params: Tree,
    state: TrainState,
    messages: Sequence[Message],
    options: Mapping[str, Any],
    seed: int,
) -> Iterator[str]:
    """The pieces of the answer to the last message, as they are generated.

    Each answer is drawn with a key of its own.

    Args:
      run: whose tokenizer has a chat template.
      params: of the run.
      state: the checkpoint.
      messages: of the chat so far.
      options: of sampling, by `options_of_answers`.
      seed: of the draws.

    Raises:
      ConfigError: as `chats.prompt`, or an option has a value that the method does not take.
    """
    tokenizer = run.spec.generated.facts["tokenizer"]
    context = run.config.model.length or run.spec.generated.shape[0] - 1
    prompt = chats.prompt(tokenizer, messages, context, options["max_new_tokens"])
    if prompt.left_out:
        logger.warning(
            "the chat is too long for the model's %d positions: its first %d messages are left out",
            *(context, prompt.left_out),
        )
    rows = [{"prompt": prompt.ids}]
    pieces = streamed(run, params, state, rows, options, seed + len(messages))
    next(pieces)  # the prompt itself
    yield from pieces


def _messages(prompts: Sequence[str]) -> tuple[Iterator[str], bool]:
    """The messages, and whether a person types them."""
    if prompts:
        return iter(prompts), False
    if not sys.stdin.isatty():
        return (line for line in map(str.strip, sys.stdin) if line), False
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited, and found again)
    return _typed(), True


def _typed() -> Iterator[str]:
    """The lines that a person types until Ctrl-D; Ctrl-C forgets a line."""
    while True:
        try:
            line = input(MARK).strip()
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        if line:
            yield line


def _printed(pieces: Iterator[str], typed: bool) -> str:
    """Prints an answer as it comes, and returns it; one to a person ends with Ctrl-C too."""
    said: list[str] = []
    try:
        for piece in pieces:
            said.append(piece)
            print(piece.translate(VISIBLE), end="", flush=True)
    except KeyboardInterrupt:
        if not typed:
            raise
    print("\n", flush=True)
    return "".join(said)
