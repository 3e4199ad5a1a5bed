"""A run killed anywhere and resumed is the run that was not."""

import fcntl
import random
import signal
import time

import chex
import jax
import numpy as np
import pytest
from command_line import (
    DDPM,
    FAST,
    ROOT,
    Cli,
    reported_digest,
    steps_logged,
    timeless_metrics,
    wait_for_step,
)

from genjax.training import snapshots
from genjax.training.assemble import assemble
from genjax.training.checkpoint import Checkpoints
from genjax.training.digests import digest, digests
from genjax.training.workdir import read_config, read_spec

LONG = ["--config.duration=40_steps", "--config.evals.every=20_steps"]
AVERAGES = ["--config.ema.power=(0.05,0.1)", "--config.ema.snapshots=10_steps"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    Cli(folder).train(folder / "run", *LONG, *AVERAGES)
    return folder / "run"


def start(cli, workdir, *arguments, **options):
    return cli.start(
        *(f"--config={DDPM}:tiny", *FAST, *LONG, f"--workdir={workdir}", *arguments), **options
    )


def test_killed_at_a_random_step_and_resumed_is_bitwise_the_same(cli, tmp_path, uninterrupted):
    """It saves after every step, so that it dies in the middle of a save."""
    step = random.randrange(5, 38)
    print(f"killing at step {step}")
    process = start(cli, tmp_path / "run", "--config.checkpoint.every=1_steps", *AVERAGES)
    wait_for_step(process, tmp_path / "run", step)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, err = cli.train(tmp_path / "run", *LONG, *AVERAGES)
    assert "resuming at step" in err
    assert reported_digest(tmp_path / "run") == reported_digest(uninterrupted)
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(uninterrupted)
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert all(name.isdigit() for name in names), names  # nothing torn is left
    run = assemble(read_config(uninterrupted), devices=jax.devices()[:1])
    kept = snapshots_of(tmp_path / "run", run)
    assert list(kept) == [10, 20, 30, 40]
    chex.assert_trees_all_equal(kept, snapshots_of(uninterrupted, run))


def test_stopped_between_dispatches_and_resumed_is_bitwise_the_same(cli, tmp_path):
    """Eight steps a dispatch, an evaluation in the middle of a group, and a stop inside a window of
    the log, whose averages go on.
    """
    several = ["--config.steps_per_dispatch=8", "--config.log.every=40_steps"]
    several += ["--config.duration=200_steps", "--config.evals.every=100_steps"]
    cli.train(tmp_path / "whole", *several)
    process = start(cli, tmp_path / "run", *several, "--config.checkpoint.minutes=0")
    wait_for_step(process, tmp_path / "run", 40)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    stopped = Checkpoints(tmp_path / "run").latest()
    assert f"stopped by signal 15 (SIGTERM) at step {stopped}" in err
    assert 40 <= stopped < 200
    assert stopped % 8 == 0 or 96 < stopped < 104
    if stopped % 40:
        assert Checkpoints(tmp_path / "run").window(stopped)["sums"]
    cli.train(tmp_path / "run", *several)
    assert reported_digest(tmp_path / "run") == reported_digest(tmp_path / "whole")
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(tmp_path / "whole")
    assert steps_logged(tmp_path / "run") == [40, 80, 120, 160, 200]


# Two batches a step, so that the loader goes on in the middle of an epoch.
GAME = [
    "--config.gan.critic_steps=2",
    "--config.batch_size=16",
    "--config.evals.judges=",
    "--config.model.generator.channels=4",
    "--config.model.discriminator.channels=4",
]


def test_a_game_stopped_and_resumed_is_bitwise_the_same(cli, tmp_path):
    arguments = [f"--config={ROOT / 'configs' / 'dcgan.py'}:tiny", *GAME]
    arguments += [
        "--config.duration=60_steps",
        "--config.evals.every=30_steps",
        "--config.schedule.warmup=5_steps",
    ]
    arguments += ["--config.log.every=1_steps"]
    cli.run(*arguments, f"--workdir={tmp_path / 'whole'}")
    process = cli.start(*arguments, f"--workdir={tmp_path / 'run'}")
    wait_for_step(process, tmp_path / "run", 20)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert 20 <= Checkpoints(tmp_path / "run").latest() < 60
    cli.run(*arguments, f"--workdir={tmp_path / 'run'}")
    assert reported_digest(tmp_path / "run") == reported_digest(tmp_path / "whole")
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(tmp_path / "whole")
    whole, run = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "samples").iterdir()}
        for name in ("whole", "run")
    )
    assert run == whole
    assert whole


