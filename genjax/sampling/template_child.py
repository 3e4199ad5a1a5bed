"""Renders one chat template in a process of its own, which may be killed: see `templates`.

Reads a JSON object with `template` and `values` from the standard input, and writes one with
`text`, or `error`. It imports nothing of genjax, so that it starts in a fraction of a second.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes, sandbox
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser

SECONDS = 2  # of computing
MEMORY = 2**29  # bytes of addresses
LONGEST = 2**22  # characters of the rendered text


class Generation(Extension):
    """The tags {% generation %} and {% endgeneration %}, which mark an answer for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """What is between the tags, as if they were not there."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class Environment(sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which an attribute that is not safe is an error, not nothing."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refuses the attribute."""
        raise SecurityError(f"access to {attribute!r} of a {type(obj).__name__}")


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def render(template: str, values: dict[str, Any]) -> str:
    """The text that a template makes of values, with what transformers offers to templates."""
    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template).render(**values)


def main() -> None:
    """Renders what the standard input holds."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    request = json.load(sys.stdin)
    try:
        text = render(request["template"], request["values"])
        if len(text) > LONGEST:
            raise ValueError(f"it makes a text of {len(text)} characters: expected {LONGEST}")
        answer = {"text": text}
    except MemoryError:
        answer = {"error": "it takes too much memory"}
    except SecurityError as error:
        answer = {"error": f"it reaches for what a template may not have: {error}"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
