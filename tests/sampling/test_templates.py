"""Chat templates against transformers (make_chat_templates.py), and those that are refused."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.sampling import templates

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "chat_templates.npz")
TEMPLATES, CHATS, SPECIAL, RENDERED = (
    json.loads(str(GOLDEN[key])) for key in ("templates", "chats", "special", "rendered")
)
MESSAGES = {"messages": [{"role": "user", "content": "hi"}], "tools": None}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_makes_what_transformers_makes_of_it(name):
    for chat, messages in CHATS.items():
        values = {"messages": messages, "add_generation_prompt": True, "tools": None, **SPECIAL}
        assert templates.render(TEMPLATES[name], values) == RENDERED[name][chat]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages.__class__ }}", "may not have: access to '__class__' of a list"),
        ("{{ ''['__class__'] }}", "may not have: access to '__class__' of a str"),
        ("{{ messages | map(attribute='__class__') | list }}", "access to '__class__' of a dict"),
        ("{{ cycler.__init__.__globals__.os }}", "access to '__init__' of a type"),
        ("{{ '{0.__class__}'.format(1) }}", "access to '__class__' of a int"),
        ("{{ messages.append(1) }}", "may not have"),
        ("{% include '/etc/passwd' %}", "TypeError: no loader"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "time"),
        ("{{ 'ab' * 10 ** 10 }}", "too much memory"),
        ("{{ 'ab' * 4000000 }}", "a text of 8000000 characters"),
        ("{% if messages %}", "TemplateSyntaxError"),
        ("{{ nothing.at_all }}", "UndefinedError: 'nothing' is undefined"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "RecursionError|too much memory"),
        ("a" * (templates.LONGEST + 1), "it has 1048577 characters"),
    ],
)
def test_a_template_that_does_more_than_its_work_is_refused(template, message):
    with pytest.raises(ConfigError, match=rf"chat template cannot be rendered: .*{message}"):
        templates.render(template, MESSAGES)


def test_without_jinja_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"jinja2, which is not installed.*genjax-models\[text\]"):
        templates.render("{{ messages }}", MESSAGES)
