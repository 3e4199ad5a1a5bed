"""Work that takes a while says how far it is, and a signal is answered in words at once."""

import fcntl
import io
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

from genjax import bars


class Answer(io.BytesIO):
    """An answer that says how long it is, as those of http.client do."""

    length = 2500


def test_a_signal_is_answered_while_the_main_thread_is_in_a_compiled_program():
    program = "\n".join(
        [
            "import signal",
            "from genjax.bars import answered",
            "signal.signal(signal.SIGINT, lambda *_: None)",
            "with answered(lambda: 'stopping after this evaluation'):",
            "    print('ready', flush=True)",
            "    import jax, jax.numpy as jnp",
            "    body = lambda i, x: x @ x * 1e-3",
            "    long = jax.jit(lambda x: jax.lax.fori_loop(0, 3 * 10**5, body, x))",
            "    x = jnp.ones((64, 64))",
            "    compiled = long.lower(x).compile()",
            "    print('computing', flush=True)",
            "    compiled(x).block_until_ready()",
            "    print('done', flush=True)",
        ]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout.readline() == "ready\n"
    assert process.stdout.readline() == "computing\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline() == "stopping after this evaluation\n"
    answered = time.monotonic() - start
    assert process.stdout.readline() == "done\n"
    assert answered < 0.5 * (time.monotonic() - start)  # long before the program ended
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_the_handlers_and_the_wakeup_are_as_before_afterwards():
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with bars.answered(lambda: "no"):
        pass
    assert signal.set_wakeup_fd(before) == before


def test_without_a_terminal_there_are_lines_and_not_too_many(monkeypatch, caplog):
    monkeypatch.setattr(bars, "EVERY", 0.0)
    with (
        caplog.at_level(logging.INFO, "genjax"),
        bars.following("sampling", 3) as advance,
    ):
        for _ in range(3):
            advance(1)
    assert caplog.messages == ["sampling: 1 of 3", "sampling: 2 of 3"]


def test_a_download_says_what_comes_and_how_much_of_it(monkeypatch, caplog):
    monkeypatch.setattr(bars, "PIECE", 1000)
    monkeypatch.setattr(bars, "EVERY", 0.0)
    answer = io.BytesIO(bytes(2500))
    with caplog.at_level(logging.INFO, "genjax"):
        assert bars.read_all(answer, "downloading a.pth") == bytes(2500)
        answer = Answer(bytes(2500))
        assert bars.read_all(answer, "downloading b.pth") == bytes(2500)
    assert caplog.messages[0] == "downloading a.pth"
    assert caplog.messages[-3:] == [
        "downloading b.pth, 0.0 MB",
        "downloading b.pth, kB: 1 of 3",
        "downloading b.pth, kB: 2 of 3",
    ]


def test_a_terminal_shows_a_bar_whose_clock_goes_on(monkeypatch):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(bars, "TICK", 0.2)
        with bars.following("sampling", 4) as advance:
            time.sleep(1.3)  # nothing is done, as while a program is compiled
            advance(2)
        monkeypatch.undo()
        terminal.write("\nthe end\n")
        terminal.flush()
        shown = ""
        while not shown.endswith("the end\r\n"):
            shown += os.read(master, 100_000).decode()
    os.close(master)
    assert re.search(r"sampling 0 of 4 \|[^\r]*\| 00:01", shown)
