"""Optimizers and schedules, against optax's own whole optimizers and the papers' formulas."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.config import ConfigError
from genjax.training import ema, optim

PARAMS = {
    "block": {"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3), "bias": jnp.arange(3.0)},
    "norm": {"scale": jnp.ones(3)},
}


def run(config, steps=5, schedule=None, params=PARAMS):
    """Parameters after `steps` steps on fixed pseudo-random gradients."""
    tx = optim.build(config, "net", schedule or optax.constant_schedule(0.01))
    state = tx.init(params)
    for i in range(steps):
        updates, state = tx.update(gradients(i, params), state, params, step=jnp.int32(i))
        params = optax.apply_updates(params, updates)
    return params


def reference(tx, steps=5, params=PARAMS):
    state = tx.init(params)
    for i in range(steps):
        updates, state = tx.update(gradients(i, params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def gradients(i, params):
    keys = jax.random.split(jax.random.key(i), len(jax.tree.leaves(params)))
    leaves = [
        jax.random.normal(k, leaf.shape)
        for k, leaf in zip(keys, jax.tree.leaves(params), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def base(**optimizer):
    config = configs.base()
    config.optimizer.update({"clip_norm": 0.0} | optimizer)
    return config


MASK = {"block": {"kernel": True, "bias": False}, "norm": {"scale": False}}


@pytest.mark.parametrize(
    ("options", "peer"),
    [
        (
            {"name": "adamw", "weight_decay": 0.1, "b2": 0.95},
            optax.adamw(0.01, b2=0.95, weight_decay=0.1, mask=MASK),
        ),
        ({"name": "adam", "b1": 0.5}, optax.adam(0.01, b1=0.5)),
        ({"name": "sgd", "momentum": 0.9}, optax.sgd(0.01, momentum=0.9)),
        ({"name": "sgd", "momentum": 0.0}, optax.sgd(0.01)),
        (
            {"name": "lion", "b2": 0.99, "weight_decay": 0.1},
            optax.lion(0.01, b2=0.99, weight_decay=0.1, mask=MASK),
        ),
        (
            {"name": "adam", "clip_norm": 0.5},
            optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01)),
        ),
        (
            {"name": "muon", "momentum": 0.95},
            optax.contrib.muon(0.01, beta=0.95, consistent_rms=0.2),
        ),
    ],
)
def test_equals_optax(options, peer):
    chex.assert_trees_all_close(run(base(**options)), reference(peer), rtol=1e-6, atol=1e-7)


def test_muon_takes_a_stack_as_a_matrix_for_each_block():
    kernel = jax.random.normal(jax.random.key(0), (3, 4, 6))
    found = run(base(name="muon"), steps=1, params={"blocks": {"up": {"kernel": kernel}}})
    for update in np.asarray(found["blocks"]["up"]["kernel"] - kernel, np.float64):
        singular = np.linalg.svd(update, compute_uv=False)
        assert singular.min() > 0.5 * singular.max()  # as a stack of 12 x 6 they are not


def test_muon_takes_a_convolution_as_one_matrix():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 8))
    found = run(base(name="muon"), steps=1, params={"conv": {"kernel": kernel}})
    update = np.asarray(found["conv"]["kernel"] - kernel, np.float64).reshape(36, 8)
    singular = np.linalg.svd(update, compute_uv=False)
    assert singular.min() > 0.5 * singular.max()  # orthogonalised: all about equal


def test_multipliers_and_freezing_by_path():
    rules = ((r"^net/block/", 0.5), (r".*", 1.0))
    config = base(name="sgd", momentum=0.0, learning_rate_rules=rules, freeze=(r"norm/",))
    found = run(config, steps=1)
    g = gradients(0, PARAMS)
    chex.assert_trees_all_close(
        found,
        {
            "block": {k: PARAMS["block"][k] - 0.005 * g["block"][k] for k in ("kernel", "bias")},
            "norm": PARAMS["norm"],
        },
        rtol=1e-6,
    )


def test_frozen_parameters_have_no_moments_and_do_not_count_in_clipping():
    config = base(name="adam", freeze=(r"norm/",))
    state = optim.build(config, "net", optax.constant_schedule(0.1)).init(PARAMS)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert sorted(shapes) == sorted([(), (4, 3), (3,), (4, 3), (3,)])
    clipped = base(name="sgd", momentum=0.0, clip_norm=1.0, freeze=(r"norm/",))
    g = gradients(0, PARAMS)
    norm = optax.tree.norm(g["block"])
    found = run(clipped, steps=1)
    expected = PARAMS["block"]["bias"] - 0.01 * g["block"]["bias"] / norm
    np.testing.assert_allclose(found["block"]["bias"], expected, rtol=1e-6)


@pytest.mark.parametrize("key", ["freeze", "learning_rate_rules"])
def test_a_rule_that_matches_nothing_is_refused(key):
    value = (r"blok/",) if key == "freeze" else ((r"blok/", 0.1), (r".*", 1.0))
    with pytest.raises(ConfigError, match=rf"optimizer\.{key}.*blok.*net/block"):
        optim.check_rules(base(**{key: value}), {"net": PARAMS})


@pytest.mark.parametrize("key", ["weight_decay_rules", "learning_rate_rules"])
def test_a_parameter_without_a_rule_is_refused(key):
    config = base(**{key: ((r"kernel$", 1.0),)})
    with pytest.raises(ConfigError, match=rf"{key}.*'net/block/bias'"):
        optim.check_rules(config, {"net": PARAMS})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eps", 0.0),
        ("b1", 1.0),
        ("b2", -0.1),
        ("momentum", 1.0),
        ("learning_rate", -1.0),
        ("learning_rate", float("inf")),
        ("learning_rate", float("nan")),
    ],
)
def test_numbers_that_could_make_an_update_infinite_are_refused(key, value):
    config = configs.base()
    config.method, config.optimizer[key] = "diffusion", value
    with pytest.raises(ConfigError, match=rf"config\.optimizer\.{key}={value}: expected"):
        configs.validate(config)
    config.optimizer[key] = getattr(configs.base().optimizer, key)
    config.optimizer.networks = ConfigDict({"net": {key: value}})
    with pytest.raises(ConfigError, match=rf"config\.optimizer\.networks\.net\.{key}={value}"):
        configs.validate(config)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"adamm.*adam"):
        optim.build(base(name="adamm"), "net", optax.constant_schedule(1.0))
    config = configs.base()
    config.schedule.name = "cosin"
    with pytest.raises(ConfigError, match=r"cosin.*cosine"):
        optim.learning_rate(config, "net", 10, 0)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("constant", lambda s: 1.0),
        ("cosine", lambda s: 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (s - 20) / 80))),
        ("linear", lambda s: 1.0 + (0.1 - 1.0) * (s - 20) / 80),
        ("inverse_sqrt", lambda s: np.sqrt(20 / (s + 1))),
    ],
)
def test_schedules(name, formula):
    config = configs.base()
    config.schedule.update({"name": name, "final": 0.1})
    config.optimizer.learning_rate = 2.0
    schedule = optim.learning_rate(config, "net", 100, 20)
    warm = [schedule(s) for s in (0, 4, 9, 19)]  # the first update has a rate above 0
    np.testing.assert_allclose(warm, [0.1, 0.5, 1.0, 2.0], rtol=1e-6)
    for s in (20, 37, 60, 99, 100):
        np.testing.assert_allclose(schedule(s), 2.0 * formula(s), rtol=1e-5)


def test_inverse_sqrt_is_the_papers_schedule():
    """Vaswani et al. 2017, eq. 3, whose steps are counted from 1."""
    config = configs.base()
    config.schedule.name, config.optimizer.learning_rate = "inverse_sqrt", 20**-0.5
    schedule = jax.vmap(optim.learning_rate(config, "net", 100, 20))
    number = np.arange(1.0, 101)
    expected = np.minimum(number**-0.5, number * 20**-1.5)
    np.testing.assert_allclose(schedule(jnp.arange(100)), expected, rtol=1e-5)


def test_the_ladder_is_the_papers():
    """Burda et al. 2016, section 5: 0.001 * 10^(-i/7) for 3^i passes, i = 0 ... 7."""
    rates = np.concatenate([np.full(3**i, 0.001 * 10 ** (-i / 7)) for i in range(8)])
    config = configs.base()
    config.optimizer.learning_rate = 0.001
    config.schedule.update({"name": "ladder", "final": 0.1})
    for steps_a_pass in (1, 50):
        total = len(rates) * steps_a_pass
        schedule = jax.vmap(optim.learning_rate(config, "net", total, 0))
        expected = np.repeat(rates, steps_a_pass)
        np.testing.assert_allclose(schedule(jnp.arange(total)), expected, rtol=1e-6)
    short = jax.vmap(optim.learning_rate(config, "net", 4000, 0))(jnp.arange(4001))
    assert (np.diff(short) <= 0).all()
    # 1 + 3 + ... + 3^6 of the 3280 passes come before the last rung.
    found, rungs = short[np.array([0, 1332, 1333, 4000])], [0, 6, 7, 7]
    np.testing.assert_allclose(found, [0.001 * 10 ** (-i / 7) for i in rungs], rtol=1e-6)
    config.schedule.final = 0.0
    with pytest.raises(ConfigError, match=r"schedule\.final=0\.0: expected above 0"):
        optim.learning_rate(config, "net", 10, 0)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(ConfigError, match="warmup"):
        optim.learning_rate(configs.base(), "net", 20, 20)


def test_the_step_is_the_only_clock():
    config = base(name="sgd", momentum=0.0)
    tx = optim.build(config, "net", lambda step: 0.1 * step)
    state = tx.init(PARAMS)
    updates, _ = tx.update(PARAMS, state, PARAMS, step=jnp.int32(7))
    chex.assert_trees_all_close(updates, jax.tree.map(lambda p: -0.7 * p, PARAMS), rtol=1e-6)


def test_ema_is_the_weighted_sum_of_all_parameters():
    config = configs.base()
    config.ema.update({"decay": (0.5, 0.9), "warmup": False})
    history = [{"net": jax.tree.map(lambda p, i=i: p + i, PARAMS)} for i in range(6)]
    averages = ema.init(config, history[0], ["net"])
    for i, params in enumerate(history[1:]):
        averages = ema.update(config, averages, params, jnp.int32(i))
    for d in (0.5, 0.9):
        mean = d**5 * 0 + sum((1 - d) * d ** (5 - i) * i for i in range(1, 6))
        expected = {"net": jax.tree.map(lambda p, mean=mean: p + mean, PARAMS)}
        chex.assert_trees_all_close(averages[str(d)], expected, rtol=1e-5, atol=1e-6)


def test_ema_warm_up_follows_its_formula():
    config = configs.base()
    config.ema.update({"decay": (0.99,), "warmup": True})
    tree = {"w": jnp.float32(0.0)}
    for step in (0, 10, 10_000):
        found = ema.update(config, {"0.99": tree}, {"w": jnp.float32(1.0)}, jnp.int32(step))
        decay = min(0.99, (1 + step) / (10 + step))
        np.testing.assert_allclose(found["0.99"]["w"], 1 - decay, rtol=1e-5)


@pytest.mark.parametrize("deviation", [0.05, 0.1, 0.25])
def test_power_averages_weigh_step_t_by_a_power_of_it(deviation):
    """Karras et al. 2024: theta_t of n weighs (t/n)^(g+1) - ((t-1)/n)^(g+1), about t^g."""
    config = configs.base()
    config.ema.update({"decay": (), "power": (deviation,)})
    steps, name = 2000, f"power_{deviation}"
    params = {"net": {"w": jnp.zeros(steps)}}
    averages = ema.init(config, params, ["net"])

    def one(averages, step):
        seen = {"net": {"w": jax.nn.one_hot(step, steps)}}
        return ema.update(config, averages, seen, step), None

    averages, _ = jax.lax.scan(one, averages, jnp.arange(steps))
    found = np.asarray(averages[name]["net"]["w"], np.float64)
    gamma, t = ema.exponent(deviation), np.arange(steps + 1) / steps
    np.testing.assert_allclose(found, np.diff(t ** (gamma + 1)), rtol=1e-3, atol=1e-9)
    assert found.sum() == pytest.approx(1, rel=1e-4)  # nothing is left of the initial parameters
    mean = found @ t[1:]
    assert np.sqrt(found @ (t[1:] - mean) ** 2) == pytest.approx(deviation, rel=1e-2)
    assert ema.evaluation_params(config, params, averages) == averages[name]


def test_the_first_profile_is_one_with_a_decay_if_there_is_one():
    config = configs.base()
    config.ema.update({"decay": (0.9, 0.99), "power": (0.05, 0.1)})
    assert list(ema.profiles(config)) == ["0.9", "0.99", "power_0.05", "power_0.1"]
    averages = ema.init(config, {"net": {"w": jnp.float32(1.0)}}, ["net"])
    averages["0.9"] = {"net": {"w": jnp.float32(5.0)}}
    assert ema.evaluation_params(config, {}, averages) == {"net": {"w": 5.0}}


def test_only_the_named_networks_are_averaged_and_evaluated_so():
    config = configs.base()
    params = {"generator": {"w": jnp.float32(1.0)}, "discriminator": {"w": jnp.float32(2.0)}}
    config.ema.networks = ("generator",)
    averages = ema.init(config, params, params)
    assert averages == {"0.999": {"generator": {"w": 1.0}}}
    averages = {"0.999": {"generator": {"w": jnp.float32(5.0)}}}
    used = ema.evaluation_params(config, params, averages)
    assert used == {"generator": {"w": 5.0}, "discriminator": {"w": 2.0}}
    config.ema.networks = ("encoder",)
    with pytest.raises(ConfigError, match="encoder"):
        ema.init(config, params, params)


def test_rmsprop_keeps_its_step_where_gradients_are_tiny():
    """Arjovsky et al. 2017's optimizer: g / (sqrt(v) + eps), as in PyTorch, not sqrt(v + eps)."""
    config = base(name="rmsprop", b2=0.9, eps=1e-8)
    tx = optim.build(config, "net", optax.constant_schedule(1.0))
    gradient = jnp.array([1e-6, 1.0])
    state, v = tx.init(gradient), np.zeros(2)
    for step in range(3):
        updates, state = tx.update(gradient, state, gradient, step=jnp.int32(step))
        v = 0.9 * v + 0.1 * np.square([1e-6, 1.0])
        np.testing.assert_allclose(updates, -np.array([1e-6, 1.0]) / (np.sqrt(v) + 1e-8), 1e-4)


