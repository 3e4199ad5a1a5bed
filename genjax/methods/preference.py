"""Language models that learn from pairs of answers, one preferred: DPO, IPO, KTO, ORPO.

No answer is drawn: the data have two answers to each prompt. All but ORPO compare the policy with a
frozen reference. `preference_losses` has the formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Positive, Rate, Weight, one_of, require
from genjax.config import read_options
from genjax.method import Aux, Batch, DataSpec, Method, Phase, Rules, Stage, Tree
from genjax.methods import answers, lm
from genjax.methods import preference_losses as losses
from genjax.methods.lm import Language

LOSSES = ("dpo", "ipo", "kto", "orpo")
PAIR = ("chosen", "rejected")


class Options(NamedTuple):
    """The `preference` section of a config, and its defaults.

    Attributes:
      loss: "dpo", "ipo", "kto" or "orpo".
      beta: how close the policy stays to the reference: a large one keeps it closer. For "orpo",
        the weight of the odds-ratio term.
      smoothing: probability that a label is wrong, for "dpo".
      desirable: weight of chosen answers, for "kto".
      undesirable: weight of rejected ones.
      nll: weight of the nll per token of chosen answers, added to the loss (Pang et al. 2024, eq.
        1); "orpo" has it with a weight of 1 anyway.
    """

    loss: str = "dpo"
    beta: Positive = 0.1
    smoothing: Rate = 0.0
    desirable: Weight = 1.0
    undesirable: Weight = 1.0
    nll: Weight = 0.0


class Learner(NamedTuple):
    """The network and the settings that every function of the family needs."""

    model: Language
    options: Options
    reference: Callable[..., Array | None]  # (params, mutable, batch) -> logits


def rows(batch: Batch, which: str) -> dict[str, Array]:
    """What the network reads of the prompts with their chosen, or their rejected, answers.

    What is after an answer is padding.
    """
    mask = batch[f"{which}_mask"].astype(bool)
    inside = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1] > 0
    return {"token": batch[which], "segment": inside.astype(jnp.int32), "answer": mask[:, 1:]}


def mismatched(batch: Batch) -> dict[str, Array]:
    """Each prompt with the chosen answer to the next one, for the divergence of KTO."""
    token, mask = batch["chosen"], batch["chosen_mask"].astype(bool)
    begin = jnp.argmax(mask, axis=1)
    other, other_begin = jnp.roll(token, -1, axis=0), jnp.roll(begin, -1)
    other_size = jnp.roll(mask.sum(1), -1)
    place = jnp.arange(token.shape[1])[None] - begin[:, None]  # within the answer
    source = jnp.clip(place + other_begin[:, None], 0, token.shape[1] - 1)
    taken = jnp.take_along_axis(other, source, axis=1)
    answer = (place >= 0) & (place < other_size[:, None])
    return {"other": jnp.where(place >= 0, taken, token), "other_mask": answer}


def both(make: Callable[[Batch], Array | None], batch: Batch, names: tuple[str, ...]) -> dict:
    """log p of whole answers in nats, [B], by the name of the rows; of all rows in one pass.

    `make` gives the logits of rows.
    """
    made = [rows(batch, name) for name in names]
    joined = {name: jnp.concatenate([m[name] for m in made]) for name in made[0]}
    logits = answers.needed(make(joined), "preference.loss")
    total = answers.log_p(logits, joined).sum(1)
    return dict(zip(names, jnp.split(total, len(names)), strict=True))


def prepare(
    learner: Learner, params: Tree, mutable: Tree, batch: Batch, key: Array, step: Array
) -> Batch:
    """The batch with `reference_chosen` and `reference_rejected`, log p under the reference.

    For "kto" it also has the answers of `mismatched`, and `reference_other`.
    """
    kind, names = learner.options.loss, PAIR
    if kind == "orpo":
        return batch
    if kind == "kto":
        batch, names = {**batch, **mismatched(batch)}, (*PAIR, "other")
    found = both(partial(learner.reference, params, mutable), batch, names)
    return {**batch, **{f"reference_{name}": value for name, value in found.items()}}


def terms(
    learner: Learner, params: Tree, mutable: Tree, batch: Batch
) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
    """The loss of each pair, and its metrics.

    They are `accuracy`, whether the chosen answer has the greater reward beta log(p / reference),
    and `margin`, by how much; for "orpo" both are of mean log p. `nll` is that of the chosen answer
    per token. For KTO, all pairs of a microbatch share one divergence.
    """
    o, policy = learner.options, partial(answers.logits_of, learner.model, params, mutable)
    log_p = both(policy, batch, PAIR)
    lengths = {name: jnp.maximum(batch[f"{name}_mask"].sum(1), 1) for name in PAIR}
    means = {name: log_p[name] / lengths[name] for name in PAIR}
    nll = -means["chosen"]
    if o.loss == "orpo":
        value = losses.orpo(means["chosen"], means["rejected"], o.beta) + nll
        rewards = means
    else:
        ratio = {name: log_p[name] - batch[f"reference_{name}"] for name in PAIR}
        margin = ratio["chosen"] - ratio["rejected"]
        rewards = {name: o.beta * value for name, value in ratio.items()}
        if o.loss == "dpo":
            value = losses.dpo(margin, o.beta, o.smoothing)
        elif o.loss == "ipo":
            value = losses.ipo(margin, o.beta)
        else:
            still = partial(
                answers.logits_of, learner.model, jax.lax.stop_gradient(params), mutable
            )
            other = both(still, batch, ("other",))["other"] - batch["reference_other"]
            weights = (o.beta, o.desirable, o.undesirable)
            value = sum(losses.kto(*ratio.values(), jnp.maximum(other.mean(), 0), *weights))
    better = rewards["chosen"] - rewards["rejected"]
    metrics = {"accuracy": (better > 0).astype(jnp.float32), "margin": better, "nll": nll}
    return value + o.nll * nll, metrics


def loss(
    learner: Learner, params: Tree, mutable: Tree, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The mean loss of the pairs, and the means of their metrics: see `terms`."""
    value, metrics = terms(learner, params, mutable, batch)
    means = {name: each.mean() for name, each in metrics.items()}
    return value.mean(), Aux(means, {}, float(len(value)))


