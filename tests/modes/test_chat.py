"""--mode=chat with a model whose every next token follows from the last one."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import genjax
from genjax.config import ConfigError, shipped
from genjax.data import subwords
from genjax.interop import huggingface
from genjax.main import main
from genjax.networks import decoder
from genjax.nn.functional import functional

# The last token of a prompt is the number of messages.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{{ messages | length }}{% endif %}"
)
MARKS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
ENDLESS = "z"
LENGTH = 4096  # positions
CHAIN = {  # token -> next token
    **{"1": "A", "A": "B", "B": "<|im_end|>", "<|im_end|>": "X", "X": "Y"},  # one message
    **{"2": "C", "C": "<|endoftext|>", "<|endoftext|>": "X"},  # one and the system's
    **{"3": "D", "D": "<|im_end|>", "5": ENDLESS, ENDLESS: ENDLESS},
}


def markov(folder, template):
    """A folder of Hugging Face with a network that has no memory: its next token is in CHAIN."""
    made = subwords.train("bpe", ["a fox"], 300, end=False)
    made.inner.add_special_tokens(list(MARKS))
    vocabulary = made.inner.get_vocab_size()
    special = {"eos": made.inner.token_to_id("<|endoftext|>")}
    tokenizer = subwords.HuggingFace(made.inner, special, template)
    width = -(-vocabulary // 4) * 4
    options = {"width": width, "depth": 1, "heads": 2, "hidden": 4, "norm": "rms", "bias": False}
    options |= {"positions": "rotary", "activation": "swiglu", "tied": False}
    network = functional(lambda rngs: decoder.Network(vocabulary, LENGTH, **options, rngs=rngs))
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    params["embed"]["embedding"] = np.eye(vocabulary, width, dtype=np.float32)
    params["body"]["norm"]["scale"] = np.ones(width, np.float32)
    for token, follower in CHAIN.items():
        ids = (made.inner.token_to_id(name) for name in (token, follower))
        params["head"]["kernel"][tuple(ids)] = 9.0
    ids = {"start": special["eos"], **special}
    huggingface.write(folder, options, vocabulary, LENGTH, params, tokenizer.to_json(), ids)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The flag of an imported run that chats; to be read only."""
    return imported(tmp_path_factory.mktemp("chat"), TEMPLATE)


def imported(folder, template):
    workdir = f"--workdir={folder / 'run'}"
    weights = f"--config.weights={markov(folder / 'weights', template)}"
    config = f"--config={shipped() / 'import_lm.py'}"
    assert main([config, weights, "--config.evals.samples=0", workdir]) == 0
    return workdir


def test_answers_end_with_their_tokens_and_know_what_was_said(run, capsys):
    chat = [run, "--mode=chat", "--temperature=0"]
    assert main([*chat, "--prompt=hello", "--prompt=again"]) == 0
    # The first ends with the template's own token, and the second sees three messages.
    assert capsys.readouterr().out == "AB\n\nD\n\n"
    assert main([*chat, "--prompt=hello", "--system=Be kind."]) == 0
    assert capsys.readouterr().out == "C\n\n"


def test_messages_are_lines_of_the_standard_input(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\n  again \n"))
    assert main([run, "--mode=chat", "--temperature=0"]) == 0
    assert capsys.readouterr().out == "AB\n\nD\n\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt=<|im_end|>"], r"the message '<\|im_end\|>' has <\|im_end\|> in it"),
        (["--prompt=a", "--num=2"], r"--num belongs to --mode=sample and"),
        (["--prompt=a", "--max_new_tokens=0"], "--max_new_tokens=0: expected a whole number"),
        (["--prompt=a", "--end_tokens=a"], "--end_tokens='a': expected a sequence of tokens"),
        (["--prompt=a", "--beams=2"], "nothing with --beams"),
        (["--prompt=a", "--tempperature=2"], "no such condition or sampling option. Nearest: temp"),
        (["--prompt=a", "--system=b", "--system=c"], r"--system=\['b', 'c'\]: expected one text"),
        (["--prompt=" + "long " * 900], r"a prompt of \d+ tokens: expected at most 3585"),
    ],
)
def test_what_cannot_be_is_one_error(run, arguments, message, capsys):
    assert main([run, "--mode=chat", *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_run_in_python_answers_as_the_command_does(run):
    loaded = genjax.load(run.removeprefix("--workdir="))
    assert loaded.chat("hello", temperature=0) == "AB"
    said = [("user", "hello"), ("assistant", "AB"), ("user", "again")]
    messages = [{"role": role, "content": text} for role, text in said]
    assert loaded.chat(messages, temperature=0) == "D"
    system = {"role": "system", "content": "Be kind."}
    assert loaded.chat([system, messages[0]], temperature=0) == "C"
    for given, options, message in (
        ([], {}, "the last message=None: expected one of the role 'user'"),
        (messages[:2], {}, "the last message='assistant': expected one of the role 'user'"),
        ([{"role": "robot", "content": "a"}], {}, "messages=.*with one of the roles system, user"),
        ([{"role": "user", "content": 3}], {}, 'messages=.*expected {"role": ..., "content": a t'),
        ("a", {"prompt": "b"}, r"conditions=\['prompt'\]: expected none but the messages"),
        ("a", {"max_new_tokens": 0}, "--max_new_tokens=0: expected a whole number"),
        ("a", {"tempperature": 2}, "Nearest: temperature"),
        ("<|im_end|>", {}, r"has <\|im_end\|> in it"),
    ):
        with pytest.raises(ConfigError, match=message):
            loaded.chat(given, **options)


def test_a_run_without_a_template_does_not_chat(tmp_path, capsys):
    run = imported(tmp_path, "")
    assert main([run, "--mode=chat", "--prompt=a"]) == 1
    assert "its tokenizer has no chat template" in capsys.readouterr().err


def test_in_a_terminal_ctrl_c_ends_an_answer_and_ctrl_d_the_chat(run):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "genjax.main",
            run,
            "--mode=chat",
            "--temperature=0",
            "--max_new_tokens=2500",
        ],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "dumb"},
        start_new_session=True,
    )
    seen = b""

    def until(end):
        """What is printed until it has `end` in it."""
        nonlocal seen
        start, limit = len(seen), time.monotonic() + 120
        while end not in seen[start:]:
            assert time.monotonic() < limit, seen
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 1000)
        return seen[start:].decode()

    try:
        until(b"> ")
        os.write(ours, b"hello\n")
        assert "AB\r\n\r\n> " in until(b"\n> ")
        os.write(ours, b"<|im_end|>\n")  # an error is said, and the chat goes on
        until(b"\n> ")
        os.write(ours, b"again\n")
        assert "D\r\n\r\n> " in until(b"\n> ")
        os.write(ours, b"more\n")
        until(ENDLESS.encode() * 3)
        process.send_signal(signal.SIGINT)
        until(b"\n> ")
        os.write(ours, b"\x04")
        assert process.wait(60) == 0, process.stderr.read()
        said = process.stderr.read().decode()
        assert "Ctrl-D the chat" in said
        assert said.count("error: ") == 1
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        os.close(ours)
        os.close(theirs)
