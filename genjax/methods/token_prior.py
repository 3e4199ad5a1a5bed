"""An autoregressive prior over the tokens of a first stage (van den Oord et al. 2017, section 3.3).

p(tokens) is a product over positions, each token conditioned on the earlier ones. With the first
stage's decoder it generates images: see `training/stages.py`, which combines the two. A text may
come before the image, as in DALL-E (Ramesh et al. 2021) and Parti (Yu et al. 2022).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from genjax.checks import Finite, Range, Rate, Share, is_number
from genjax.config import ConfigError, construct, read_options, require
from genjax.method import (
    Aux,
    Batch,
    DataSpec,
    Field,
    Method,
    Phase,
    Ratio,
    Rules,
    Stage,
    Tree,
    find_module,
)
from genjax.modalities.label import label_condition, required_classes
from genjax.modalities.text import text_condition
from genjax.nn.functional import Functional, functional
from genjax.sampling import logits as processors
from genjax.sampling.conditions import Condition, complete, token_conditions
from genjax.sampling.logits import Processor, require_temperature, whole_number

RERANKER = "clip"  # the stage that chooses among candidates
MOST_CANDIDATES = 1024


class Options(NamedTuple):
    """The `token_prior` section of a config, and its defaults.

    Attributes:
      class_conditional: whether the prior is conditioned on the label.
      conditions: the name of the text of the data that the prior is conditioned on, as in
        ("text",); () for none.
      text_weight: weight w of the text's own loss; that of the image is 1 - w. DALL-E has 1/8
        (Ramesh et al. 2021, section 2.2); with 0 the text is not predicted.
      label_dropout: share of training examples whose conditions are hidden, for guidance.
      guidance: default scale of classifier-free guidance; 1 is none.
      rerank: default number of candidates for each sample: see `sample`.
    """

    class_conditional: bool = False
    conditions: tuple[str, ...] = ()
    text_weight: Share = 0.125
    label_dropout: Rate = 0.0
    guidance: Finite = 1.0
    rerank: Annotated[int, Range(1, MOST_CANDIDATES)] = 1


class LogLikelihood(NamedTuple):
    """Log-probabilities of tokens given the earlier ones and, for those of the image, the text.

    Attributes:
      image: of the tokens of the image, in nats.
      text: of those of the text, 0 for padding; None if the network does not predict them.
      count: tokens of each text, 0 if it is hidden; None likewise.
    """

    image: Float[Array, "B S"]
    text: Float[Array, "B T"] | None = None
    count: Int[Array, "B"] | None = None


# (params, mutable, codes [B n ...], captions [B T], n) -> codes [B ...]
Best = Callable[[dict, dict, Array, Array, int], Array]


class Prior(NamedTuple):
    """The network and the settings that every function of the family needs.

    Attributes:
      network: (tokens [B, S], label, text=, seen=) -> (logits [B, S, K], logits of the text or
        None); one token: see `draw`.
      options: the `token_prior` section.
      spec: describes the data.
      best: chooses among candidates; None without a stage that can.
    """

    network: Functional
    options: Options
    spec: DataSpec
    best: Best | None = None

    @property
    def conditions(self) -> dict[str, Field]:
        """The fields that the prior is conditioned on."""
        o = self.options
        texts = {name: self.spec.fields[name] for name in o.conditions}
        return label_condition(self.spec, o.class_conditional) | texts

    def conditioning(
        self, values: Mapping[str, Array], hidden: Bool[Array, "B"] | None = None
    ) -> dict[str, Array]:
        """The network's arguments for conditions, which the `hidden` examples do not have."""
        return token_conditions(self.conditions, values, hidden)

    def log_likelihood(
        self,
        params: Tree,
        mutable: Tree,
        batch: Batch,
        hidden: Bool[Array, "B"] | None = None,
        **training,
    ) -> tuple[LogLikelihood, Tree]:
        """The log-likelihood of each token, and the new mutable state."""
        index = batch[self.spec.target].reshape(len(batch[self.spec.target]), -1)
        cond = self.conditioning(batch, hidden)
        outputs, mutable = self.network.apply(params, mutable, index, **cond, **training)
        logits, of_text = outputs
        log_p = LogLikelihood(-optax.softmax_cross_entropy_with_integer_labels(logits, index))
        if of_text is None:
            return log_p, mutable
        each = -optax.softmax_cross_entropy_with_integer_labels(of_text, cond["text"])
        seen = cond["seen"]
        return log_p._replace(text=jnp.where(seen, each, 0.0), count=seen.sum(1)), mutable


