"""Several steps a dispatch: how they are grouped, and that they are the same steps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.method import Aux, DataSpec, Field, Method, Phase
from genjax.parallel.mesh import global_batch, global_batches
from genjax.parallel.rules import fsdp
from genjax.training.assemble import assemble
from genjax.training.averages import Averages, Diverged
from genjax.training.loop import dispatches
from genjax.training.step import StepOutput


@pytest.mark.parametrize(
    ("first", "total", "count", "every"),
    [(0, 40, 8, (0, 0)), (0, 37, 8, (10,)), (3, 50, 5, (7, 11)), (12, 13, 4, ()), (0, 9, 1, (2,))],
)
def test_groups_cover_every_step_once_and_end_where_something_is_due(first, total, count, every):
    groups = list(dispatches(first, total, count, every))
    assert [step for group in groups for step in group] == list(range(first + 1, total + 1))
    for group in groups:
        assert len(group) in (1, count)
        assert not any(e and s % e == 0 for s in group[:-1] for e in every)


def test_cadences_that_divide_leave_whole_groups_only():
    assert [len(g) for g in dispatches(0, 100, 10, (20, 50, 0))] == [10] * 10


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_resumed_run_is_grouped_as_the_uninterrupted_one(stop):
    """It stops where a group ends, which is where checkpoints are written."""
    groups = list(dispatches(0, 61, 6, (9, 20)))
    assert list(dispatches(groups[stop][-1], 61, 6, (9, 20))) == groups[stop + 1 :]


def descend(params, mutable, batch, key, step):
    noise = jax.random.normal(key, params["net"]["kernel"].shape)
    error = batch["image"] @ params["net"]["kernel"] - 1 + 0.01 * noise.sum()
    return jnp.square(error).mean(), Aux({"error": jnp.abs(error).mean()}, {}, len(error))


def make(count):
    config = configs.base()
    config.batch_size, config.duration, config.steps_per_dispatch = 8, "9_steps", count
    config.evals.batch_size = 8
    image = Field("real", (4,), np.dtype(np.float32))
    method = Method(
        init=lambda key, batch: ({"net": {"kernel": jax.random.normal(key, (4,))}}, {"net": {}}),
        phases=(Phase("net", descend),),
        evaluate=None,
        sample=None,
        rules=((".*", fsdp),),
    )
    spec = DataSpec("toy", {"image": image}, "image", {"train": 72})
    return assemble(config, spec, method)


def test_three_steps_in_one_dispatch_are_three_steps():
    run = make(3)
    assert len(jax.devices()) == 8
    rng = np.random.default_rng(0)
    batches = [{"image": rng.normal(size=(8, 4)).astype(np.float32)} for _ in range(3)]
    with jax.set_mesh(run.mesh):
        one, outputs = run.init(), []
        for batch in batches:
            one, output = run.step(one, global_batch(batch, run.mesh))
            outputs.append(output)
        three, output = run.steps(run.init(), global_batches(batches, run.mesh))
    assert int(three.step) == 3
    chex.assert_trees_all_close(one.params, three.params, rtol=1e-6)
    chex.assert_trees_all_close(one.opt_state, three.opt_state, rtol=1e-5)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *outputs)
    chex.assert_trees_all_close(stacked, output, rtol=1e-5)
    sums = [Averages(3), Averages(3)]
    for at, each in enumerate(outputs, start=1):
        sums[0].add(at, each)
    sums[1].add(3, output)
    taken = [s.take() for s in sums]
    assert taken[0] == pytest.approx(taken[1], rel=1e-5)
    assert taken[0]["train/error"] > 0


def test_steps_that_diverge_inside_a_dispatch_are_counted_one_by_one():
    averages = Averages(3)
    metrics = {"loss": np.array([[1.0, 1.0], [np.nan, 1.0], [np.nan, 1.0], [4.0, 1.0]])}
    averages.add(4, StepOutput(metrics, np.array([0, 1, 1, 0])))
    taken = averages.take()
    assert taken == {"train/loss": 2.5, "train/skipped": 2.0}
    metrics["reward"] = np.array([[1.0, 1.0], [1.0, 1.0], [np.nan, 1.0], [4.0, 1.0]])
    words = r"3 steps in a row until step 7 .* Not finite in the last one: loss, reward\."
    with pytest.raises(Diverged, match=words):
        averages.add(8, StepOutput(metrics, np.array([1, 1, 1, 0])))


def test_no_step_at_all_is_refused():
    overrides = {"steps_per_dispatch": 0}
    with pytest.raises(ConfigError, match="steps_per_dispatch=0: expected at least 1"):
        configs.validate(configs.load("configs/dcgan.py:tiny", overrides))