def test_one_network_may_differ_from_the_shared_settings():
    config = base(name="adam", learning_rate=0.1)
    with config.unlocked():
        config.optimizer.networks = {"net": {"name": "sgd", "momentum": 0.0, "learning_rate": 0.2}}
    for network, peer in (("net", optax.sgd(0.2)), ("other", optax.adam(0.1))):
        tx = optim.build(config, network, optim.learning_rate(config, network, 10, 0))
        state, moved = tx.init(PARAMS), PARAMS
        for i in range(3):
            updates, state = tx.update(gradients(i, moved), state, moved, step=jnp.int32(i))
            moved = optax.apply_updates(moved, updates)
        chex.assert_trees_all_close(moved, reference(peer, 3), rtol=1e-6)


def test_a_network_that_does_not_exist_and_a_key_that_is_not_its_own_are_refused():
    config = base()
    config.method = "gan"
    with config.unlocked():
        config.optimizer.networks = {"critic": {"learning_rate": 0.2}}
    with pytest.raises(ConfigError, match=r"networks='critic': expected one of net"):
        optim.check_rules(config, {"net": PARAMS})
    with config.unlocked():
        config.optimizer.networks = {"net": {"freeze": ()}}
    with pytest.raises(
        ConfigError, match=r"optimizer\.networks\.net='freeze': expected one of name"
    ):
        configs.validate(config)