def loss(
    prior: Prior, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """Mean negative log-likelihood per token of the image, in nats; with the text's, if predicted.

    It is then 1 - w times that of the image plus w times that of the text, per token of each text
    and with 0 for a hidden one (Ramesh et al. 2021, section 2.2).
    """
    o, hidden = prior.options, None
    if o.label_dropout and prior.conditions:
        key, key_hidden = jax.random.split(key)
        count = len(batch[prior.spec.target])
        hidden = jax.random.bernoulli(key_hidden, o.label_dropout, (count,))
    variables = (params["prior"], mutable["prior"])
    log_p, changed = prior.log_likelihood(*variables, batch, hidden, key=key, train=True)
    value = nll = -log_p.image.mean()
    metrics = {"bits_per_token": nll / math.log(2)}
    if log_p.text is not None:
        each = -log_p.text.sum(1) / jnp.maximum(log_p.count, 1)
        value = (1 - o.text_weight) * nll + o.text_weight * each.mean()
        metrics["text_loss"] = each.sum() / jnp.maximum((log_p.count > 0).sum(), 1)
    return value, Aux(metrics, {"prior": changed}, float(len(log_p.image)))


def evaluate(
    prior: Prior, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"] | Ratio]:
    """Per example: `nll` summed over the tokens of the image, in nats, and `bits_per_token`.

    `text_loss` is the negative log-likelihood per token of the texts, in nats, if they are
    predicted.
    """
    log_p, _ = prior.log_likelihood(params["prior"], mutable["prior"], batch)
    image = log_p.image
    metrics = {"nll": -image.sum(-1), "bits_per_token": -image.mean(-1) / math.log(2)}
    if log_p.text is not None:
        metrics["text_loss"] = Ratio(-log_p.text.sum(1), log_p.count.astype(jnp.float32))
    return metrics


def sample(
    prior: Prior,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance: float | None = None,
    rerank: int | None = None,
) -> Int[Array, "B h w Q"]:
    """Draws tokens one by one; None takes the value of the config's `token_prior` section.

    Args:
      prior: the network.
      params: its parameters, and those of the stages.
      mutable: its mutable state, likewise.
      key: random key of the draws.
      num: samples to draw.
      condition: `label`; without it, each class in turn. The text, if the prior has one.
      temperature: divides the logits; 1 draws from the model.
      top_k: draws from the `top_k` most probable tokens; 0 from all.
      top_p: draws from the smallest set of tokens with this probability; 1 from all.
      guidance: w of `processors.guided` (Yu et al. 2022, section 2.3); other values than 1 double
        the network's batch.
      rerank: candidates drawn for each sample, of which the one is kept whose image and text the
        stage `clip` finds most alike (Ramesh et al. 2021, section 2.6); 1 draws no others.

    Raises:
      ConfigError: a condition that the prior does not have, or one is missing; an option out of
        range, or one that this prior does not support.
    """
    o, values = prior.options, prior.spec.generated.facts["vocabulary_size"]
    guidance = o.guidance if guidance is None else guidance
    rerank = o.rerank if rerank is None else rerank
    require_temperature("--temperature", temperature)
    require(
        whole_number(top_k) and 0 <= top_k <= values,
        "--top_k",
        top_k,
        f"a whole number from 0 to {values}",
    )
    chain = processors.chain(processors.Options(float(temperature), top_k, top_p))
    _check_guidance(o, guidance)
    fits = whole_number(rerank) and 1 <= rerank <= MOST_CANDIDATES
    require(fits, "--rerank", rerank, f"a whole number from 1 to {MOST_CANDIDATES}")
    if rerank > 1 and prior.best is None:
        raise ConfigError(
            f"--rerank={rerank}: the run has no stage {RERANKER!r} that compares pictures with "
            f"captions, or no captions. Train it with --config.stages.{RERANKER}=RUNDIR, the "
            "folder of a run of configs/clip.py on the same data, or leave --rerank out."
        )
    setting, key_label = "token_prior.class_conditional=True", jax.random.fold_in(key, 0)
    known = complete(prior.spec, prior.conditions, num, condition, key_label, setting)
    known = {name: jnp.repeat(value, rerank, axis=0) for name, value in known.items()}
    key_tokens = jax.random.fold_in(key, 1)
    drawn = draw(prior, params, mutable, key_tokens, num * rerank, known, chain, float(guidance))
    drawn = drawn.reshape(num * rerank, *prior.spec.generated.shape)
    if rerank == 1:
        return drawn
    return prior.best(params, mutable, drawn, condition[o.conditions[0]], rerank)


def draw(
    prior: Prior,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    known: Mapping[str, Array],
    chain: tuple[Processor, ...],
    guidance: float,
) -> Int[Array, "B S"]:
    """Draws the tokens of `num` images in order, for the conditions `known`.

    The logits are those of `processors.guided`, then those of each processor of `chain`.
    """
    keys = jax.random.split(key, shape_size(prior))
    cond, twice = prior.conditioning(known), guidance != 1
    if twice:
        without = prior.conditioning(known, jnp.ones(num, bool))
        cond = {name: jnp.concatenate([cond[name], without[name]]) for name in cond}
    variables, history = (params["prior"], mutable["prior"]), jnp.zeros((num, 0), jnp.int32)

    def one(index: Array, cache: Tree, position: Array | int) -> tuple[Array, Tree]:
        index = jnp.tile(index, 2) if twice else index
        (logits, cache), _ = prior.network.apply(
            *variables, index, **cond, position=position, cache=cache
        )
        logits = processors.guided(*jnp.split(logits, 2), guidance) if twice else logits
        for process in chain:
            logits = process(logits, history)
        return jax.random.categorical(keys[position], logits).astype(jnp.int32), cache

    def step(carry: tuple[Array, Tree], position: Array) -> tuple[tuple[Array, Tree], Array]:
        carry = one(*carry, position)
        return carry, carry[0]

    first = one(jnp.zeros(num, jnp.int32), None, 0)
    _, rest = jax.lax.scan(step, first, jnp.arange(1, len(keys)))
    return jnp.concatenate([first[0][None], rest]).T


def shape_size(prior: Prior) -> int:
    """The number of tokens per example."""
    return math.prod(prior.spec.generated.shape)


def _check_guidance(o: Options, guidance: float) -> None:
    """Raises `ConfigError` if the model cannot be guided so."""
    valid = is_number(guidance) and guidance >= 0
    require(valid, "guidance", guidance, "a number from 0")
    if guidance != 1 and not (o.label_dropout and (o.class_conditional or o.conditions)):
        raise ConfigError(
            f"guidance={guidance}: the model must have been trained with token_prior.label_dropout "
            "> 0 and with token_prior.conditions or .class_conditional to be guided. Use "
            "guidance=1."
        )


# ---- reranking -----------------------------------------------------------------------------------


def most_similar(images: Float[Array, "B N E"], texts: Float[Array, "B E"]) -> Int[Array, "B"]:
    """For each text, which of its N images has the vector with the highest cosine to the text's.

    Of equal ones it is the first.
    """
    products = jnp.einsum("bne,be->bn", images, texts, precision="highest")
    lengths = jnp.linalg.norm(images, axis=-1) * jnp.linalg.norm(texts, axis=-1)[:, None]
    return (products / jnp.maximum(lengths, 1e-12)).argmax(1)


def reranker(config: ConfigDict, options: Options, stages: Mapping[str, Stage]) -> Best | None:
    """The function that chooses among candidates by the stage `clip`; None without one.

    Raises:
      ConfigError: the stage does not compare pictures of this size with this text.
    """
    if RERANKER not in stages or not options.conditions or not config.dataset.codes:
        return None
    (name,), judge, coder = options.conditions, stages[RERANKER], stages[config.dataset.codes]
    theirs, ours = judge.spec.fields, coder.spec.generated
    shape = theirs["image"].shape if "image" in theirs else None
    if judge.method.apply is None or shape != ours.shape or name not in theirs:
        raise ConfigError(
            f"config.stages.{RERANKER}={config.stages[RERANKER]!r}: expected a run of method clip "
            f"on images {tuple(ours.shape)} with captions {name!r}; it is one of method "
            f"{judge.config.method} on {', '.join(f'{n} {f.shape}' for n, f in theirs.items())}."
        )
    (known,), (longest,) = theirs[name].shape, coder.spec.fields[name].shape
    key, expected = f"config.stages.{RERANKER}", f"a CLIP of captions of at least {longest} tokens"
    require(known >= longest, key, config.stages[RERANKER], f"{expected}; it knows {known}")

    def best(
        params: dict, mutable: dict, codes: Array, captions: Int[Array, "B T"], count: int
    ) -> Array:
        images = coder.decode(params, mutable, codes)
        vectors = judge.apply(params, mutable, {"image": images, name: captions})
        candidates = vectors["image"].reshape(len(captions), count, -1)
        chosen = most_similar(candidates, vectors[name])
        codes = codes.reshape(len(captions), count, *codes.shape[1:])
        return codes[jnp.arange(len(captions)), chosen]

    return best


# ---- the family ----------------------------------------------------------------------------------


def from_network(
    network: Functional,
    options: Options,
    spec: DataSpec,
    rules: Rules,
    best: Best | None = None,
) -> Method:
    """The prior with any network that has the call signature in `Prior`."""
    prior = Prior(network, options, spec, best)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = network.init(key)
        return {"prior": params}, {"prior": mutable}

    return Method(
        init=init,
        phases=(Phase("prior", partial(loss, prior)),),
        evaluate=partial(evaluate, prior),
        sample=partial(sample, prior),
        rules=rules,
        conditions=prior.conditions,
    )


def build(
    config: ConfigDict, spec: DataSpec, stages: Mapping[str, Stage] = MappingProxyType({})
) -> Method:
    """The prior with the network of `config.model` on the tokens of `spec`.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Network` and
    `RULES`; `config.model.prior` are its options.

    Raises:
      ConfigError: the data are not tokens, or the config asks for something that does not exist.
    """
    code = spec.generated
    if code.kind != "code" or not code.facts.get("vocabulary_size"):
        target = "codes of real numbers" if code.kind == "code" else f"{spec.target} ({code.kind})"
        raise ConfigError(
            f"method token_prior needs tokens; the target of {spec.name} is {target}. Set "
            "dataset.codes to a stage that has tokens, such as a VQ-VAE (configs/vqvae.py), and "
            "give that stage: --config.stages.autoencoder=RUNDIR."
        )
    options = read_options(config.token_prior, "token_prior", Options)
    conditional = options.class_conditional
    classes = required_classes(spec, "token_prior.class_conditional=True", conditional)
    texts = text_condition(spec, "token_prior.conditions", options.conditions)
    _check_guidance(options, options.guidance)
    module = find_module(
        "model.network", config.model.network, "genjax.networks", "Network", "RULES"
    )
    of_text = {}
    for field in texts.values():
        takes = "text_length" in inspect.signature(module.Network.__init__).parameters
        expected = "a network that reads texts, such as token_transformer"
        require(takes, "config.model.network", config.model.network, expected)
        of_text = {
            "text_length": field.shape[0],
            "text_vocabulary_size": field.facts["vocabulary_size"],
            "text_logits": options.text_weight > 0,
        }

    def network(rngs):
        return construct(
            module.Network,
            config.model.prior,
            "model.prior",
            shape=code.shape,
            vocabulary_size=code.facts["vocabulary_size"],
            num_classes=classes + bool(classes and options.label_dropout),
            dtype=jnp.dtype(config.precision),
            rngs=rngs,
            **of_text,
        )

    best = reranker(config, options, stages)
    return from_network(functional(network), options, spec, module.RULES, best)
