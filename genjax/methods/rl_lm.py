"""Language models that learn from rewards of what they write: REINFORCE, RLOO, GRPO, PPO.

In each step the model answers prompts of the data, the answers are rewarded, and the model makes
answers with a high reward more probable. All of this is one compiled program. With beta > 0 and a
frozen reference the goal is

  J = E[r(answer)] - beta KL(p || reference),

whose optimum is p*(x) ~ reference(x) exp(r(x) / beta) (Ziegler et al. 2019; Rafailov et al. 2023,
eq. 4). `policy_gradient` has the formulas, `docs/rl.md` the settings of the named algorithms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Positive, Range, Share, Weight, one_of, require
from genjax.config import read_options
from genjax.data.alphabets import ends
from genjax.method import (
    Aux,
    Batch,
    DataSpec,
    Method,
    Phase,
    Ratio,
    Rules,
    Stage,
    Tree,
)
from genjax.methods import answers, lm, rewards
from genjax.methods import policy_gradient as pg
from genjax.methods.answers import Warping
from genjax.methods.lm import Language
from genjax.methods.rewards import Reward
from genjax.nn.functional import Functional
from genjax.sampling.decode import generate

ADVANTAGES = ("reinforce", "rloo", "grpo", "gae")
PENALTIES = ("reward", "k3", "weighted_k3")


class Options(NamedTuple):
    """The `rl_lm` section of a config, and its defaults, which are RLOO.

    Attributes:
      reward: the reward: a function by its dotted path, see `rewards`; "" is the stage "reward".
      host: whether it runs in Python on the host, with NumPy arrays; else it is part of the
        compiled program.
      answers: drawn for each prompt.
      max_new_tokens: the longest answer, A. A prompt has the other positions of a row; of a longer
        one only the end is kept.
      temperature: of the draws, and of p everywhere.
      top_k: see `sampling.logits.Options`, also for the next two.
      top_p: see there.
      min_p: see there.
      advantage: "reinforce", the reward less the mean of all other answers; "rloo", of the other
        answers to the prompt; "grpo", of all answers to it; "gae", by a value network.
      scale: whether to divide by the standard deviation: of the prompt's rewards (grpo), or of all
        advantages of the step (gae).
      average: of the tokens' losses, see `policy_gradient.weights`.
      beta: weight of the divergence from the reference; 0 needs no reference.
      penalty: "reward", it is part of the reward, which maximises J; "k3", of each token's loss, as
        in GRPO; "weighted_k3", the same times the ratio. See `policy_gradient.k3`.
      clip_low: the ratio of p to p when drawn counts from 1 - `clip_low`,
      clip_high: up to 1 + `clip_high`.
      passes: over the answers of a step.
      slices: updates in a pass, each with `batch_size` prompts.
      discount: gamma, of "gae".
      decay: lambda, of "gae".
      value_weight: weight of the value network's loss.
      value_clip: how far a value may move from the old one.
    """

    reward: str = "rewards.exact"
    host: bool = False
    answers: Annotated[int, Range(1, 2**12)] = 8
    max_new_tokens: Annotated[int, Range(1, 2**16)] = 32
    temperature: Positive = 1.0
    top_k: Annotated[int, Range(0, 2**22)] = 0
    top_p: Annotated[float, Range(0, 1, above=True)] = 1.0
    min_p: Annotated[float, Range(0, 1, below=True)] = 0.0
    advantage: str = "rloo"
    scale: bool = False
    average: str = "sum"
    beta: Weight = 0.05
    penalty: str = "reward"
    clip_low: Share = 0.2
    clip_high: Weight = 0.2
    passes: Annotated[int, Range(1, 1000)] = 1
    slices: Annotated[int, Range(1, 1000)] = 1
    discount: Share = 1.0
    decay: Share = 0.95
    value_weight: Weight = 0.5
    value_clip: Positive = 0.2


class Player(NamedTuple):
    """The networks and the settings that every function of the family needs.

    Attributes:
      model: the policy.
      options: see `Options`.
      reward: (params, mutable, tokens, batch) -> [N].
      reference: (params, mutable, batch) -> logits of the reference, or None.
      value: gives the expected reward before each token; only for "gae".
    """

    model: Language
    options: Options
    reward: Reward
    reference: Callable[..., Array | None]
    value: Functional | None = None

    @property
    def warping(self) -> Warping:
        """How tokens are drawn."""
        return Warping(*(getattr(self.options, name) for name in Warping._fields))


# ---- answers -------------------------------------------------------------------------------------


def prompts(batch: Batch, width: int) -> Int[Array, "B P"]:
    """The tokens of each row before its answer, the last `width`, with -1 on the left."""
    length = jnp.argmax(batch["loss_mask"], axis=1)[:, None]
    place = length - width + jnp.arange(width)
    found = jnp.take_along_axis(batch["token"], jnp.maximum(place, 0), axis=1)
    return jnp.where(place >= 0, found, -1).astype(jnp.int32)


def answered(
    player: Player, params: Tree, mutable: Tree, batch: Batch, key: Array | None
) -> tuple[Int[Array, "N S"], dict[str, Array]]:
    """Prompts with an answer to each, and the batch with its `prompt`; no key is greedy."""
    o, model = player.options, player.model
    width = batch["token"].shape[1] - o.max_new_tokens
    batch = {**batch, "prompt": prompts(batch, width)}
    tokens = generate(
        model.bound(params, mutable),
        batch["prompt"],
        key,
        max_new_tokens=o.max_new_tokens,
        context=model.context,
        eos=ends(model.spec.generated.facts["special"]),
        processors=player.warping.chain,
    )
    return tokens, batch


# ---- one step ------------------------------------------------------------------------------------


def rollout(
    player: Player, params: Tree, mutable: Tree, batch: Batch, key: Array, step: Array
) -> dict[str, Array]:
    """Answers, and all that the loss needs to know about them: see `judged`."""
    repeated = {name: jnp.repeat(rows, player.options.answers, 0) for name, rows in batch.items()}
    tokens, repeated = answered(player, params, mutable, repeated, key)
    return judged(player, params, mutable, tokens, repeated)


def judged(
    player: Player, params: Tree, mutable: Tree, tokens: Int[Array, "N S"], batch: Batch
) -> dict[str, Array]:
    """The batch of the phases: rows of the network, one number per token, and the rewards.

    Each number per token belongs to the token after it, [N, S - 1]: `old` is log p when drawn,
    `reference` that of the reference, `advantage` and `weight` are those of the loss, `value` and
    `target` those of the value network. `support`: see `answers.support`. `divisor` and `reward`
    have one number per row. An answer to an empty prompt has no weight.
    """
    o = player.options
    made = answers.rows(tokens, batch["prompt"].shape[1])
    mask = made["answer"]
    logits = answers.logits_of(player.model, params, mutable, made)
    if player.warping.truncates:
        made["support"] = answers.support(logits, made, player.warping)
    made["old"] = answers.log_p(logits, made, player.warping)
    penalty = jnp.zeros(mask.shape)
    if o.beta:
        base = answers.needed(player.reference(params, mutable, made), "rl_lm.beta")
        made["reference"] = answers.log_p(base, made, player.warping)
        if o.penalty == "reward":
            penalty = o.beta * (made["old"] - made["reference"])
    made["reward"] = reward = player.reward(params, mutable, tokens, batch)
    if o.advantage == "gae":
        made["value"] = values(player, params, mutable, made)
        rewards = jnp.where(pg.last_of(mask), reward[:, None], 0.0) - penalty
        advantage = pg.gae(rewards, made["value"], mask, o.discount, o.decay)
        made["target"] = advantage + made["value"]
        made["advantage"] = pg.whiten(advantage, mask) if o.scale else advantage
    else:
        total, group = reward - penalty.sum(1), o.answers
        if o.advantage == "grpo":
            advantage = pg.group_relative(total, group, o.scale)
        else:
            others = group if o.advantage == "rloo" else len(total)
            advantage = pg.leave_one_out(total, others)
        made["advantage"] = jnp.where(mask, advantage[:, None], 0.0)
    made["weight"], made["divisor"] = pg.weights(mask, o.average, o.max_new_tokens)
    return made


def values(player: Player, params: Tree, mutable: Tree, batch: Batch) -> Float[Array, "N T"]:
    """The value network's estimate before each token of an answer; 0 elsewhere."""
    (found, _), _ = player.value.apply(
        params["value"], mutable["value"], batch["token"][:, :-1], segment=batch["segment"][:, :-1]
    )
    return jnp.where(batch["answer"], found[..., 0], 0.0)