def test_weight_clip_keeps_every_parameter_in_the_box():
    """Arjovsky et al. 2017, algorithm 1, line 7: w <- clip(w, -c, c), after the update."""
    free = run(base(name="sgd", momentum=0.0))
    clipped = run(base(name="sgd", momentum=0.0, weight_clip=0.5), steps=1)
    after_one = reference(optax.sgd(0.01), 1)
    expected = jax.tree.map(lambda p: jnp.clip(p, -0.5, 0.5), after_one)
    chex.assert_trees_all_close(clipped, expected, atol=1e-7)
    assert max(float(jnp.abs(p).max()) for p in jax.tree.leaves(free)) > 0.5


def test_two_factors_are_those_of_the_first_and_the_last_block():
    """Howard & Ruder 2018: each layer learns 2.6 times as fast as the one before it."""
    params = {"blocks": {"up": {"kernel": jnp.ones((4, 2, 3))}}, "head": {"kernel": jnp.ones(2)}}
    rules = ((r"blocks/", (2.6**-3, 1.0)), (r".*", 2.0))
    config = base(name="sgd", momentum=0.0, learning_rate_rules=rules)
    configs.validate(configs.override(config, {"method": "lm"}))
    optim.check_rules(config, {"net": params})
    tx = optim.build(config, "net", optax.constant_schedule(0.1))
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params, step=jnp.int32(0))
    expected = -0.1 * 2.6 ** np.array([-3.0, -2, -1, 0])
    kernel = updates["blocks"]["up"]["kernel"]
    np.testing.assert_allclose(kernel, np.broadcast_to(expected[:, None, None], (4, 2, 3)), 1e-5)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.2)
    config.optimizer.learning_rate_rules = ((r".*", (0.5, 1.0)),)
    with pytest.raises(ConfigError, match=r"'net/head/kernel' has the factors .* not stacked"):
        optim.check_rules(config, {"net": params})


@pytest.mark.parametrize("factors", [(0.0, 1.0), (1.0,), (1.0, 2.0, 3.0), ("a", 1.0)])
def test_other_factors_are_refused(factors):
    config = base(learning_rate_rules=((r".*", factors),))
    with pytest.raises(ConfigError, match="learning_rate_rules"):
        configs.validate(configs.override(config, {"method": "lm"}))