def test_a_signal_in_an_evaluation_is_answered_at_once_and_ends_the_run_behind_it(cli, tmp_path):
    slow = ("--config.diffusion.num_timesteps=200", "--config.diffusion.eval_timesteps=0")
    flags = (f"--config={DDPM}:tiny", *FAST, *slow, "--config.evals.limit=0")
    process = cli.start(*flags, f"--workdir={tmp_path / 'run'}")
    lines = iter(process.stderr.readline, "")
    assert any("step 6/12, evaluating" in line for line in lines)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    assert any("stopping after this evaluation, with a checkpoint" in line for line in lines)
    answered = time.monotonic() - start
    assert any("evaluation at step 6: " in line for line in lines)
    assert answered < 0.5 * (time.monotonic() - start)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert Checkpoints(tmp_path / "run").latest() == 6


def pair(cli, *arguments, workdir):
    """Two processes of one run over gloo, with one device each."""
    port = random.randrange(20000, 60000)
    return [
        cli.start(
            *arguments,
            f"--workdir={workdir}",
            environment={
                "GENJAX_COORDINATOR": f"127.0.0.1:{port}",
                "GENJAX_PROCESS_COUNT": "2",
                "GENJAX_PROCESS_INDEX": str(index),
            },
        )
        for index in range(2)
    ]


def snapshots_of(workdir, run):
    """Step -> what is kept in ema/."""
    kept, like = Checkpoints(workdir, name=snapshots.FOLDER), snapshots.of(run.config, run.state)
    return {step: kept.restore(like, step) for step in kept.steps()}


SGD = ["--config.optimizer.name=sgd", "--config.optimizer.momentum=0.0"]


TEXT = [f"--config={ROOT / 'configs' / 'llama.py'}:tiny", "--config.batch_size=8"]
TEXT += ["--config.dataset.text.documents=packed", "--config.model.lm.width=64"]
TEXT += ["--config.evals.every=6_steps", "--config.log.every=1_steps", "--config.schedule.warmup="]
TEXT += ["--config.optimizer.learning_rate=0.1"]
TEXT += ["--config.ema.power=(0.05,0.1)", "--config.ema.snapshots=2_steps"]


def test_two_processes_equal_one(cli, tmp_path):
    """Against one process with one device; plain SGD, since Adam amplifies gradients of zero."""
    arguments = [*TEXT, *SGD, "--config.evals.samples=0", "--config.duration=6_steps"]
    layout = ["--config.mesh.data=1", "--config.mesh.fsdp=2"]
    for process in pair(cli, *arguments, *layout, workdir=tmp_path / "two"):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    cli.run(*arguments, f"--workdir={tmp_path / 'one'}")
    config, spec = read_config(tmp_path / "one"), read_spec(tmp_path / "one")
    run = assemble(config, spec, devices=jax.devices()[:1])
    one, two = (Checkpoints(tmp_path / name).restore(run.state) for name in ("one", "two"))
    moved = 0.0
    initial = run.init()
    for a, b, c in zip(*(jax.tree.leaves(s.params) for s in (one, two, initial)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        moved = max(moved, float(np.abs(np.asarray(a) - np.asarray(c)).max()))
    assert moved > 1e-3
    kept = [snapshots_of(tmp_path / name, run) for name in ("one", "two")]
    assert sorted(kept[0]) == [2, 4, 6]
    chex.assert_trees_all_close(*kept, rtol=1e-5, atol=1e-6)
    assert reported_digest(tmp_path / "two") == digest(digests(two))  # of arrays that both share
    for a, b in zip(
        timeless_metrics(tmp_path / "one"), timeless_metrics(tmp_path / "two"), strict=True
    ):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_an_error_on_the_first_process_does_not_leave_the_other_waiting(cli, tmp_path):
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        both = pair(cli, f"--config={DDPM}:tiny", *FAST, workdir=tmp_path / "run")
        _, err = both[0].communicate(timeout=120)
        assert both[0].returncode == 1
        assert "is in use by another run" in err
        both[1].communicate(timeout=120)
        assert both[1].returncode != 0
