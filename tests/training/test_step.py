"""The generic step, held against games and sums whose results are known in closed form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax import config as configs
from genjax.method import Aux, Method, Phase
from genjax.train_state import TrainState
from genjax.training import optim
from genjax.training.accumulate import gradient
from genjax.training.step import by_branch, by_choice, make_step, prefixes, slices


def make(phases, params, *, learning_rate=0.1, accumulation=1, mutable=None, **optimizer):
    """(step function, state) of a game with plain gradient descent."""
    config = configs.base()
    config.accumulation = accumulation
    config.ema.decay = ()
    config.optimizer.update({"name": "sgd", "momentum": 0.0, "clip_norm": 0.0} | optimizer)
    method = Method(None, tuple(phases), None, None, ())
    schedule = optax.constant_schedule(learning_rate)
    optimizers = {p.trains: optim.build(config, p.trains, schedule) for p in phases}
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state={name: tx.init(params[name]) for name, tx in optimizers.items()},
        mutable=mutable or {},
        ema={},
        key=jax.random.key(0),
    )
    return make_step(config, method, optimizers), state


# The Dirac-GAN (Mescheder et al. 2018, section 2): data at 0, generator at theta, discriminator
# D(x) = psi x, f(t) = -log(1 + exp(-t)), so that f'(0) = 1/2.
def value(params):
    return -jax.nn.softplus(-params["discriminator"]["psi"] * params["generator"]["theta"])


def discriminator(params, mutable, batch, key, step):
    return -value(params), Aux({}, {})


def generator(params, mutable, batch, key, step):
    return value(params), Aux({}, {})


DIRAC = {"discriminator": {"psi": jnp.float32(0.0)}, "generator": {"theta": jnp.float32(0.0)}}


def jacobian(step, state, batch):
    """d(theta, psi after the step) / d(theta, psi), at the equilibrium (0, 0)."""

    def move(x):
        params = {"generator": {"theta": x[0]}, "discriminator": {"psi": x[1]}}
        after = step(state.replace(params=params), batch)[0].params
        return jnp.stack([after["generator"]["theta"], after["discriminator"]["psi"]])

    return np.asarray(jax.jacfwd(move)(jnp.zeros(2)), np.float64)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_simultaneous_dirac_gan_has_eigenvalues_1_pm_i_rate_over_2(rate):
    batch = {"x": jnp.zeros((1, 1))}
    rows = []
    # Each player moves from the same point: two games of one phase each.
    for phase, row in (
        (Phase("generator", generator), 0),
        (Phase("discriminator", discriminator), 1),
    ):
        step, state = make([phase], DIRAC, learning_rate=rate)
        rows.append(jacobian(step, state, batch)[row])
    eigenvalues = np.sort_complex(np.linalg.eigvals(np.stack(rows)))
    np.testing.assert_allclose(eigenvalues, [1 - 0.5j * rate, 1 + 0.5j * rate], atol=1e-6)


@pytest.mark.parametrize("repeat", [1, 5])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_alternating_dirac_gan_has_the_eigenvalues_of_theory(rate, repeat):
    """Mescheder et al. 2018, lemma 2.4: 1 - a^2/2 +- sqrt((1 - a^2/2)^2 - 1), a^2 = n h^2 f'^2."""
    phases = [Phase("discriminator", discriminator, repeat=repeat), Phase("generator", generator)]
    step, state = make(phases, DIRAC, learning_rate=rate)
    found = np.sort_complex(
        np.linalg.eigvals(jacobian(step, state, {"x": jnp.zeros((5, 1))[:repeat]}))
    )
    middle = 1 - repeat * (rate / 2) ** 2 / 2
    root = np.sqrt(complex(middle**2 - 1))
    np.testing.assert_allclose(found, [middle - root, middle + root], atol=2e-6)
    np.testing.assert_allclose(np.abs(found), 1.0, atol=1e-6)  # it circles, and never converges


def linear(params, mutable, batch, key, step):
    """Gradient = the batch's mean: what a phase saw can be read off its update."""
    return jnp.mean(batch["x"]) * params["net"]["w"], Aux({}, {})


