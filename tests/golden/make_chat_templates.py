"""What transformers makes of chat templates that use all that it offers to them.

/path/to/parity/bin/python tests/golden/make_chat_templates.py [OUTPUT.npz]
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import transformers  # noqa: E402
from transformers.utils.chat_template_utils import render_jinja_template  # noqa: E402

MARKED = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = 'Be brief.' %}
{%- endif %}
{{- bos_token + '<|s|>' + system }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'assistant' %}
        {% generation %}{{ message.content }}{% endgeneration %}{{ eos_token }}
    {%- else %}
        {{- '<|u|> ' ~ message.content.strip() ~ '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|a|>' }}{% endif %}
"""
TEMPLATES = {
    "marked": MARKED,
    "json": (
        "{% for m in messages %}{{ m | tojson }}\n{% endfor %}{{ messages | tojson(indent=2) }}"
    ),
    "loops": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if loop.first %}{% continue %}"
        "{% endif %}{% set ns.n = ns.n + m.content | length %}{% if ns.n > 4 %}{% break %}"
        "{% endif %}{{ m.role.upper() }}{% endfor %}{{ ns.n }}{{ tools is none }}"
        "{{ strftime_now('%') }}{{ pad_token is defined }}"
    ),
    "spaces": "  {% if true %}\n  a\n  {% endif %}\n{# gone #}\n{{ messages[-1]['content'] }}\n",
    "macro": (
        "{% macro turn(m) %}[{{ m.role }}: {{ m['content'].split(' ')[-1] }}]{% endmacro %}"
        "{% for m in messages | reverse %}{{ turn(m) }}{% endfor %}"
    ),
}
CHATS = {
    "one": [{"role": "user", "content": " Grüße <b>'you'</b> & \"me\" \n"}],
    "three": [
        {"role": "system", "content": "\nCount. "},
        {"role": "user", "content": "1 2"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "4 5"},
    ],
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def main(path: pathlib.Path) -> None:
    """Makes all and writes."""
    rendered = {
        name: {
            chat: render_jinja_template(
                conversations=[messages],
                chat_template=template,
                add_generation_prompt=True,
                **SPECIAL,
            )[0][0]
            for chat, messages in CHATS.items()
        }
        for name, template in TEMPLATES.items()
    }
    np.savez_compressed(
        path,
        peer=np.array(f"transformers {transformers.__version__}"),
        templates=np.array(json.dumps(TEMPLATES)),
        chats=np.array(json.dumps(CHATS)),
        special=np.array(json.dumps(SPECIAL)),
        rendered=np.array(json.dumps(rendered)),
    )


if __name__ == "__main__":
    given = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__)
    main(given if len(sys.argv) > 1 else given.with_name("chat_templates.npz"))
