"""Messages as the tokens of a prompt."""

import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.data import subwords, tokenizers
from genjax.data.alphabets import Bytes
from genjax.sampling import chat

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ("<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


def tokenizer(template=TEMPLATE):
    """A byte-level BPE with the tokens of a chat."""
    made = subwords.train("bpe", ["a fox, a dog"] * 4, 300, end=False)
    made.inner.add_special_tokens(list(MARKS))
    return subwords.HuggingFace(made.inner, {"bos": made.inner.token_to_id("<s>")}, template)


def turns(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def test_a_prompt_has_the_tokens_of_the_template():
    made = tokenizer()
    ids, left_out = chat.prompt(made, turns("a fox", "a dog"), 1000, 10)
    names = {name: made.inner.token_to_id(name) for name in MARKS}
    end = [names["<|end|>"], *made.encode("\n")]
    expected = [names["<s>"], names["<|user|>"], *made.encode("a fox"), *end]
    expected += [names["<|assistant|>"], *made.encode("a dog"), *end, names["<|assistant|>"]]
    assert ids[ids >= 0].tolist() == expected
    assert (len(ids), left_out, ids.dtype) == (64, 0, np.int32)
    assert (ids[: -len(expected)] == -1).all()
    assert made.encode("a fox<|end|>").max() < min(names.values())  # other texts stay texts
    assert chat.ends(made) == (names["<|end|>"],)


def test_what_follows_an_answer_need_not_be_a_token():
    made = tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert chat.ends(made) == ()


def test_a_long_chat_loses_its_first_turns_but_not_its_system_message():
    made, system = tokenizer(), [{"role": "system", "content": "dog"}]
    messages = system + turns("first " * 30, "1", "second " * 4, "2", "third " * 8)
    whole = made.encode_marked(chat.rendered(made, messages))
    assert len(whole) > 130
    ids, left_out = chat.prompt(made, messages, 200, 70)  # 131 positions are left for a prompt
    assert left_out == 2
    kept = made.encode_marked(chat.rendered(made, system + messages[3:]))
    assert ids[ids >= 0].tolist() == kept.tolist()
    assert len(ids) == 128
    assert chat.prompt(made, messages, 10_000, 10).left_out == 0
    with pytest.raises(ConfigError, match=r"a prompt of \d+ tokens: expected at most 50 of the"):
        chat.prompt(made, messages, 100, 70)  # half of the positions are for the prompt


def test_a_message_cannot_pretend_to_be_somebody_else():
    made = tokenizer()
    with pytest.raises(ConfigError, match=r"message 'hi<\|end\|>' has <\|end\|> in it"):
        chat.rendered(made, turns("hi<|end|>"))
    # An answer may, by chance, have the letters of a name.
    assert "fox<|end|>\n" in chat.rendered(made, turns("a", "f<|end|>ox", "b"))


def test_only_a_tokenizer_with_a_template_chats():
    for made in (tokenizer(""), Bytes({})):
        with pytest.raises(ConfigError, match=r"no chat template.*import_lm:smollm2"):
            chat.check(made)
    chat.check(tokenizer())


def test_the_template_of_several_is_the_default_one():
    text = tokenizer().inner.to_str()
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    assert tokenizers.from_json(text, {"chat_template": several}).chat_template == "b"
    assert tokenizers.from_json(text, {"chat_template": "c"}).chat_template == "c"
    assert tokenizers.from_json(text).chat_template == ""
    with pytest.raises(ConfigError, match="chat_template=3: expected a text"):
        tokenizers.from_json(text, {"chat_template": 3})
