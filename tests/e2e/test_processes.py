"""Processes of one run that disagree, that lose each other, or that are started wrongly."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import DDPM, FAST, ONE_DEVICE, ROOT, wait_for_step

from genjax.config import ConfigError
from genjax.parallel import distributed

TINY = [f"--config={DDPM}:tiny", *FAST, "--config.evals.every=", "--config.checkpoint.minutes=0"]


def environment(port, index, count=2):
    return {
        "GENJAX_COORDINATOR": f"127.0.0.1:{port}",
        "GENJAX_PROCESS_COUNT": str(count),
        "GENJAX_PROCESS_INDEX": str(index),
    }


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(cli, workdir, *own):
    """Two processes, each with arguments of its own."""
    port = free_port()
    return [
        cli.start(
            *(*TINY, f"--workdir={workdir}", *arguments), environment=environment(port, index)
        )
        for index, arguments in enumerate(own)
    ]


def errors(processes):
    """What each says; all must end with an error."""
    found = []
    for process in processes:
        _, err = process.communicate(timeout=180)
        assert process.returncode == 1, err
        found.append(err[err.index("error: ") :])
    return found


def test_processes_of_other_configs_name_the_keys_before_the_first_step(cli, tmp_path):
    other = ["--config.seed=1", "--config.duration=13_steps", "--config.dataset.threads=2"]
    for message in errors(start(cli, tmp_path / "run", [], other)):
        assert "the processes of this run disagree" in message
        assert "config.seed: 0 on process 0, 1 on process 1" in message
        assert "config.duration: '12_steps' on process 0, '13_steps' on process 1" in message
        assert "threads" not in message
        assert len(message.splitlines()) < 8
    assert not (tmp_path / "run").exists()


def test_processes_with_other_data_say_so(cli, tmp_path):
    paths = []
    for index in range(2):
        rng = np.random.default_rng(0)
        arrays = {
            "image_train": rng.integers(0, 256, (40, 8, 8, 1), np.uint8),
            "image_validation": rng.integers(0, 256, (16, 8, 8, 1), np.uint8),
        }
        arrays["image_train"][7, 0, 0] += index
        paths.append(tmp_path / f"{index}.npz")
        np.savez(paths[-1], **arrays)
    own = [["--config.dataset.name=npz", f"--config.dataset.path={path}"] for path in paths]
    for message in errors(start(cli, tmp_path / "run", *own)):
        assert "the data (train)" in message
        assert "config." not in message


@pytest.mark.parametrize(
    ("lost", "number"), [(0, signal.SIGKILL), (1, signal.SIGSTOP)], ids=["killed", "cut off"]
)
def test_a_lost_process_ends_the_other_within_a_minute_with_its_name(cli, tmp_path, lost, number):
    """The programs of accelerators wait for a dead process as those of CPUs for a stopped one."""
    endless = [f"--config={ROOT / 'tests/e2e/ordered.py'}", "--config.duration=90000_steps"]
    port = free_port()
    both = [
        cli.start(*endless, f"--workdir={tmp_path / 'run'}", environment=environment(port, index))
        for index in range(2)
    ]
    wait_for_step(both[0], tmp_path / "run", 3)
    began = time.monotonic()
    both[lost].send_signal(number)
    _, err = both[1 - lost].communicate(timeout=180)
    both[lost].kill()
    assert time.monotonic() - began < 60
    assert both[1 - lost].returncode != 0
    # A thread of JAX may print what it sees of the connection before or after our own line.
    last = [line for line in err.splitlines() if line.startswith("error: ")][-1]
    assert f"process {lost}" in last
    assert "run the same command to resume" in last
    assert "Traceback" not in err
    both[lost].communicate(timeout=180)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"GENJAX_PROCESS_COUNT": "abc"}, "GENJAX_PROCESS_COUNT='abc': expected 1 or more"),
        ({"GENJAX_PROCESS_COUNT": "0"}, "GENJAX_PROCESS_COUNT='0'"),
        ({"GENJAX_PROCESS_INDEX": "2"}, "GENJAX_PROCESS_INDEX='2': expected 0 to 1"),
        ({"GENJAX_PROCESS_INDEX": "-1"}, "GENJAX_PROCESS_INDEX='-1'"),
        ({"GENJAX_PROCESS_INDEX": "²"}, "GENJAX_PROCESS_INDEX"),
        ({"GENJAX_PROCESS_COUNT": "9" * 5000}, "GENJAX_PROCESS_COUNT"),
        ({"GENJAX_PROCESS_INDEX": ""}, r"missing: \['GENJAX_PROCESS_INDEX'\]"),
        ({"GENJAX_COORDINATOR": "somewhere"}, "GENJAX_COORDINATOR='somewhere': expected HOST:PORT"),
        ({"GENJAX_COORDINATOR": "here:99999"}, "GENJAX_COORDINATOR"),
        ({"GENJAX_DISTRIBUTED": "yes"}, "GENJAX_DISTRIBUTED='yes'"),
    ],
)
def test_wrong_values_of_the_environment(monkeypatch, values, expected):
    for name, value in (environment(1, 0) | values).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=expected):
        distributed.initialize()


def test_without_a_cluster_auto_is_one_error(cli, tmp_path):
    _, err = cli.run(
        *(*TINY, f"--workdir={tmp_path / 'run'}"),
        environment={"GENJAX_DISTRIBUTED": "auto"},
        code=1,
    )
    assert err.startswith("error: GENJAX_DISTRIBUTED=auto: no cluster was found here")
    assert len(err.splitlines()) == 1


JOIN = """
import sys
import jax
from genjax.parallel import distributed
distributed.PATIENCE = 3
distributed.initialize()
print(jax._src.xla_bridge.CUDA_VISIBLE_DEVICES.value, jax.process_count())
"""


def join(**environment):
    """A process that joins, and prints the GPUs that it would take."""
    slurm = {
        "SLURM_JOB_ID": str(free_port() % 4096),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "5",
    }
    return subprocess.run(
        [sys.executable, "-c", JOIN],
        env=os.environ | {"XLA_FLAGS": ONE_DEVICE} | slurm | environment,
        capture_output=True,
        text=True,
    )


def test_a_process_of_slurm_takes_its_gpu_and_one_placed_by_hand_takes_all():
    assert join(GENJAX_DISTRIBUTED="auto").stdout == "5 1\n"
    assert join(**environment(free_port(), 0, 1)).stdout == "all 1\n"


def test_the_first_process_says_that_the_others_have_not_come():
    port = free_port()
    done = join(**environment(port, 0, 2))
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: process 0 of 2 ended")
    assert f"another process did not join it at 127.0.0.1:{port} within 3 s" in last


def test_a_process_without_a_coordinator_says_that_it_waits_and_then_gives_up(monkeypatch, caplog):
    monkeypatch.setattr(distributed, "PATIENCE", 0.5)
    monkeypatch.setattr(distributed, "RETRIES", 0.1)
    for name, value in environment(1, 1).items():
        monkeypatch.setenv(name, value)
    with (
        caplog.at_level("INFO", "genjax"),
        pytest.raises(ConfigError, match=r"no process 0 at 127\.0\.0\.1:1 after 0\.5 s"),
    ):
        distributed.initialize()
    assert "waiting for process 0 at 127.0.0.1:1" in caplog.text
