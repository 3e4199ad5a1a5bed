"""The generic step, held against games and sums whose results are known in closed form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.method import Aux, Method, Phase
from genjax.train_state import TrainState, stream
from genjax.training import optim
from genjax.training.accumulate import gradient
from genjax.training.game import check, prefixes, slices, trained
from genjax.training.guard import by_branch, by_choice
from genjax.training.step import make_step


def make(
    phases,
    params,
    *,
    learning_rate=0.1,
    accumulation=1,
    mutable=None,
    prepare=None,
    project=None,
    **optimizer,
):
    """(step function, state) of a game with plain gradient descent."""
    config = configs.base()
    config.accumulation = accumulation
    config.ema.decay = ()
    config.optimizer.update({"name": "sgd", "momentum": 0.0, "clip_norm": 0.0} | optimizer)
    method = Method(None, tuple(phases), None, None, (), prepare=prepare, project=project or {})
    schedule = optax.constant_schedule(learning_rate)
    optimizers = {name: optim.build(config, name, schedule) for name in trained(method)}
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


def test_a_phase_ends_before_its_stop():
    phases = [Phase("net", linear), Phase("early", of("early"), start=1, stop=3)]
    params = {name: {"w": jnp.float32(0.0)} for name in ("net", "early")}
    step, state = make(phases, params, learning_rate=1.0)
    seen = []
    for _ in range(5):
        state, _ = jax.jit(step)(state, {"x": jnp.ones(2)})
        seen.append(float(state.params["early"]["w"]))
    assert seen == [0.0, -1.0, -2.0, -2.0, -2.0]


def of(name):
    def loss(params, mutable, batch, key, step):
        return linear({"net": params[name]}, mutable, batch, key, step)

    return loss


@pytest.mark.parametrize("passes", [1, 3])
def test_passes_go_over_the_same_slices_again(passes):
    """w <- w - rate (w - x) for x = 1, 2 and again: each move is seen by the next."""

    def towards(params, mutable, batch, key, step):
        draws = jnp.roll(mutable["net"]["draws"], 1).at[0].set(jax.random.uniform(key))
        error = params["net"]["w"] - batch["x"].mean()
        return 0.5 * error**2, Aux({"error": error}, {"net": {"draws": draws}})

    step, state = make(
        [Phase("net", towards, repeat=2, passes=passes)],
        {"net": {"w": jnp.float32(0.0)}},
        mutable={"net": {"draws": jnp.zeros(6)}},
    )
    state, output = jax.jit(step)(state, {"x": jnp.array([1.0, 2.0, 1.0, 2.0])})
    w, errors = 0.0, []
    for x in (1.0, 2.0) * passes:
        errors.append(w - x)
        w -= 0.1 * (w - x)
    assert float(state.params["net"]["w"]) == pytest.approx(w, rel=1e-6)
    assert output.metrics["error"].tolist() == pytest.approx([sum(errors), 2 * passes], rel=1e-6)
    assert len(np.unique(state.mutable["net"]["draws"])) == min(2 * passes + 1, 6)


def test_a_loss_of_several_networks_moves_them_as_one_would_be():
    """Against the same parameters in one network, whose update is the same without clipping."""
    params, batch = regression_problem()
    a, b = params["net"]["a"], params["net"]["b"]

    def both(params, mutable, batch, key, step):
        joined = {"net": {"a": params["encoder"]["a"], "b": params["decoder"]["b"]}}
        return masked_regression(joined, mutable, batch, key, step)

    one, whole = make([Phase("net", masked_regression)], params, accumulation=2, name="adam")
    two, parts = make(
        [Phase(("encoder", "decoder"), both)],
        {"encoder": {"a": a}, "decoder": {"b": b}},
        accumulation=2,
        name="adam",
    )
    assert set(parts.opt_state) == {"encoder", "decoder"}
    for _ in range(3):
        whole, expected = one(whole, batch)
        parts, found = two(parts, batch)
    moved = {"a": parts.params["encoder"]["a"], "b": parts.params["decoder"]["b"]}
    chex.assert_trees_all_close(moved, whole.params["net"], rtol=1e-6)
    norms = [found.metrics[f"grad_norm_{name}"] for name in ("encoder", "decoder")]
    squares = sum(float(norm[0] / norm[1]) ** 2 for norm in norms)
    norm = expected.metrics["grad_norm"]
    assert squares == pytest.approx(float(norm[0] / norm[1]) ** 2, rel=1e-5)


def test_several_networks_are_skipped_together():
    def fragile(params, mutable, batch, key, step):
        slope = jnp.sqrt(params["b"]["w"] * batch["x"].sum())  # finite at 0, its slope is not
        return params["a"]["w"] + slope, Aux({}, {})

    params = {name: {"w": jnp.float32(1.0)} for name in "ab"}
    step, state = make([Phase(("a", "b"), fragile)], params, name="adam")
    after, output = jax.jit(step)(state, {"x": jnp.zeros(1)})
    assert output.skipped == 1
    chex.assert_trees_all_equal((after.params, after.opt_state), (state.params, state.opt_state))


def test_parameters_are_projected_after_an_update_and_only_those_of_their_network():
    """Descent of |x - (3, 4)|^2 / 2 on the unit circle ends at (3, 4) / 5."""

    def loss(params, mutable, batch, key, step):
        far = [jnp.square(params[n] - jnp.array([3.0, 4.0])).sum() / 2 for n in "ab"]
        return far[0] + far[1], Aux({}, {})

    params = {n: jnp.array([1.0, 0.0]) for n in "ab"}
    unit = {"a": lambda x: x / jnp.linalg.norm(x)}
    step, state = make([Phase(("a", "b"), loss)], params, project=unit)
    for _ in range(100):
        state, _ = step(state, {"x": jnp.zeros(1)})
    np.testing.assert_allclose(state.params["a"], [0.6, 0.8], atol=1e-4)
    np.testing.assert_allclose(state.params["b"], [3.0, 4.0], atol=1e-3)


def test_metrics_of_a_phase_of_several_networks_have_both_names():
    phases = (Phase(("a", "b"), None), Phase("a", None), Phase(("a", "b"), None))
    method = Method(None, phases, None, None, ())
    assert prefixes(method) == ["a+b/", "a/", "a+b_2/"]
    assert trained(method) == ["a", "b"]


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (Phase((), None), r"trains=\(\): expected one network"),
        (Phase(("a", "a"), None), r"trains=\('a', 'a'\): expected one network"),
        (Phase("a", None, passes=0), r"phase 'a': passes=0: expected at least 1"),
        (Phase("a", None, start=5, stop=5), r"stop=5: expected a step after its start, 5"),
    ],
)
def test_a_phase_that_cannot_be_played_is_refused(phase, message):
    with pytest.raises(ConfigError, match=message):
        check(Method(None, (phase,), None, None, ()))


def test_the_batch_is_prepared_once_a_step_by_a_key_of_its_own():
    """Two phases and two repeats see slices of one batch, of other fields and another size."""

    def prepare(params, mutable, batch, key, step):
        noise = jax.random.uniform(key, (4,))
        made = batch["raw"].sum() + params["net"]["w"] + 10.0 * step + noise
        return {"x": made, "noise": noise}

    def seen(params, mutable, batch, key, step):
        old, w = mutable["net"]["seen"], params["net"]["w"]
        changed = jnp.roll(old, 2, 0).at[:2].set(jnp.stack([batch["x"], batch["noise"]], 1))
        # A gradient through `prepare` would add one of the noise.
        return batch["x"].mean() + w, Aux({}, {"net": {"seen": changed}})

    phases = [Phase("net", seen, repeat=2), Phase("other", of("other"))]
    params = {"net": {"w": jnp.float32(0.5)}, "other": {"w": jnp.float32(0.0)}}
    mutable = {"net": {"seen": jnp.zeros((4, 2))}}
    step, state = make(phases, params, learning_rate=1.0, mutable=mutable, prepare=prepare)
    draws = []
    for i in range(2):
        before = float(state.params["net"]["w"])
        state, _ = jax.jit(step)(state, {"raw": jnp.array([1.0, 2.0, 3.0])})
        x, noise = np.asarray(state.mutable["net"]["seen"]).T
        key = jax.random.fold_in(stream(jax.random.key(0), "prepare"), i)
        np.testing.assert_array_equal(np.sort(noise), np.sort(jax.random.uniform(key, (4,))))
        np.testing.assert_allclose(x, 6.0 + before + 10.0 * i + noise, rtol=1e-6)
        draws.append(noise)
    assert len(np.unique(draws)) == 8
    assert float(state.params["net"]["w"]) == 0.5 - 4.0


def test_no_gradient_goes_through_what_is_prepared():
    def prepare(params, mutable, batch, key, step):
        return {"x": params["net"]["w"] * batch["x"]}

    step, state = make([Phase("net", linear)], {"net": {"w": jnp.float32(2.0)}}, prepare=prepare)

    def after(w):
        moved, _ = step(state.replace(params={"net": {"w": w}}), {"x": jnp.ones(2)})
        return moved.params["net"]["w"]

    # w <- w - 0.1 stop(w) x: without the stop its slope in w would be 0.9.
    assert jax.grad(after)(jnp.float32(2.0)) == 1.0


def test_a_prepared_batch_that_does_not_divide_is_refused():
    def prepare(params, mutable, batch, key, step):
        return {"made": jnp.zeros((5, 2))}

    step, state = make(
        [Phase("net", linear, repeat=2)],
        {"net": {"w": jnp.float32(0.0)}},
        accumulation=2,
        prepare=prepare,
    )
    with pytest.raises(ConfigError, match=r"'made' of shape \(5, 2\): expected .* multiple of 4"):
        step(state, {"x": jnp.ones(4)})


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
    chex.assert_trees_all_close(grads, {"net": expected}, atol=1e-6, rtol=1e-6)
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
