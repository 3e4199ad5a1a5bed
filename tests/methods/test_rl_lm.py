"""Policies in a world of 64 answers, against enumeration; and of a small transformer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_world as world

from genjax import config as configs
from genjax.adapters import Adapters
from genjax.checks import ConfigError
from genjax.data.alphabets import Characters
from genjax.interop import export, huggingface
from genjax.method import DataSpec, Field, Stage
from genjax.methods import answers, lm, reward_model, rewards, rl_lm
from genjax.networks import decoder
from genjax.nn.functional import functional
from genjax.parallel.mesh import global_batch
from genjax.parallel.rules import replicate
from genjax.sampling.decode import advance, make_plan, prefill
from genjax.training.assemble import assemble, put_pretrained
from genjax.training.checkpoint import Checkpoints

BETA = 0.5
BASE = world.table(7, 0.5)  # the reference
RULES = ((".*", replicate),)


def reference(params, mutable, batch):
    """The logits of a fixed table."""
    segment = batch["segment"][:, :-1]
    return world.network().apply(BASE, {}, batch["token"][:, :-1], segment=segment)[0][0]


def method(reward=world.reward, **options):
    given = {"max_new_tokens": world.T, "beta": BETA, **options}
    value = world.network(1) if given.get("advantage") == "gae" else None
    options = rl_lm.Options(**given)
    return rl_lm.from_networks(world.model(), options, RULES, reward, reference, value)


def begun(made, devices=1, **keys):
    """A run that starts from the reference, and its state."""
    config = world.config(**{"batch_size": 16, **keys})
    run = assemble(config, world.spec(), made, jax.devices()[:devices])
    with jax.set_mesh(run.mesh):
        return run, put_pretrained(run.init(), {"lm": BASE}, {})


# ---- the optimum and the gradient, by enumeration ------------------------------------------------

LEARNERS = {
    "rloo": {"advantage": "rloo"},
    "grpo": {"advantage": "grpo", "average": "length"},
    "ppo": {"advantage": "gae", "passes": 2, "slices": 2, "decay": 0.9, "value_clip": 1.0},
    "grpo_k3": {"advantage": "grpo", "penalty": "k3"},
}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_policy_reaches_the_optimum(name):
    """But not with the penalty of GRPO, which is another divergence, and of single tokens."""
    steps = 300
    keys = {"schedule.name": "cosine", "duration": f"{steps}_steps"}
    run, state = begun(method(**LEARNERS[name]), **keys)
    rows = world.batch(run.examples_per_step)
    batches = {n: np.broadcast_to(v, (steps, *v.shape)) for n, v in rows.items()}
    with jax.set_mesh(run.mesh):
        state, _ = run.steps(state, jax.device_put(batches, run.mesh.devices.flat[0]))
    best, most = world.optimum(BASE, BETA)
    gap = most - world.objective(state.params["lm"], BASE, BETA)
    assert (most - world.objective(BASE, BASE, BETA) > 0.3).all()
    if name == "grpo_k3":
        assert (gap > 0.02).all()
        return
    np.testing.assert_allclose(gap, 0, atol=2e-3)
    np.testing.assert_allclose(jnp.exp(world.log_p(state.params["lm"])), jnp.exp(best), atol=2e-3)


START = world.table(3, 0.5)
SIZE = np.array([1.0, 0.2], np.float32)  # the rewards of the second prompt differ less


def spreads_of_gradients(*kinds):
    """(mean, standard error) of the gradient of minus E[r] by the same 64 times 64 groups of 4."""

    def reward(params, mutable, tokens, batch):
        return (
            world.reward(params, mutable, tokens, batch) * jnp.asarray(SIZE)[batch["prompt"][:, 0]]
        )

    players = [
        rl_lm.Player(
            world.model(),
            rl_lm.Options(answers=4, max_new_tokens=world.T, beta=0.0, **options),
            *(reward, reference),
        )
        for options in kinds
    ]
    rows = {name: jnp.repeat(value, 4, 0) for name, value in world.batch(64).items()}

    @jax.jit
    def gradients(params):
        def one(key):
            tokens, given = rl_lm.answered(players[0], {"lm": params}, {"lm": {}}, rows, key)

            def slope(player):
                batch = rl_lm.judged(player, {"lm": params}, {"lm": {}}, tokens, given)
                made = jax.grad(
                    lambda p: rl_lm.loss(player, {"lm": p}, {"lm": {}}, batch, None, 0)[0]
                )(params)
                return made["table"][: world.PROMPTS]

            return [slope(player) for player in players]

        return jax.lax.map(one, jax.random.split(jax.random.key(0), 64))

    for found in gradients(START):
        found = np.asarray(found, np.float64)
        yield found.mean(0), found.std(0, ddof=1) / 8


def test_the_gradient_of_rloo_is_that_of_the_objective_and_that_of_scaled_grpo_is_not():
    def minus(params):
        return -(jnp.exp(world.log_p(params)) * world.REWARD * SIZE[:, None]).sum(1).mean()

    exact = jax.grad(minus)(START)["table"][: world.PROMPTS]
    kinds = (
        {"advantage": "rloo"},
        {"advantage": "reinforce"},
        {"advantage": "grpo", "scale": True},
    )
    *unbiased, (mean, error) = spreads_of_gradients(*kinds)
    factor = (mean * exact).sum() / np.square(exact).sum()
    assert np.abs((mean - factor * exact) / error).max() > 10
    for mean, error in unbiased:
        assert np.abs((mean - exact) / error).max() < 4.5  # of 168 entries
        assert np.abs(exact / error).max() > 15


# ---- a transformer -------------------------------------------------------------------------------

V, WIDTH, NEW = 12, 13, 6
ODD = {"temperature": 0.7, "top_p": 0.8, "top_k": 9, "max_new_tokens": NEW}


def spec():
    special = {"start": V - 1, "eos": V - 1}
    facts = {"vocabulary_size": V, "special": special}
    facts["tokenizer"] = Characters("abcdefghijk", {"eos": V - 1})
    kinds = {
        "token": ("text", np.int32),
        "segment": ("mask", np.int32),
        "loss_mask": ("mask", bool),
    }
    fields = {
        name: Field(kind, (WIDTH,), np.dtype(dtype), facts if name == "token" else {})
        for name, (kind, dtype) in kinds.items()
    }
    return DataSpec("made", fields, "token", {"train": 64})


def batch(count):
    """Prompts of 1 to 7 tokens, with answers of 2."""
    rng = np.random.default_rng(0)
    token = rng.integers(0, V - 1, (count, WIDTH)).astype(np.int32)
    place, start = np.arange(WIDTH), 1 + np.arange(count)[:, None] % 7
    mask = (place >= start) & (place < start + 2)
    segment = (place < start + 2).astype(np.int32)
    return {"token": token, "segment": segment, "loss_mask": mask}


def few_tokens(params, mutable, tokens, batch):
    """A reward with no two values alike: how often each token is there."""
    weight = jnp.asarray(np.sin(np.arange(V) * 2.0), jnp.float32)
    return jnp.where(tokens >= 0, weight[jnp.maximum(tokens, 0)], 0).sum(1)


@pytest.fixture(scope="module")
def policy():
    """(the language model, its parameters), which is far from uniform."""
    options = {"width": 16, "depth": 1, "heads": 2, "positions": "rotary", "init_std": 0.5}
    net = functional(lambda rngs: decoder.Network(V, WIDTH, **options, rngs=rngs))
    params, mutable = net.init(jax.random.key(0))
    params["embed"]["embedding"] = 3 * params["embed"]["embedding"]
    model = lm.Language(net, lm.Options(), spec(), WIDTH - 1)
    return model, {"lm": params, answers.BASE: params}, {"lm": mutable}


def player(model, reward=few_tokens, **options):
    given = rl_lm.Options(**{**ODD, "answers": 3, "beta": 0.1, **options})
    return rl_lm.Player(model, given, reward, answers.reference(model, {}, spec()))


@pytest.fixture(scope="module")
def step(policy):
    """(the player, the batch of the phases)."""
    model, params, mutable = policy
    made = player(model, penalty="weighted_k3", average="sequence", advantage="grpo", scale=True)
    prepare = jax.jit(partial(rl_lm.rollout, made))
    return made, prepare(params, mutable, batch(16), jax.random.key(2), 0)


def test_a_token_is_as_probable_in_the_loss_as_when_it_was_drawn(policy, step):
    """log p of decoding, token by token from its cache, and of the whole row at once."""
    (model, params, mutable), (made, prepared) = policy, step
    width = WIDTH - NEW
    tokens = jnp.where(prepared["segment"] > 0, prepared["token"], -1)
    drawn, found = np.asarray(tokens)[:, width:], np.asarray(prepared["old"])[:, width - 1 :]
    assert len(np.unique(drawn)) > 5
    assert (drawn == -1).any()  # some have ended before
    assert 0.1 < prepared["support"].mean() < 0.9
    apply, plan = make_plan(
        model.bound(params, mutable), tokens[:, :width], NEW, WIDTH - 1, (V - 1,), ()
    )
    first, following = jax.jit(prefill, static_argnums=(1, 4)), jax.jit(advance)

    @jax.jit
    def warped(logits):
        for process in made.warping.chain:
            logits = process(logits, None)
        return jax.nn.log_softmax(logits)

    logits, cache = first(apply, plan, tokens, width, width)
    for t in range(NEW):
        here = drawn[:, t] >= 0
        log_p = np.asarray(warped(logits))[np.arange(len(drawn)), np.maximum(drawn[:, t], 0)]
        np.testing.assert_allclose(found[here, t], log_p[here], rtol=1e-4, atol=1e-5)
        assert not found[~here, t].any()
        if t + 1 < NEW:
            logits, cache = following(apply, tokens, jnp.int32(width + t + 1), cache)


def test_the_ratio_is_1_at_the_first_update(policy, step):
    (_, params, mutable), (made, prepared) = policy, step
    value, aux = jax.jit(partial(rl_lm.loss, made))(params, mutable, prepared, None, 0)
    assert aux.metrics["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert aux.metrics["clipped"] == 0
    assert aux.metrics["kl"] == pytest.approx(0.0, abs=1e-5)  # the reference is the policy
    assert np.isfinite(value)
    changed = {**params, "lm": jax.tree.map(lambda p: 1.3 * p, params["lm"])}
    value, aux = jax.jit(partial(rl_lm.loss, made))(changed, mutable, prepared, None, 0)
    assert np.isfinite(value)  # no drawn token became impossible
    assert aux.metrics["clipped"] > 0.1


def test_a_drawn_token_that_the_whole_row_leaves_out_keeps_a_likelihood():
    warping = answers.Warping(top_k=1)
    row = {"token": jnp.zeros((1, 3), jnp.int32), "answer": jnp.asarray([[False, True]])}
    logits = jnp.asarray([[[1.0, 1.001, 0.0]] * 2])  # decoding had 1.001 for the first one
    row["support"] = answers.support(logits, row, warping)
    assert row["support"].tolist() == [[[False, True, False], [True, True, False]]]
    found = answers.log_p(logits, row, warping)
    np.testing.assert_allclose(found, [[0, -np.log1p(np.exp(0.001))]], rtol=1e-5)


def test_answers_to_empty_prompts_do_not_count():
    """A row without an answer, and one that is the rest of a longer answer."""
    given = batch(3)
    given["loss_mask"][0] = False
    given["loss_mask"][1] = np.arange(WIDTH) < 2
    prompt = rl_lm.prompts(given, 2)
    assert (prompt[:2] == -1).all()
    made = answers.rows(jnp.concatenate([prompt, jnp.full((3, 2), 5)], 1), 2)
    assert made["answer"].sum(1).tolist() == [0, 0, 2]
    for average in rl_lm.pg.AVERAGES:
        weight, divisor = rl_lm.pg.weights(made["answer"], average, 2)
        assert (weight.any(1).tolist(), (divisor > 0).tolist()) == ([False, False, True],) * 2


def packed(prepared):
    """The same answers, two or three in a row of another length."""
    kept = {name: np.asarray(rows) for name, rows in prepared.items()}
    whole, length = ("token", "segment"), kept["token"].shape[1]
    out = {name: [] for name in kept}
    for group in np.array_split(np.arange(len(kept["token"])), 17):
        room, at = 3 * length + 2, 0
        row = {name: np.zeros((room, *kept[name].shape[2:]), kept[name].dtype) for name in kept}
        row |= {name: 0.0 for name in ("divisor", "reward")}
        for index, segment in enumerate(group, 1):
            columns = np.flatnonzero(kept["segment"][segment])
            span = slice(at, at + len(columns))
            row["token"][span] = kept["token"][segment, columns]
            row["segment"][span] = index
            targets = columns[1:] - 1  # of numbers that belong to the token after them
            for name in set(kept) - {*whole, "divisor", "reward"}:
                row[name][at : at + len(targets)] = kept[name][segment, targets]
            row["divisor"] += kept["divisor"][segment]
            at = span.stop
        for name in kept:
            out[name].append(row[name] if name in ("divisor", "reward", *whole) else row[name][:-1])
    return {name: jnp.asarray(np.stack(rows)) for name, rows in out.items()}


def test_packed_answers_have_the_loss_and_gradient_of_padded_ones(policy, step):
    (_, params, mutable), (made, prepared) = policy, step
    params = {**params, "lm": jax.tree.map(lambda p: 1.02 * p, params["lm"])}

    @jax.jit
    def slope(batch):
        return jax.value_and_grad(
            lambda p: rl_lm.loss(made, {**params, "lm": p}, mutable, batch, None, 0)[0]
        )(params["lm"])

    for average in ("sequence", "token"):
        weight, divisor = rl_lm.pg.weights(prepared["answer"], average, NEW)
        weighed = {**prepared, "weight": weight, "divisor": divisor}
        one, other = slope(weighed), slope(packed(weighed))
        np.testing.assert_allclose(other[0], one[0], rtol=1e-4)
        for a, b in zip(*map(jax.tree.leaves, (one[1], other[1])), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * np.abs(a).max() + 1e-7)


def test_eight_devices_make_the_update_of_one():
    """The same answers, and the same gradients of them."""
    updates, metrics = [], []
    for devices in (1, 8):
        keys = {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.learning_rate": 9.0}
        run, state = begun(method(slices=2), devices, **keys)
        with jax.set_mesh(run.mesh):
            rows = global_batch(world.batch(run.examples_per_step), run.mesh)
            state, output = run.step(state, rows)
        updates.append(jax.device_get(state.params))
        metrics.append(jax.device_get(output.metrics))
    gaps = [update["lm"]["table"] - BASE["table"] for update in updates]
    assert np.abs(gaps[0]).max() > 0.05
    np.testing.assert_allclose(gaps[1], gaps[0], atol=1e-5)
    for name, value in metrics[0].items():
        np.testing.assert_allclose(metrics[1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


# ---- runs ----------------------------------------------------------------------------------------


def test_a_run_killed_within_a_pass_resumes_bitwise(tmp_path):
    """The step that was being made is lost, and made again from the checkpoint before it."""
    made = method(**LEARNERS["ppo"])
    run, state = begun(made)
    with jax.set_mesh(run.mesh):
        rows = global_batch(world.batch(run.examples_per_step), run.mesh)
        state, _ = run.step(state, rows)
        checkpoints = Checkpoints(tmp_path, run.config)
        checkpoints.save(state, 1, {})
        checkpoints.wait()
        checkpoints.close()
        for _ in range(2):
            state, output = run.step(state, rows)
    whole = jax.device_get(state.params), np.asarray(output.metrics["loss"])
    with jax.set_mesh(run.mesh):
        state = Checkpoints(tmp_path).restore(run.state)
        assert int(state.step) == 1
        for _ in range(2):
            state, output = run.step(state, rows)
    resumed = jax.device_get(state.params), np.asarray(output.metrics["loss"])
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, resumed))


def test_a_reward_on_the_host_is_that_of_the_program():
    prompt = np.random.default_rng(0).integers(V, size=(8, 3)).astype(np.int32)
    tokens = jnp.asarray(np.concatenate([prompt, prompt, np.full((8, 1), -1)], 1))

    def count(tokens, batch):
        assert isinstance(tokens, np.ndarray)
        np.testing.assert_array_equal(batch["prompt"], tokens[:, :3])
        weight = np.sin(np.arange(V) * 2.0)
        return np.where(tokens >= 0, weight[np.maximum(tokens, 0)], 0).sum(1)

    found = rewards.by_function(count, True, "count")({}, {}, tokens, {"prompt": prompt})
    np.testing.assert_allclose(found, few_tokens({}, {}, tokens, {}), rtol=1e-5)


def test_the_exact_reward():
    token = jnp.asarray([[9, 1, 2, 5, 6, 9, 9], [9, 1, 3, 4, 7, 8, 9], [9, 1, 5, 6, 7, 8, 9]])
    mask = jnp.asarray([[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1, 1]])
    prompt = jnp.asarray([[-1, 9, 1, 2], [9, 3, 4, 7], [-1, -1, 9, 1]])
    right = jnp.asarray([[5, 6, 9, -1], [8, 9, -1, -1], [5, 6, 7, 8]])
    given = {"token": token, "loss_mask": mask, "prompt": prompt}
    tokens = jnp.concatenate([prompt, right], 1)
    np.testing.assert_array_equal(rewards.exact(tokens, given), [1, 1, 0])  # the third has 5 tokens
    np.testing.assert_array_equal(rewards.exact(tokens.at[:, 4].set(0), given), [0, 0, 0])
    np.testing.assert_array_equal(rewards.exact(tokens.at[0, 6].set(-1), given), [0, 1, 0])


def test_prompts_end_where_answers_begin():
    given = batch(3)
    found = np.asarray(rl_lm.prompts(given, 2))
    token = given["token"]
    expected = [[-1, token[0, 0]], token[1, :2].tolist(), token[2, 1:3].tolist()]
    np.testing.assert_array_equal(found, expected)


# ---- bad input -----------------------------------------------------------------------------------


def test_a_reward_of_the_wrong_shape_is_refused():
    made = method(rewards.by_function(lambda tokens, batch: tokens[:, :1], False, "mine.reward"))
    run, _ = begun(made)
    message = r"rl_lm\.reward='mine\.reward' returned an array of shape \(128, 1\) for 128 answers"
    with jax.set_mesh(run.mesh), pytest.raises(ConfigError, match=message):
        run.step.trace(run.state, run.batch)


def test_a_wrong_reward_of_the_host_skips_the_step(caplog):
    wrong = iter([np.zeros((2, 2)), np.full(128, np.nan), np.arange(128.0)])
    made = method(rewards.by_function(lambda tokens, batch: next(wrong), True, "mine.reward"))
    run, state = begun(made)
    said = "returned an array of shape (2, 2) for 128 answers: expected one number for each"
    with jax.set_mesh(run.mesh):
        for skipped, lines, nan in ((1, 1, False), (1, 1, True), (0, 1, True)):
            state, output = run.step(state, global_batch(world.batch(16), run.mesh))
            assert int(output.skipped) == skipped
            assert caplog.text.count(said) == lines
            assert ("returned NaN or infinity for 128 answers" in caplog.text) == nan
            moved = np.abs(state.params["lm"]["table"] - BASE["table"]).max()
            assert (moved > 0) != skipped


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantage": "ppo"}, r"advantage='ppo': expected one of reinforce, rloo, grpo, gae"),
        ({"average": "mean"}, r"average='mean': expected one of sum"),
        ({"penalty": "k1"}, r"penalty='k1': expected one of reward"),
        ({"answers": 1}, r"answers=1: expected at least 2"),
        ({"scale": True}, r"scale=True: expected False with advantage='rloo'"),
        ({"max_new_tokens": 4}, r"max_new_tokens=4: expected below .* = 4, to leave room"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        method(**options)


def test_a_value_network_needs_a_network_with_outputs():
    config = configs.load("configs/lstm.py:tiny")
    expected = r"network='recurrent': expected a network with the argument outputs, such as decoder"
    with pytest.raises(ConfigError, match=expected):
        lm.parts(config, spec(), outputs=1)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("rewards.exakt", r"rl_lm\.reward='rewards': .*rewards has no exakt"),
        (
            "exact",
            r"rl_lm\.reward='exact': expected the dotted path of a function, such as rewards",
        ),
        ("nothing.reward", r"rl_lm\.reward='nothing': no module 'nothing'"),
        ("", r"rl_lm\.reward is empty and config\.stages has no 'reward'"),
    ],
)
def test_a_reward_that_does_not_exist_is_refused(reward, message):
    with pytest.raises(ConfigError, match=message):
        rewards.find(reward, False, {}, spec())


def pairs_of_answers():
    text = spec().fields["token"]
    mask = Field("mask", text.shape, np.dtype(bool))
    fields = {"chosen": text, "rejected": text, "chosen_mask": mask, "rejected_mask": mask}
    return DataSpec("pairs", fields, "chosen", {"train": 64})


def stage_of(name, method, positions="learned"):
    """A stage with a tiny network of that method."""
    config, data, build = {
        "lm": ("configs/arithmetic.py:tiny", spec(), lm.build),
        "reward_model": ("configs/reward_model.py:tiny", pairs_of_answers(), reward_model.build),
    }[method]
    config = configs.load(config, {"model.lm.positions": positions})
    return Stage(name, config, data, build(config, data), ())


def test_a_stage_of_another_kind_is_refused(policy):
    model = policy[0]
    assert rewards.find("", False, {"reward": stage_of("reward", "reward_model")}, spec())
    assert answers.reference(model, {"reference": stage_of("reference", "lm")}, spec())
    with pytest.raises(
        ConfigError, match=r"stages\.reward is a run of method 'lm': expected a mod"
    ):
        rewards.find("", False, {"reward": stage_of("reward", "lm")}, spec())
    message = r"stages\.reference is a run of method 'reward_model': expected a language model"
    with pytest.raises(ConfigError, match=message):
        answers.reference(model, {"reference": stage_of("reference", "reward_model")}, spec())
    longer = spec().fields["token"]._replace(shape=(WIDTH + 2,))
    longer = spec()._replace(fields={**spec().fields, "token": longer})
    with pytest.raises(ConfigError, match=r"stages\.reward: positions=15: expected at most 13"):
        rewards.find("", False, {"reward": stage_of("reward", "reward_model")}, longer)


@pytest.mark.parametrize(
    ("preset", "data"), [("grpo_arithmetic", spec()), ("dpo", pairs_of_answers())]
)
def test_a_policy_is_exported(preset, data, tmp_path):
    config = configs.load(f"configs/{preset}.py:tiny", {"model.lm.positions": "learned"})
    network = lm.parts(config, data).network
    params, _ = network.init(jax.random.key(0))
    export.write("huggingface", tmp_path, config, data, {"lm": params})
    found = huggingface.read(tmp_path)
    assert found.length == WIDTH - 1
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    adapters = Adapters("lora", {"lm": {}}, {}, None)
    known = export.with_adapters(config, data, adapters, "--format=peft")
    assert (known.vocabulary_size, known.length) == (V, WIDTH - 1)


def test_data_without_prompts_are_refused():
    plain = spec()._replace(fields={"token": spec().fields["token"]})
    model = lm.Language(None, lm.Options(), plain, WIDTH - 1)
    with pytest.raises(ConfigError, match=r"method rl_lm needs prompts; made has none"):
        rl_lm.check(model, rl_lm.Options())


def test_a_penalty_without_a_reference_is_refused(policy):
    model, params, mutable = policy
    with pytest.raises(ConfigError, match=r"rl_lm\.beta needs a reference: .*stages\.reference="):
        jax.eval_shape(
            partial(rl_lm.rollout, player(model)),
            *({"lm": params["lm"]}, mutable, batch(2), jax.random.key(0), 0),
        )