def loss(
    player: Player, params: Tree, mutable: Tree, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The clipped loss, the penalty that is part of it, and the value network's.

    All are averaged over tokens as `policy_gradient.weights` says, so that documents may be packed.
    """
    o, mask = player.options, batch["answer"]
    logits = answers.logits_of(player.model, params, mutable, batch)
    new = answers.log_p(logits, batch, player.warping)
    log_ratio = new - batch["old"]
    each = pg.policy_loss(log_ratio, batch["advantage"], o.clip_low, o.clip_high)
    ratio, tokens, given = jnp.exp(log_ratio), jnp.maximum(mask.sum(), 1), mask.any(1)
    rows = jnp.maximum(given.sum(), 1)
    outside = (ratio < 1 - o.clip_low) | (ratio > 1 + o.clip_high)
    metrics = {
        "reward": jnp.where(given, batch["reward"], 0).sum() / rows,
        "ratio": jnp.where(mask, ratio, 0).sum() / tokens,
        "clipped": (mask & outside).sum() / tokens,
        "length": mask.sum() / rows,
        "entropy": -batch["old"].sum() / tokens,
    }
    if o.beta:
        distance = new - batch["reference"]
        if o.penalty != "reward":
            moved = ratio if o.penalty == "weighted_k3" else 1.0
            each += o.beta * moved * pg.k3(distance)
        metrics["kl"] = (batch["old"] - batch["reference"]).sum() / rows
    if o.advantage == "gae":
        found = values(player, params, mutable, batch)
        error = pg.value_loss(found, batch["value"], batch["target"], o.value_clip)
        each += o.value_weight * error
        metrics["value_loss"] = jnp.where(mask, error, 0).sum() / tokens
    divisor = batch["divisor"].sum()
    return (batch["weight"] * each).sum() / jnp.maximum(divisor, 1.0), Aux(metrics, {}, divisor)


def evaluate(
    player: Player, params: Tree, mutable: Tree, batch: Batch, key: Array
) -> dict[str, Ratio]:
    """`reward` of an answer drawn as in training, `greedy_reward`, `length`; `kl` in nats.

    `kl` is log(p / reference) of the drawn answer, if there is a reference. Rows with an empty
    prompt do not count.
    """
    tokens, given = answered(player, params, mutable, batch, key)
    greedy, _ = answered(player, params, mutable, batch, None)
    made = answers.rows(tokens, given["prompt"].shape[1])
    metrics = {
        "reward": player.reward(params, mutable, tokens, given),
        "greedy_reward": player.reward(params, mutable, greedy, given),
        "length": made["answer"].sum(1).astype(jnp.float32),
    }
    base = player.reference(params, mutable, made) if player.options.beta else None
    if base is not None:
        logits = answers.logits_of(player.model, params, mutable, made)
        if player.warping.truncates:
            made["support"] = answers.support(logits, made, player.warping)
        log_p = (answers.log_p(found, made, player.warping) for found in (logits, base))
        metrics["kl"] = jnp.subtract(*log_p).sum(1)
    counts = made["answer"].any(1)
    return {
        name: Ratio(jnp.where(counts, value, 0.0), counts.astype(jnp.float32))
        for name, value in metrics.items()
    }


# ---- the family ----------------------------------------------------------------------------------


def from_networks(
    model: Language,
    options: Options,
    rules: Rules,
    reward: Reward,
    reference: Callable[..., Array | None] = lambda *_: None,
    value: Functional | None = None,
    documents: str = "padded",
) -> Method:
    """The family with any networks of the call signature in `networks/sequence.py`.

    The value network gives one number for each position.

    Raises:
      ConfigError: options that do not fit together.
    """
    check(model, options)
    player = Player(model, options, reward, reference, value)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        networks = {"lm": model.network} | ({"value": value} if value else {})
        made = {
            name: network.init(jax.random.fold_in(key, index))
            for index, (name, network) in enumerate(networks.items())
        }
        return {n: params for n, (params, _) in made.items()}, {n: m for n, (_, m) in made.items()}

    trains = ("lm", "value") if value else "lm"
    phase = Phase(trains, partial(loss, player), repeat=options.slices, passes=options.passes)
    base = lm.from_network(
        model.network, model.options, model.spec, model.context, rules, documents
    )
    return base._replace(
        init=init,
        phases=(phase,),
        evaluate=partial(evaluate, player),
        prepare=partial(rollout, player),
        derived=None,
    )


def check(model: Language, options: Options) -> None:
    """Refuses options and data that do not fit together.

    Raises:
      ConfigError: they do not.
    """
    one_of("config.rl_lm.advantage", options.advantage, ADVANTAGES)
    one_of("config.rl_lm.average", options.average, pg.AVERAGES)
    one_of("config.rl_lm.penalty", options.penalty, PENALTIES)
    fields, name = model.spec.fields, model.spec.name
    if model.spec.target != "token" or "loss_mask" not in fields:
        raise ConfigError(
            f"method rl_lm needs prompts; {name} has none. Give texts with "
            "config.dataset.text.prompt_field and documents='padded', or the data set 'problems'."
        )
    groups = options.advantage in ("rloo", "grpo")
    expected = f"at least 2: {options.advantage} compares the answers to a prompt"
    require(not groups or options.answers > 1, "config.rl_lm.answers", options.answers, expected)
    scaled = options.advantage in ("grpo", "gae")
    expected = f"False with advantage={options.advantage!r}, which is not divided by anything"
    require(scaled or not options.scale, "config.rl_lm.scale", options.scale, expected)
    width = fields["token"].shape[0]
    expected = f"below dataset.text.length + 1 = {width}, to leave room for a prompt"
    new = options.max_new_tokens
    require(new < width, "config.rl_lm.max_new_tokens", new, expected)


def build(config: ConfigDict, spec: DataSpec, stages: Mapping[str, Stage]) -> Method:
    """The policy with the network of `config.model` on the prompts of `spec`: see `lm.build`.

    The value network of "gae" has the same options, and one output.

    Raises:
      ConfigError: the data have no prompts, a stage does not fit, or the config asks for something
        that does not exist.
    """
    options = read_options(config.rl_lm, "rl_lm", Options)
    network, context, rules = lm.parts(config, spec)
    model = Language(network, lm.Options(), spec, context)
    check(model, options)
    documents = config.dataset.text.documents
    require(documents == "padded", "config.dataset.text.documents", documents, "'padded'")
    value = lm.parts(config, spec, outputs=1).network if options.advantage == "gae" else None
    method = from_networks(
        *(model, options, rules, rewards.find(options.reward, options.host, stages, spec)),
        answers.reference(model, stages, spec),
        value,
        documents,
    )
    return lm.with_weights(config, method)
