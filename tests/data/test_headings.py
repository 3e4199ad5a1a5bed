"""Texts and their headings: docstrings, and the titles of poems."""

import json

import pytest

from genjax.config import ConfigError
from genjax.data import headings

MODULE = '''"""One line alone."""


def of_one(x):
    """Return x.

    Indented here.

      And more.
    """


class Second:
    """
    Two lines
    at first.

    Left out.
    """

    async def third(self):
        """Wait.

        Long enough."""


def silent():
    "Only this."
'''


def test_docstrings_of_several_paragraphs(tmp_path):
    file = tmp_path / "mod.py"
    file.write_text(MODULE)
    assert headings.docstrings(file) == [
        ("Indented here.\n\n  And more.", "Return x.", "mod.py"),
        ("Long enough.", "Wait.", "mod.py"),
    ]


def test_titles_of_the_poems_that_are_in_the_corpus(tmp_path):
    poems = [
        {"title": "春", "author": "a", "paragraphs": ["春眠不覺曉，", "處處聞啼鳥。"]},
        {"title": "again", "author": "b", "paragraphs": ["春眠不覺曉，", "處處聞啼鳥。"]},
        {"title": "a line", "author": "b", "paragraphs": ["春眠不覺曉，"]},
        {"title": " ", "author": "b", "paragraphs": ["夜來風雨聲，", "花落知多少。"]},
    ]
    file = tmp_path / "poet.tang.0.json"
    file.write_text(json.dumps(poems))
    assert headings.titles({"x": file}) == [("春眠不覺曉，\n處處聞啼鳥。", "春", "a")]


def test_no_path_is_taken():
    with pytest.raises(ConfigError, match="python_docstrings needs no path"):
        headings.load("python_docstrings", "x")
