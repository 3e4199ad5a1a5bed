"""A teacher that is the average of its student, as a family that genjax knows nothing of."""

import chex
import jax
import numpy as np
import pytest
from families import mean_teacher

from genjax import config as configs
from genjax.data import catalogue, loader
from genjax.parallel import rules
from genjax.parallel.mesh import global_batch
from genjax.training.assemble import assemble
from genjax.training.checkpoint import Checkpoints
from genjax.training.digests import as_data, digests

STEPS = 30


@pytest.fixture(scope="module")
def dataset():
    given = {"dataset.name": "digits", "dataset.test": "10_percent"}
    return catalogue.load(configs.override(configs.base(), given).dataset)


def made(dataset):
    config = configs.base()
    config.method, config.batch_size = "families.mean_teacher", 32
    config.optimizer.learning_rate, config.ema.decay = 0.01, (0.9,)
    config.ema.warmup = False
    config.mesh.fsdp = 4
    return assemble(config, dataset.spec)


def steps(run, state, dataset, count):
    """The states after each of `count` more steps, on the host, and the last one."""
    train, first = dataset.splits["train"], int(state.step)
    batches = loader.train_batches(train, seed=0, batch_size=run.examples_per_step)
    seen = []
    with jax.set_mesh(run.mesh):
        for i in range(first, first + count):
            state, output = run.step(state, global_batch(batches[i], run.mesh))
            seen.append(jax.device_get((as_data(state), output.metrics)))
    return seen, state


def test_the_teacher_is_the_average_of_the_students_trajectory(dataset):
    run = made(dataset)
    begin = jax.device_get(run.init().params["student"])
    seen, _ = steps(run, run.init(), dataset, STEPS)
    students = [begin, *(state.params["student"] for state, _ in seen)]
    d = mean_teacher.DECAY
    weights = [d**STEPS, *((1 - d) * d ** (STEPS - i) for i in range(1, STEPS + 1))]
    expected = jax.tree.map(
        lambda *leaves: sum(
            w * leaf.astype(np.float64) for w, leaf in zip(weights, leaves, strict=True)
        ),
        *students,
    )
    teacher = seen[-1][0].params["teacher"]
    chex.assert_trees_all_close(teacher, expected, rtol=1e-4, atol=1e-6)
    # The same sum as the average of evaluations of the same decay.
    average = seen[-1][0].ema["0.9"]
    assert set(average) == {"student"}
    chex.assert_trees_all_close(teacher, average["student"], rtol=1e-4, atol=1e-6)
    moved = np.abs(students[-1]["kernel"] - begin["kernel"]).max()
    assert moved > 0.1
    assert seen[-1][1]["distance"][0] > 0  # it is no copy


def test_the_guess_is_the_teachers(dataset):
    """And of the noisy picture that is its own."""
    run = made(dataset)
    state = jax.device_get(as_data(run.init()))
    batch = {"image": np.zeros((8, 8, 8, 1), np.uint8), "label": np.zeros(8, np.int32)}
    teacher = jax.tree.map(lambda leaf: 2.0 * leaf, state.params["teacher"])
    key = jax.random.key(1)
    guesses = [
        mean_teacher.teach({"student": None, "teacher": t}, {}, batch, key, 0)["guess"]
        for t in (state.params["teacher"], teacher)
    ]
    x = mean_teacher.NOISE * jax.random.normal(key, (2, 8, 64))[0]
    expected = jax.nn.softmax(x @ teacher["kernel"] + teacher["bias"])
    np.testing.assert_allclose(guesses[1], expected, rtol=1e-5)
    assert np.abs(guesses[0] - guesses[1]).max() > 1e-3


def test_it_is_saved_and_goes_on_bitwise(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "MIN_SHARDED_SIZE", 64)
    run = made(dataset)
    seen, whole = steps(run, run.init(), dataset, 12)
    _, state = steps(run, run.init(), dataset, 5)
    checkpoints = Checkpoints(tmp_path, run.config)
    checkpoints.save(state, 5, {})
    checkpoints.wait()
    checkpoints.close()
    del state
    restored = Checkpoints(tmp_path).restore(run.state)
    chex.assert_trees_all_equal(jax.device_get(as_data(restored)), seen[4][0])
    shardings = [restored.params[name]["kernel"].sharding for name in ("student", "teacher")]
    assert shardings[0] == shardings[1]
    assert not shardings[0].is_fully_replicated
    _, resumed = steps(run, restored, dataset, 7)
    assert digests(resumed) == digests(whole)
