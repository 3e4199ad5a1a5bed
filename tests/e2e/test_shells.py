"""What shells, terminals, schedulers and users do to a command."""

import fcntl
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

from command_line import DDPM, FAST, ONE_DEVICE, wait_for_step

from genjax.training.checkpoint import Checkpoints

TINY = [f"--config={DDPM}:tiny", *FAST]
ENDLESS = [
    *(*TINY, "--config.duration=90000_steps", "--config.schedule.warmup=2_steps"),
    *("--config.evals.every=", "--config.checkpoint.minutes=0"),
]
CONFIG = [f"--config={DDPM}:tiny", "--mode=config"]


def test_a_terminal_that_is_closed_saves(cli, tmp_path):
    """A real one: the process gets SIGHUP, and can write to it no more."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    process = subprocess.Popen(
        [sys.executable, "-m", "genjax.main", *ENDLESS, f"--workdir={tmp_path / 'run'}"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={**os.environ, "XLA_FLAGS": ONE_DEVICE},
    )
    os.close(theirs)
    metrics = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 180
    while not (metrics.exists() and '"step": 3,' in metrics.read_text()):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
        try:
            os.read(ours, 2**16)
        except BlockingIOError:
            continue
    os.close(ours)
    assert process.wait(timeout=120) == 128 + signal.SIGHUP
    assert Checkpoints(tmp_path / "run").latest() >= 3
    assert "(SIGHUP)" in (tmp_path / "run" / "log.txt").read_text()


def test_what_was_ignored_is_ignored(cli, tmp_path):
    """As under nohup."""
    process = cli.start(
        *(*ENDLESS, f"--workdir={tmp_path / 'run'}"),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for_step(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGHUP)
    wait_for_step(process, tmp_path / "run", 60)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err


def test_ctrl_c_during_the_imports_is_one_line(cli, tmp_path):
    process = cli.start(*TINY, f"--workdir={tmp_path / 'run'}")
    maps = Path(f"/proc/{process.pid}/maps")
    while "numpy" not in maps.read_text():  # the first of what takes long
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(err.splitlines()) == 1
    assert err.startswith("interrupted")
    assert not (tmp_path / "run").exists()


def test_a_terminal_that_is_not_utf_8(cli):
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    out, _ = cli.run(*CONFIG, "--config.dataset.path=中", environment=environment)
    assert "dataset.path = '\\u4e2d'" in out
    _, err = cli.run(*CONFIG, "--config.datasett=中", environment=environment, code=1)
    assert err.startswith("error: config.datasett")


def test_a_reader_that_leaves(cli):
    process = cli.start(*CONFIG)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) in (0, 128 + signal.SIGPIPE)
    assert "Traceback" not in err
    assert "Broken pipe" not in err


def test_devices_that_are_not_there(cli, tmp_path):
    for platform in ("cuda", "nonsense"):
        _, err = cli.run(
            *(*TINY, f"--workdir={tmp_path / 'run'}"),
            environment={"JAX_PLATFORMS": platform},
            code=1,
        )
        assert err.startswith(f"error: JAX finds no devices to run on (JAX_PLATFORMS={platform})")
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_paths_that_are_patterns_or_not_utf_8_are_refused_at_once(cli, tmp_path):
    for name in ("a[1]", "caf\udce9"):
        _, err = cli.run(*TINY, f"--workdir={tmp_path / name}", code=1)
        assert err.startswith("error: the path ")
        assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_one_line_and_the_one_before_it_goes_on(
    cli, tmp_path, finished_run
):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    files = (run / "checkpoints/12/state").rglob("d/*")
    max(files, key=lambda path: path.stat().st_size).write_bytes(b"")
    _, err = cli.train(run, "--config.duration=13_steps", code=1)
    assert len(err.splitlines()) < 8
    error = err[err.index("error: ") :]
    assert "checkpoints/12 cannot be read, it is damaged" in error
    assert "Step 6 before it is whole" in error
    assert "disk" not in error
    shutil.move(run / "checkpoints/12", tmp_path / "away")
    _, err = cli.train(run, "--config.duration=13_steps")
    assert "resuming at step 6" in err
