"""The progress bar, its log lines and the log file, on a terminal and without one."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import sys
import termios

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.training import progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


def test_progress_rate_leaves_pauses_out_and_tells_the_time_left(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with progress.terminal_logging(), progress.file_logging(tmp_path):
        bar = progress.Progress(total=1000, start=100, batch_size=32)
        clock.now += 10
        with bar.paused():
            clock.now += 500
        assert bar.log(200, 0.123456) == pytest.approx(320)
        clock.now += 50
        assert bar.log(300, jnp.float32(0.1)) == pytest.approx(64)
        assert np.isnan(bar.log(300, 0.1))
        bar.close()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0].endswith("INFO step 200/1000, loss 0.1235, 320 examples/s, ETA 1m20s")
    assert lines[1].endswith("INFO step 300/1000, loss 0.1, 64 examples/s, ETA 5m50s")
    shown = capsys.readouterr().err.splitlines()  # no terminal here: the same, without times
    assert shown == [line.split(" INFO ")[1] for line in lines]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.6, "1m00s"), (3725, "1h02m"), (90000, "1d01h"), (float("nan"), "?")],
)
def test_time_left_reads_as_people_say_it(seconds, text):
    assert progress._duration(seconds) == text


def test_a_terminal_shows_a_bar_and_the_log_file_plain_lines(tmp_path, monkeypatch):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.terminal_logging(), progress.file_logging(tmp_path):
            bar = progress.Progress(total=10, start=4, batch_size=2)
            for step in range(5, 11):
                bar.step(step)
            bar.log(10, 0.75)
            logging.getLogger("genjax").warning("careful")
            bar.close()
        monkeypatch.undo()
        terminal.write("\nthe end\n")
        terminal.flush()
        shown = ""
        while not shown.endswith("the end\r\n"):  # the kernel hands over what it has so far
            shown += os.read(master, 100_000).decode()
    os.close(master)
    assert " 40%|" in shown
    assert re.search(r"100%\|█+\| step 10/10, loss 0\.75, .* examples/s, ETA 0s", shown)
    assert re.search(r"\rcareful\r\n", shown)  # on a line of its own, the bar cleared
    assert not re.search(r"[\r\n]step 10/10", shown)  # on the bar, not as a line
    log = (tmp_path / "log.txt").read_text()
    assert "INFO step 10/10, loss 0.75" in log
    assert "WARNING careful" in log
    assert "%|" not in log


def test_what_is_done_meanwhile_is_said_and_lines_of_a_training_within_are_marked(tmp_path, capsys):
    with progress.terminal_logging(), progress.file_logging(tmp_path):
        bar = progress.Progress(total=10, start=0, batch_size=1)
        bar.step(3)
        assert bar.doing == "training"
        with bar.paused("evaluating"):
            assert bar.doing == "evaluating"
            with progress.marked("judge"):
                logging.getLogger("genjax").info("loss %.1f of 100%%", 0.5)
        assert bar.doing == "training"
        logging.getLogger("genjax").info("after")
        bar.close()
    lines = ["step 3/10, evaluating", "judge: loss 0.5 of 100%", "after"]
    assert capsys.readouterr().err.splitlines() == lines
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" INFO ")[1] for line in log] == lines


def test_logging_is_as_before_afterwards_and_the_file_is_appended_to(tmp_path):
    logger = logging.getLogger("genjax")
    before = logger.level, logger.propagate, list(logger.handlers)
    for word in ("first", "second"):
        try:
            with progress.terminal_logging(), progress.file_logging(tmp_path):
                logger.info(word)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            logger.info("outside")
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["first", "second"]
