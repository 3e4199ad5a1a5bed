"""Preferences in a world of 64 answers: Bradley-Terry's pairs, and the optimum that they define."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_world as world

from genjax import config as configs
from genjax.checks import ConfigError
from genjax.data import prompted
from genjax.method import DataSpec, Field
from genjax.methods import answers, lm, preference, reward_model, seq2seq
from genjax.methods import preference_losses as losses
from genjax.parallel.rules import replicate
from genjax.training.assemble import assemble, put_pretrained

BETA, BASE, RULES = 0.5, world.table(7, 0.5), ((".*", replicate),)


def spec():
    text = world.spec().fields["token"]
    mask = Field("mask", text.shape, np.dtype(bool))
    fields = {"chosen": text, "rejected": text, "chosen_mask": mask, "rejected_mask": mask}
    return DataSpec("pairs", fields, "chosen", {"train": 64})


def pairs(seed, *shape):
    """Pairs of answers, drawn uniformly; the better one wins as Bradley and Terry say."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(world.PROMPTS, size=shape)
    number = rng.integers(len(world.ANSWERS) - 1, size=(2, *shape))
    number[1] += number[1] >= number[0]  # the other one is another
    gain = world.REWARD[prompt, number]
    swapped = rng.random(shape) > 1 / (1 + np.exp(gain[1] - gain[0]))
    number = np.where(swapped, number[::-1], number)
    rows = [np.concatenate([prompt[..., None], world.ANSWERS[n]], -1) for n in number]
    mask = np.broadcast_to(np.arange(world.T + 1) > 0, rows[0].shape)
    named = dict(zip(("chosen", "rejected"), (row.astype(np.int32) for row in rows), strict=True))
    return {**named, "chosen_mask": mask, "rejected_mask": mask}


def model():
    return lm.Language(world.network(), lm.Options(), spec(), world.T)


def reference(params, mutable, batch):
    """The logits of a fixed table."""
    segment = batch["segment"][:, :-1]
    return world.network().apply(BASE, {}, batch["token"][:, :-1], segment=segment)[0][0]


def test_dpo_reaches_the_optimum_of_rewards_that_it_never_sees():
    steps = 300
    made = preference.from_network(model(), preference.Options(beta=BETA), RULES, reference)
    keys = {"batch_size": 2048, "schedule.name": "cosine", "duration": f"{steps}_steps"}
    run = assemble(world.config(**keys), spec(), made, jax.devices()[:1])
    with jax.set_mesh(run.mesh):
        state = put_pretrained(run.init(), {"lm": BASE}, {})
        state, _ = run.steps(state, jax.device_put(pairs(0, steps, 2048)))
    best, _ = world.optimum(BASE, BETA)
    found = np.exp(world.log_p(state.params["lm"]))
    assert np.abs(np.exp(world.log_p(BASE)) - np.exp(best)).max() > 0.06
    np.testing.assert_allclose(found, np.exp(best), atol=0.015)


@pytest.mark.parametrize("kind", preference.LOSSES)
def test_the_loss_of_a_batch_is_that_of_its_log_probabilities(kind):
    """All by enumeration, outside of the networks."""
    options = preference.Options(kind, 0.3, desirable=1.5, nll=0.25)
    learner = preference.Learner(model(), options, reference)
    params, batch = {"lm": world.table(3)}, pairs(1, 6)
    prepared = preference.prepare(learner, params, {"lm": {}}, batch, None, 0)
    value, aux = preference.loss(learner, params, {"lm": {}}, prepared, None, 0)

    def log_p(table, prompt, row):
        return np.asarray(world.log_p(table))[prompt[:, 0], world.number(row[:, 1:])]

    own = {n: log_p(world.table(3), batch[n], batch[n]) for n in preference.PAIR}
    base = {n: log_p(BASE, batch[n], batch[n]) for n in preference.PAIR}
    ratio = {n: jnp.asarray(own[n] - base[n]) for n in own}
    margin, mean = ratio["chosen"] - ratio["rejected"], {n: own[n] / world.T for n in own}
    if kind == "kto":
        moved = np.roll(batch["chosen"], -1, axis=0)
        away = [log_p(table, batch["chosen"], moved) for table in (world.table(3), BASE)]
        divergence = max((away[0] - away[1]).mean(), 0)
        expected = sum(losses.kto(*ratio.values(), divergence, 0.3, 1.5))
    elif kind == "orpo":
        expected = losses.orpo(*map(jnp.asarray, mean.values()), 0.3) - mean["chosen"]
    else:
        expected = getattr(losses, kind)(margin, 0.3)
    np.testing.assert_allclose(value, (expected - 0.25 * mean["chosen"]).mean(), rtol=1e-4)
    better = mean["chosen"] > mean["rejected"] if kind == "orpo" else margin > 0
    assert aux.metrics["accuracy"] == pytest.approx(better.mean())