def test_repeats_see_their_own_slices_and_other_players_see_the_first():
    def other(params, mutable, batch, key, step):
        return jnp.mean(batch["x"]) * params["other"]["v"], Aux({}, {})

    params = {"net": {"w": jnp.float32(0.0)}, "other": {"v": jnp.float32(0.0)}}
    phases = [Phase("net", linear, repeat=3), Phase("other", other)]
    step, state = make(phases, params, learning_rate=1.0)
    x = jnp.array([1.0, 10.0, 100.0, 1.0, 10.0, 100.0])
    assert slices(Method(None, tuple(phases), None, None, ())) == 3
    state, output = step(state, {"x": x})
    assert state.params["net"]["w"] == -111.0
    assert state.params["other"]["v"] == -1.0
    assert output.metrics["net/grad_norm"].tolist() == [111.0, 3.0]


def test_a_lazy_phase_moves_only_every_nth_step_and_says_nothing_in_between():
    phases = [Phase("net", linear), Phase("net", linear, every=3)]
    step, state = make(phases, {"net": {"w": jnp.float32(0.0)}}, learning_rate=1.0)
    assert prefixes(Method(None, tuple(phases), None, None, ())) == ["net/", "net_2/"]
    seen, weights = [], []
    for _ in range(4):
        state, output = jax.jit(step)(state, {"x": jnp.ones(2)})
        seen.append(float(state.params["net"]["w"]))
        weights.append(float(output.metrics["net_2/loss"][1]))
    assert seen == [-2.0, -3.0, -4.0, -6.0]
    assert weights == [1.0, 0.0, 0.0, 1.0]


def test_a_phase_that_starts_late_leaves_its_network_alone_before():
    def moving(params, mutable, batch, key, step):
        changed = {"late": {"seen": mutable["late"]["seen"] + 1}}
        return linear({"net": params["late"]}, mutable, batch, key, step)[0], Aux({}, changed)

    phases = [Phase("net", linear), Phase("late", moving, every=2, start=3)]
    params = {name: {"w": jnp.float32(0.0)} for name in ("net", "late")}
    step, state = make(
        phases, params, learning_rate=1.0, mutable={"late": {"seen": jnp.int32(0)}}, name="adam"
    )
    counts, seen = [], []
    for _ in range(6):
        state, _ = jax.jit(step)(state, {"x": jnp.ones(2)})
        seen.append(int(state.mutable["late"]["seen"]))
        leaves = jax.tree.leaves(state.opt_state["late"])
        counts.append(max(int(leaf) for leaf in leaves if leaf.dtype == jnp.int32))
    assert seen == [0, 0, 0, 0, 1, 1]  # step 4 is the first even one from 3 on
    assert counts == seen
    assert state.params["late"]["w"] < 0


def masked_regression(params, mutable, batch, key, step):
    """A mean over as many elements as the mask lets through: weights differ by microbatch."""
    w = params["net"]
    hidden = jnp.tanh(batch["x"] @ w["a"])
    error = jnp.square(hidden @ w["b"] - batch["y"])
    count = batch["mask"].sum()
    loss = (error * batch["mask"]).sum() / count
    return loss, Aux({"error": loss}, {}, weight=count)


def regression_problem():
    rng = np.random.default_rng(0)
    params = {"net": {"a": rng.normal(size=(5, 7)), "b": rng.normal(size=(7,))}}
    batch = {
        "x": rng.normal(size=(24, 5)),
        "y": rng.normal(size=24),
        "mask": rng.random(24) < np.linspace(0.2, 1.0, 24),
    }
    as_float = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return jax.tree.map(as_float, params), jax.tree.map(as_float, batch)


@pytest.mark.parametrize("accumulation", [2, 3, 8])
def test_accumulated_gradient_equals_the_full_batch(accumulation):
    params, batch = regression_problem()

    def mean_over_everything(net):  # no step, no phase, no weights
        error = jnp.square(jnp.tanh(batch["x"] @ net["a"]) @ net["b"] - batch["y"])
        return (error * batch["mask"]).sum() / batch["mask"].sum()

    expected_loss, expected = jax.value_and_grad(mean_over_everything)(params["net"])
    phase = Phase("net", masked_regression)
    grads, metrics, _ = gradient(
        phase, params, {}, batch, jax.random.key(0), jnp.int32(0), accumulation
    )
    chex.assert_trees_all_close(grads, expected, atol=1e-6, rtol=1e-6)
    for name in ("loss", "error"):
        total, weight = metrics[name]
        np.testing.assert_allclose(total / weight, expected_loss, rtol=1e-6)
        assert weight == batch["mask"].sum()


