"""Chats: messages as the tokens of one prompt, by the chat template of a tokenizer.

A message is a mapping of "role" (system, user or assistant) and "content".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from genjax.checks import ConfigError, require, shown
from genjax.data.alphabets import Tokenizer
from genjax.sampling.templates import render

Message = Mapping[str, str]

ROLES = ("system", "user", "assistant")
LEAST = 64  # columns of the shortest prompt that a program is compiled for
PROBE = "Nineteen"  # an answer, to see what a template puts after one


class Prompt(NamedTuple):
    """The prompt of an answer.

    Attributes:
      ids: its tokens, with -1 on the left.
      left_out: how many of the first messages do not fit.
    """

    ids: Int32[np.ndarray, "P"]
    left_out: int


def check(tokenizer: Tokenizer) -> None:
    """Raises ConfigError unless the tokenizer has a chat template."""
    if not tokenizer.chat_template:
        raise ConfigError(
            "this run cannot chat: its tokenizer has no chat template. Import a model that was "
            "trained on chats, such as --config=import_lm:smollm2, or sample with --mode=sample "
            "--prompt=..."
        )


def conversation(given: str | Sequence[Message]) -> list[Message]:
    """The messages that are given, or the one of the user that a text is.

    Raises:
      ConfigError: there is none, one is not a role and a text, or the last is not the user's.
    """
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    for message in messages:
        valid = isinstance(message, Mapping) and isinstance(message.get("content"), str)
        expected = '{"role": ..., "content": a text} with one of the roles ' + ", ".join(ROLES)
        require(valid and message.get("role") in ROLES, "messages", message, expected)
    last = messages[-1]["role"] if messages else None
    require(last == "user", "the last message", last, "one of the role 'user', to be answered")
    return messages


def rendered(tokenizer: Any, messages: Sequence[Message], answered: bool = False) -> str:
    """The messages as one text, which ends where the next answer begins unless `answered`.

    Raises:
      ConfigError: as `templates.render`, or a message has the name of a special token.
    """
    names = tokenizer.special_names()
    plain = [_without(names, message) for message in messages]
    roles = {"bos": "bos_token", "eos": "eos_token", "pad": "pad_token"}
    special = {
        key: names[tokenizer.special[role]]
        for role, key in roles.items()
        if tokenizer.special.get(role) in names
    }
    chat = {"messages": plain, "add_generation_prompt": not answered}
    return render(tokenizer.chat_template, chat | {"tools": None, "documents": None} | special)


def _without(names: Mapping[int, str], message: Message) -> Message:
    """A message without names of special tokens, which would stand for these tokens.

    Raises:
      ConfigError: it has one, and is not an answer of the model.
    """
    content = message["content"]
    for name in names.values():
        if name in content and message["role"] != "assistant":
            raise ConfigError(
                f"the message {shown(content)} has {name} in it, which would not be read as text "
                "but as the token of that name. Leave it out."
            )
        content = content.replace(name, "")
    return {**message, "content": content}


def ends(tokenizer: Any) -> tuple[int, ...]:
    """The special token that the template puts after an answer, if it does.

    Raises:
      ConfigError: as `rendered`.
    """
    messages = [{"role": "user", "content": "9 + 10?"}, {"role": "assistant", "content": PROBE}]
    after = rendered(tokenizer, messages, answered=True).rpartition(PROBE)[2]
    first = tokenizer.encode_marked(after.lstrip())[:1].tolist()
    return tuple(token for token in first if token in tokenizer.special_names())


def prompt(
    tokenizer: Any, messages: Sequence[Message], context: int, max_new_tokens: int
) -> Prompt:
    """The prompt of the next answer; if the chat is too long, without its first turns.

    The prompt is padded to a power of two, so that few programs are compiled.

    Args:
      tokenizer: has a chat template.
      messages: of the chat; the last is the user's.
      context: positions of the network.
      max_new_tokens: the longest answer.

    Raises:
      ConfigError: as `rendered`, or the last message is too long on its own.
    """
    longest = max(context + 1 - max_new_tokens, context // 2, 1)
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = list(messages[len(system) :])
    while True:
        ids = tokenizer.encode_marked(rendered(tokenizer, [*system, *turns]))
        if len(ids) <= longest:
            break
        if len(turns) < 3:
            raise ConfigError(
                f"the message makes a prompt of {len(ids)} tokens: expected at most {longest} of "
                f"the model's {context} positions, beside an answer. Give a shorter one."
            )
        turns = turns[2:]
    width = min(max(LEAST, 1 << (len(ids) - 1).bit_length()), longest)
    padded = np.pad(ids, (width - len(ids), 0), constant_values=-1)
    return Prompt(padded.astype(np.int32), len(messages) - len(system) - len(turns))
