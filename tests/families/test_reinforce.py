"""A policy that is trained on what it makes itself, as a family that genjax knows nothing of."""

import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from e2e.command_line import Cli, metrics, reported_digest, wait_for_step
from families import reinforce, reinforce_config

from genjax.data import catalogue
from genjax.modalities.label import num_classes
from genjax.training.assemble import assemble
from genjax.training.checkpoint import Checkpoints
from genjax.training.workdir import read_config, read_spec

HERE = Path(__file__).parent
PATH = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
CONFIG = f"--config={HERE / 'reinforce_config.py'}"


def optimum(prompts, o):
    """p*(x) ~ exp(r / beta) as the next token's probabilities, by sums over all answers."""
    weights = np.exp(reinforce.rewards(prompts, o) / o.beta)
    weights = weights.reshape(prompts, *[o.tokens] * o.length)
    found = []
    for t in range(o.length):
        left = weights.sum(tuple(range(2 + t, 1 + o.length)))
        found.append((left / left.sum(-1, keepdims=True)).reshape(prompts, -1, o.tokens))
    return found


def test_the_expected_gradient_is_that_of_the_objective():
    """Of many answers of one policy, against the gradient of J by enumeration."""
    o = reinforce.Options(answers=20000)
    values = jnp.asarray(reinforce.rewards(1, o))
    rng = np.random.default_rng(0)
    table = {f"logits_{t}": jnp.asarray(rng.normal(size=(1, 3**t, 3))) for t in range(2)}
    answers = jnp.asarray(reinforce.every_answer(o))

    def objective(table):
        found = reinforce.log_p(o, table, jnp.zeros(len(answers), jnp.int32), answers)
        return (jnp.exp(found) * (values[0] - o.beta * found)).sum()

    batch = {"label": jnp.zeros(1, jnp.int32)}
    made = reinforce.rollout(o, values, {"policy": table}, {}, batch, jax.random.key(0), 0)
    slope = jax.grad(lambda t: -reinforce.loss(o, {"policy": t}, {}, made, None, 0)[0])(table)
    for name, expected in jax.grad(objective)(table).items():
        np.testing.assert_allclose(slope[name], expected, atol=0.02)


def test_it_reaches_its_optimum_and_a_killed_run_is_bitwise_the_same(tmp_path):
    cli = Cli(tmp_path)
    cli.run(CONFIG, f"--workdir={tmp_path / 'whole'}", environment=PATH)
    every = "--config.checkpoint.every=1_steps"
    process = cli.start(CONFIG, every, f"--workdir={tmp_path / 'run'}", environment=PATH)
    wait_for_step(process, tmp_path / "run", 7)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < Checkpoints(tmp_path / "run").latest() < 400
    cli.run(CONFIG, f"--workdir={tmp_path / 'run'}", environment=PATH)
    assert reported_digest(tmp_path / "run") == reported_digest(tmp_path / "whole")

    config, spec = read_config(tmp_path / "whole"), read_spec(tmp_path / "whole")
    run = assemble(config, spec)
    policy = Checkpoints(tmp_path / "whole").restore(run.state).params["policy"]
    expected = optimum(num_classes(spec), reinforce.Options())
    for t, probabilities in enumerate(expected):
        found = jax.nn.softmax(policy[f"logits_{t}"])
        np.testing.assert_allclose(found, probabilities, atol=1e-4)
    spread = max(float(np.abs(p - 1 / 3).max()) for p in expected)
    assert spread > 0.4  # where it began is far from there
    last = metrics(tmp_path / "whole")[-1]
    assert 0 <= last["eval/kl"] + 1e-7 < 1e-6


def test_the_second_pass_is_another_update_of_the_same_answers():
    config = reinforce_config.get_config()
    ratios = {}
    for passes in (1, 2):
        config.reinforce.passes = passes
        run = assemble(config, catalogue.load(config.dataset).spec)
        batch = {"label": jnp.arange(32) % 10, "image": jnp.zeros((32, 8, 8, 1), jnp.uint8)}
        with jax.set_mesh(run.mesh):
            _, output = run.step(run.init(), jax.device_put(batch, run.batch["label"].sharding))
        ratios[passes] = output.metrics["ratio"].tolist()
    assert ratios[1] == [32 * 8 / 256, 1.0]  # p = p_old at first
    total, weight = ratios[2]
    assert weight == 2.0
    assert total != pytest.approx(2.0, abs=1e-4)