def evaluate(
    learner: Learner, params: Tree, mutable: Tree, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"]]:
    """`loss` and the metrics of `terms`, of each pair."""
    batch = prepare(learner, params, mutable, batch, key, jnp.int32(0))
    value, metrics = terms(learner, params, mutable, batch)
    return {"loss": value, **metrics}


def check_pairs(spec: DataSpec, method: str) -> None:
    """Raises ConfigError unless the data are pairs of answers."""
    if not {"chosen", "rejected", "chosen_mask", "rejected_mask"} <= set(spec.fields):
        raise ConfigError(
            f"method {method} needs pairs of answers; {spec.name} has {', '.join(spec.fields)}. "
            "Give config.dataset.name='preferences' with JSON Lines of prompt, chosen and "
            "rejected as config.dataset.path, or 'arithmetic_preferences'."
        )


def from_network(
    model: Language,
    options: Options,
    rules: Rules,
    reference: Callable[..., Array | None] = lambda *_: None,
    documents: str = "padded",
) -> Method:
    """The family with any network of the call signature in `networks/sequence.py`.

    Raises:
      ConfigError: no such loss, or the data are no pairs.
    """
    one_of("config.preference.loss", options.loss, LOSSES)
    require(
        options.loss == "dpo" or not options.smoothing,
        "config.preference.smoothing",
        options.smoothing,
        f"0 with loss={options.loss!r}",
    )
    check_pairs(model.spec, "preference")
    learner = Learner(model, options, reference)
    base = lm.from_network(
        model.network, model.options, model.spec, model.context, rules, documents
    )
    return base._replace(
        phases=(Phase("lm", partial(loss, learner)),),
        evaluate=partial(evaluate, learner),
        prepare=partial(prepare, learner),
        derived=None,
    )


def build(config: ConfigDict, spec: DataSpec, stages: Mapping[str, Stage]) -> Method:
    """The policy with the network of `config.model` on the pairs of `spec`: see `lm.build`.

    Raises:
      ConfigError: the data are no pairs, the reference does not fit, or the config asks for
        something that does not exist.
    """
    options = read_options(config.preference, "preference", Options)
    check_pairs(spec, "preference")
    network, context, rules = lm.parts(config, spec)
    model = Language(network, lm.Options(), spec, context)
    reference = answers.reference(model, stages, spec)
    documents = config.dataset.text.documents
    return lm.with_weights(config, from_network(model, options, rules, reference, documents))
