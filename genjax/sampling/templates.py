"""Chat templates: Jinja that comes with a tokenizer, and makes one text of many messages.

Templates come from strangers. Each is rendered by Jinja's sandbox in a process of its own, with
bounded time and memory: a template that loops, that makes an endless text or that reaches for
attributes of Python's objects ends in an error.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genjax.checks import ConfigError

PROGRAM = Path(__file__).with_name("template_child.py")
LONGEST = 2**20  # characters of a template
PATIENCE = 60.0  # seconds, on a machine that has much to do


def render(template: str, values: Mapping[str, Any]) -> str:
    """The text that a template makes of `values`, which are plain data.

    Raises:
      ConfigError: Jinja is not installed, or the template is faulty, refuses the values, takes too
        much time or memory, or reaches for what it may not have.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise ConfigError(
            "a chat needs the package jinja2, which is not installed: run launch/local.sh with the "
            "same arguments, which installs it (or pip install 'genjax-models[text]')."
        )
    if len(template) > LONGEST:
        raise _refused(f"it has {len(template)} characters: expected at most {LONGEST}")
    try:
        child = subprocess.run(
            [sys.executable, "-P", str(PROGRAM)],
            input=json.dumps({"template": template, "values": dict(values)}),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise _refused("it takes too much time") from None
    if child.returncode < 0:  # ended by a signal: the limit of its time
        raise _refused("it takes too much time")
    if child.returncode:
        raise _refused((child.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    answer = json.loads(child.stdout)
    if "error" in answer:
        raise _refused(answer["error"])
    return answer["text"]


def _refused(reason: str) -> ConfigError:
    return ConfigError(
        f"the chat template cannot be rendered: {' '.join(reason.split())[:300]}. Give the model "
        "a tokenizer with another chat_template."
    )