def test_answers_to_another_prompt_keep_their_lengths():
    """Prompts of 1, 2 and 3 tokens with answers of 3, 1 and 2."""
    chosen = np.array([[7, 1, 2, 3, 0, 0], [7, 7, 4, 0, 0, 0], [8, 8, 8, 5, 6, 0]])
    mask = np.array([[0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]])
    found = preference.mismatched({"chosen": jnp.asarray(chosen), "chosen_mask": jnp.asarray(mask)})
    rows = [
        np.asarray(t)[: m.nonzero()[0][-1] + 1]
        for t, m in zip(*map(np.asarray, found.values()), strict=True)
    ]
    assert [row.tolist() for row in rows] == [[7, 4], [7, 7, 5, 6], [8, 8, 8, 1, 2, 3]]
    assert np.asarray(found["other_mask"]).sum(1).tolist() == [1, 2, 3]


def test_a_reward_model_learns_the_differences_of_rewards():
    steps, network = 200, world.network(1, world.NODES + len(world.ANSWERS))

    def init(key, batch):
        params, mutable = network.init(key)
        return {"reward": params}, {"reward": mutable}

    options = reward_model.Options(centring=0.001)
    phase = preference.Phase("reward", partial(reward_model.loss, network, options))
    made = preference.from_network(model(), preference.Options(), RULES)
    made = made._replace(init=init, phases=(phase,), prepare=None)
    keys = {"batch_size": 4096, "schedule.name": "cosine", "duration": f"{steps}_steps"}
    run = assemble(world.config(**keys), spec(), made, jax.devices()[:1])
    with jax.set_mesh(run.mesh):
        state, _ = run.steps(run.init(), jax.device_put(pairs(0, steps, 4096)))
    token = np.concatenate([np.insert(world.ANSWERS, 0, p, axis=1) for p in range(world.PROMPTS)])
    wide = np.pad(token, ((0, 0), (1, 2)))  # padding on both sides
    segment = np.pad(np.ones_like(token), ((0, 0), (1, 2)))
    given = {"token": jnp.asarray(wide), "segment": jnp.asarray(segment)}
    params = {"reward": state.params["reward"]}
    found = np.asarray(reward_model.reward(network, params, {"reward": {}}, given))
    found = found.reshape(world.PROMPTS, -1)
    expected = world.REWARD - world.REWARD.mean(1, keepdims=True)
    np.testing.assert_allclose(found - found.mean(1, keepdims=True), expected, atol=0.1)
    assert np.abs(found.mean(1)).max() < 0.1


def test_a_reward_model_with_learned_positions_reads_whole_rows():
    config = configs.load("configs/reward_model.py:tiny", {"model.lm.positions": "learned"})
    made = reward_model.build(config, spec())

    def loss(batch):
        return made.phases[0].loss(*made.init(jax.random.key(0), batch), batch, None, 0)[0]

    assert jax.eval_shape(loss, pairs(0, 2)).shape == ()


# ---- bad input -----------------------------------------------------------------------------------


def test_a_batch_without_pairs_is_refused():
    words = r"method preference needs pairs of answers; small_world has token"
    with pytest.raises(ConfigError, match=words):
        preference.from_network(world.model(), preference.Options(), RULES)


def test_preferences_are_no_pairs_of_texts():
    words = r"dataset\.name='pairs': its two texts are a better and a worse answer"
    with pytest.raises(ConfigError, match=words):
        prompted.of_pairs(spec(), "{}")
    with pytest.raises(ConfigError, match=words):
        seq2seq.pairs_of(spec(), seq2seq.Options())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "simpo"}, r"loss='simpo': expected one of dpo, ipo, kto, orpo"),
        ({"loss": "ipo", "smoothing": 0.1}, r"smoothing=0\.1: expected 0 with loss='ipo'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        preference.from_network(model(), preference.Options(**options), RULES)


def test_a_loss_without_a_reference_is_refused():
    learner = preference.Learner(model(), preference.Options(), lambda *_: None)
    with pytest.raises(ConfigError, match=r"preference\.loss needs a reference"):
        preference.prepare(learner, {}, {}, pairs(0, 2), None, 0)


def test_a_reference_with_another_tokenizer_is_refused():
    field = world.spec().fields["token"]
    other = answers.lm.tokenizers.make("characters", ["abce"], 1, 0, end=False)
    theirs = field._replace(facts={**field.facts, "tokenizer": other})
    stage = preference.Stage(
        "reference", None, spec()._replace(fields={"chosen": theirs}), None, ()
    )
    with pytest.raises(ConfigError, match=r"stages\.reference: its tokenizer is not that of pairs"):
        answers.reference(model(), {"reference": stage}, spec())
