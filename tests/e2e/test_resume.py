"""A run killed anywhere and resumed is the run that was not."""

import json
import random
import signal

import jax
import numpy as np
import pytest
from conftest import DDPM, FAST, metrics, reported_digest, steps_logged, wait_for_step

from genjax.training.assemble import assemble
from genjax.training.checkpoint import Checkpoints
from genjax.training.workdir import read_config

LONG = ["--config.duration=40_steps", "--config.evals.every=20_steps"]


def train_metrics(workdir):
    """All that is logged but the clocks."""
    clocks = ("time", "train/examples_per_second", "eval/seconds")
    return [{k: v for k, v in line.items() if k not in clocks} for line in metrics(workdir)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    from conftest import Cli

    folder = tmp_path_factory.mktemp("uninterrupted")
    Cli(folder).train(folder / "run", *LONG)
    return folder / "run"


def start(cli, workdir, *arguments, **options):
    return cli.start(
        *(f"--config={DDPM}:tiny", *FAST, *LONG, f"--workdir={workdir}", *arguments), **options
    )


def test_killed_at_a_random_step_and_resumed_is_bitwise_the_same(cli, tmp_path, uninterrupted):
    step = random.randrange(5, 38)
    print(f"killing at step {step}")
    process = start(cli, tmp_path / "run", "--config.checkpoint.every=4_steps")
    wait_for_step(process, tmp_path / "run", step)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, err = cli.train(tmp_path / "run", *LONG)
    assert "resuming at step" in err
    assert reported_digest(tmp_path / "run") == reported_digest(uninterrupted)
    assert train_metrics(tmp_path / "run") == train_metrics(uninterrupted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_so_by_the_exit_code(cli, tmp_path, uninterrupted, number, code):
    process = start(cli, tmp_path / "run", "--config.checkpoint.minutes=0")
    wait_for_step(process, tmp_path / "run", 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    saved = Checkpoints(tmp_path / "run").latest()
    assert 3 <= saved < 40
    assert f"stopped by signal {int(number)} at step {saved}" in err
    cli.train(tmp_path / "run", *LONG)
    assert reported_digest(tmp_path / "run") == reported_digest(uninterrupted)
    assert steps_logged(tmp_path / "run") == list(range(1, 41))


def test_two_processes_equal_one(cli, tmp_path):
    """Two processes with one device each, over gloo, against one with two; plain SGD."""
    sgd = ["--config.optimizer.name=sgd", "--config.optimizer.momentum=0.0"]
    arguments = [f"--config={DDPM}:tiny", *FAST, *sgd]
    port = random.randrange(20000, 60000)
    environments = [
        {
            "GENJAX_COORDINATOR": f"127.0.0.1:{port}",
            "GENJAX_PROCESS_COUNT": "2",
            "GENJAX_PROCESS_INDEX": str(index),
        }
        for index in range(2)
    ]
    both = [
        cli.start(*arguments, f"--workdir={tmp_path / 'two'}", environment=environment)
        for environment in environments
    ]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    cli.run(*arguments, f"--workdir={tmp_path / 'one'}", devices=2)
    run = assemble(read_config(tmp_path / "one"), devices=jax.devices()[:1])
    one, two = (Checkpoints(tmp_path / name).restore(run.state) for name in ("one", "two"))
    moved = 0.0
    initial = run.init()
    for a, b, c in zip(*(jax.tree.leaves(s.params) for s in (one, two, initial)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        moved = max(moved, float(np.abs(np.asarray(a) - np.asarray(c)).max()))
    assert moved > 1e-3
    for a, b in zip(train_metrics(tmp_path / "one"), train_metrics(tmp_path / "two"), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_damaged_tail_of_the_metrics_is_dropped_on_resume(cli, tmp_path):
    cli.train(tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    beyond = json.dumps({"step": 13, "time": 0.0, "train/loss": 5.0})
    path.write_text(path.read_text() + beyond + '\n{"step": 14, "ti')
    cli.train(tmp_path / "run", "--config.duration=13_steps")
    assert steps_logged(tmp_path / "run") == list(range(1, 14))
    last = next(m for m in metrics(tmp_path / "run") if m["step"] == 13)
    assert last["train/loss"] != 5.0