def test_mutable_goes_through_the_microbatches_in_order():
    def counting(params, mutable, batch, key, step):
        seen = mutable["net"]["sum"] * 10 + batch["x"].sum()
        return params["net"]["w"] * 0.0, Aux({}, {"net": {"sum": seen}})

    step, state = make(
        [Phase("net", counting)],
        {"net": {"w": jnp.float32(0.0)}},
        accumulation=3,
        mutable={"net": {"sum": jnp.float32(0.0)}, "other": {"kept": jnp.float32(7.0)}},
    )
    state, _ = step(state, {"x": jnp.array([1.0, 2.0, 3.0])})
    assert state.mutable == {"net": {"sum": 123.0}, "other": {"kept": 7.0}}


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_non_finite_update_changes_nothing_but_the_clock(what):
    def fragile(params, mutable, batch, key, step):
        w, x = params["net"]["w"], batch["x"].sum()
        loss = w**2 + x if what == "loss" else jnp.sqrt(w * x)
        return loss, Aux({}, {"net": {"n": mutable["net"]["n"] + loss}})

    step, state = make(
        [Phase("net", fragile)],
        {"net": {"w": jnp.float32(2.0)}},
        mutable={"net": {"n": jnp.float32(0.0)}},
        name="adam",
    )
    step = jax.jit(step)
    good, output = step(state, {"x": jnp.ones(1)})
    assert output.skipped == 0
    bad = jnp.full(1, jnp.inf if what == "loss" else 0.0)  # sqrt(0) is finite, its slope is not
    skipped, output = step(good, {"x": bad})
    assert output.skipped == 1
    chex.assert_trees_all_equal(skipped.replace(step=good.step, key=good.key), good)
    assert skipped.step == good.step + 1
    after, output = step(skipped, {"x": jnp.ones(1)})
    assert output.skipped == 0
    assert after.params["net"]["w"] < good.params["net"]["w"]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_only_the_cpu_branches_over_whether_an_update_is_skipped(platform):
    """An accelerator would wait for the branch to be known."""
    step, state = make(
        [Phase("net", lambda params, *rest: (params["net"]["w"] ** 2, Aux({}, {})))],
        {"net": {"w": jnp.float32(2.0)}},
    )
    traced, cases = jax.jit(step).trace(state, {"x": jnp.ones(1)}), []
    for name in ("cpu", platform):
        text = traced.lower(lowering_platforms=(name,)).as_text()
        cases.append(text.count('"stablehlo.case"'))
    assert cases[0] == cases[1] + 1


@pytest.mark.parametrize("freeze", [(), ("/frozen$",)])
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_skips_what_is_not_finite(name, freeze):
    params = {"kernel": jnp.ones((2, 2)), "frozen": jnp.ones(2)}

    def loss(params, mutable, batch, key, step):
        return batch["x"].sum() * sum(p.sum() for p in params["net"].values()) ** 2, Aux({}, {})

    given = {"name": name, "weight_decay": 0.1, "clip_norm": 1.0, "freeze": freeze}
    step, state = make([Phase("net", loss)], {"net": params}, **given)
    step = jax.jit(step)
    good, _ = step(state, {"x": jnp.ones(1)})
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), good.params, state.params)
    assert moved == {"net": {"kernel": True, "frozen": not freeze}}
    skipped, output = step(good, {"x": jnp.full(1, jnp.inf)})
    assert output.skipped == 1
    chex.assert_trees_all_equal((skipped.params, skipped.opt_state), (good.params, good.opt_state))


@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("update", [by_branch, by_choice])
def test_both_ways_to_skip_an_update_do(update, finite):
    def apply(grads, params, count):
        return params - grads, count + 1

    expected = (jnp.float32(-1.0), 6) if finite else (jnp.float32(2.0), 5)
    found = jax.jit(lambda f: update(apply, f, jnp.float32(3.0), jnp.float32(2.0), 5))(finite)
    chex.assert_trees_all_equal(found, expected)


def test_keys_differ_by_step_phase_repeat_and_microbatch():
    def draw(params, mutable, batch, key, step):
        value = jax.random.uniform(key)
        return value * params["net"]["w"], Aux(
            {}, {"net": {"draws": jnp.roll(mutable["net"]["draws"], 1).at[0].set(value)}}
        )

    step, state = make(
        [Phase("net", draw, repeat=2), Phase("net", draw)],
        {"net": {"w": jnp.float32(0.0)}},
        accumulation=2,
        mutable={"net": {"draws": jnp.zeros(12)}},
    )
    for _ in range(2):
        state, _ = step(state, {"x": jnp.zeros(4)})
    draws = np.asarray(state.mutable["net"]["draws"])
    assert len(np.unique(draws)) == 12
