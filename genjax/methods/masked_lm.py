"""Masked language models: BERT (Devlin et al. 2018), and ELECTRA (Clark et al. 2020) as an option.

Some words of a text are hidden, and an encoder predicts them from all others. With the objective
"replaced" a small generator does that, its guesses are put in their places, and the encoder says of
every token whether it was replaced. The masks are drawn anew in each step ("dynamic masking", Liu
et al. 2019), from the step's key: they depend on the seed and the step alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range, Rate, Weight, one_of, require
from genjax.config import construct, read_options
from genjax.data.alphabets import ends
from genjax.data.windows import targets_of
from genjax.interop import bert, pretrained
from genjax.method import (
    Aux,
    Batch,
    DataSpec,
    Field,
    Method,
    Phase,
    Ratio,
    Rules,
    TextEncoder,
    Tree,
    find_module,
)
from genjax.methods.lm import prompt_field
from genjax.networks.encoder import Encoded
from genjax.nn.functional import Functional, functional
from genjax.sampling import logits as processors
from genjax.sampling import masking, unmasking
from genjax.sampling.categorical import categorical
from genjax.sampling.conditions import Condition
from genjax.sampling.prompts import Gaps

OBJECTIVES = ("masked", "replaced")
DECODINGS = ("confidence", "first_hitting")
MOST_STEPS = 2**20
HEAD = ("transform", "head_norm", "head")  # parts of an encoder that predict tokens
SHARED = ("embed", "types", "positions")  # what ELECTRA's generator has of the encoder

Share = Annotated[float, Range(0, 1)]


class Options(NamedTuple):
    """The `masked_lm` section of a config, and its defaults.

    Attributes:
      objective: "masked" (BERT) or "replaced" (ELECTRA).
      mask_rate: share of the tokens that are chosen, to be predicted.
      replace_mask: share of the chosen tokens that the mask replaces.
      replace_random: share of the chosen tokens that a random token replaces. The others stay.
      whole_words: whether all tokens of a word are chosen together.
      replaced_weight: weight of the encoder's loss beside the generator's (Clark et al. 2020, eq.
        in section 2).
      pseudo_positions: tokens of an example that evaluations mask alone, for the
        pseudo-perplexity; 0: none.
    """

    objective: str = "masked"
    mask_rate: Rate = 0.15
    replace_mask: Share = 0.8
    replace_random: Share = 0.1
    whole_words: bool = True
    replaced_weight: Weight = 50.0
    pseudo_positions: Annotated[int, Range(0, 2**20)] = 0


class Masked(NamedTuple):
    """The networks and the settings that every function of the family needs."""

    encoder: Functional  # (tokens [B, T], segment=) -> Encoded
    generator: Functional | None  # of the objective "replaced"
    options: Options
    spec: DataSpec
    vocabulary: masking.Vocabulary
    begin: tuple[int, ...] = ()  # the tokens that each text begins with

    @property
    def filler(self) -> str:
        """The name of the network that predicts hidden tokens."""
        return "encoder" if self.generator is None else "generator"

    def predict(
        self, params: dict, mutable: dict, x: Array, segment: Array | None, **training
    ) -> tuple[Float[Array, "B T V"], dict]:
        """Logits of each token, and the state of the network that predicts them."""
        if self.generator is None:
            out, changed = self.encoder.apply(
                params["encoder"], mutable["encoder"], x, segment=segment, **training
            )
        else:
            shared = {name: params["encoder"][name] for name in SHARED if name in params["encoder"]}
            out, changed = self.generator.apply(
                {**params["generator"], **shared},
                *(mutable["generator"], x),
                segment=segment,
                **training,
            )
        return out.logits, {self.filler: changed}

    def encode(
        self, params: dict, mutable: dict, x: Array, segment: Array | None, **training
    ) -> tuple[Encoded, dict]:
        """What the encoder makes of tokens, and its new state."""
        out, changed = self.encoder.apply(
            params["encoder"], mutable["encoder"], x, segment=segment, **training
        )
        return out, {"encoder": changed}

    def examples(
        self, batch: Batch
    ) -> tuple[Int[Array, "B T"], Bool[Array, "B T"], Int[Array, "B T"] | None]:
        """Tokens; which of them may be chosen; and the text that each belongs to.

        The first token of a document of a row (the same in all), special tokens, tokens outside
        `loss_mask` and padding are never chosen.
        """
        token, segment = batch[self.spec.target], batch.get("segment")
        counts = jnp.asarray(self.vocabulary.is_text)[token]
        if segment is not None:
            counts = counts & jnp.pad(targets_of(segment), ((0, 0), (1, 0)))
        if "loss_mask" in batch:
            counts = counts & batch["loss_mask"].astype(bool)
        return token, counts, segment


def capacity(length: int, rate: float) -> int:
    """How many positions of a text are predicted in training; few texts have more chosen ones."""
    return min(length, math.ceil((1.5 * rate + 0.05) * length))


class Guess(NamedTuple):
    """What is predicted at P positions of each text.

    Attributes:
      at: the positions; those that were not chosen are the last ones.
      token: the tokens there.
      chosen: whether the position was chosen.
      logits: of the tokens there, given the text with the chosen tokens hidden.
    """

    at: Int[Array, "B P"]
    token: Int[Array, "B P"]
    chosen: Bool[Array, "B P"]
    logits: Float[Array, "B P V"]

    @property
    def nll(self) -> Float[Array, "B P"]:
        """-log p of the tokens, in nats."""
        return optax.softmax_cross_entropy_with_integer_labels(self.logits, self.token)

    @property
    def correct(self) -> Bool[Array, "B P"]:
        """Whether the most probable token is the right one."""
        return self.logits.argmax(-1) == self.token


def guess(
    model: Masked, params: dict, mutable: dict, batch: Batch, mask_key: Array, **training
) -> tuple[Guess, dict]:
    """Hides tokens and predicts them; in training at most `capacity` of a text."""
    o, (key_draw, key_kind) = model.options, jax.random.split(mask_key)
    token, counts, segment = model.examples(batch)
    draw = masking.draws(model.vocabulary, key_draw, token, counts, segment, o.whole_words)
    shares = (o.replace_mask, o.replace_random)
    chosen = draw < o.mask_rate
    x = masking.corrupted(model.vocabulary, key_kind, token, chosen, *shares)
    P = capacity(token.shape[1], o.mask_rate) if training else token.shape[1]
    at = jnp.argsort(draw, axis=1)[:, :P]
    logits, changed = model.predict(params, mutable, x, segment, at=at, **training)
    there = (jnp.take_along_axis(a, at, axis=1) for a in (token, chosen))
    return Guess(at, *there, logits), changed


def mean(values: Array, among: Bool[Array, "B P"]) -> Float[Array, ""]:
    """The mean over some positions; 0 if there are none."""
    return jnp.where(among, values, 0.0).sum() / jnp.maximum(among.sum(), 1)


def loss(
    model: Masked, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """Mean -log p of the chosen tokens, in nats; a microbatch counts by the number of them."""
    key_mask, key_net = jax.random.split(key)
    found, changed = guess(model, params, mutable, batch, key_mask, key=key_net, train=True)
    metrics = {"accuracy": mean(found.correct, found.chosen)}
    weight = found.chosen.sum().astype(jnp.float32)
    return mean(found.nll, found.chosen), Aux(metrics, changed, weight)


class Verdict(NamedTuple):
    """What the encoder says of each token of a text some of whose tokens were replaced.

    Attributes:
      replaced: whether the token was.
      loss: binary cross entropy of the encoder, in nats.
      correct: whether the encoder holds the likelier for true.
      seen: whether it is a token, not padding.
    """

    replaced: Bool[Array, "B T"]
    loss: Float[Array, "B T"]
    correct: Bool[Array, "B T"]
    seen: Bool[Array, "B T"]


def detect(
    model: Masked,
    params: dict,
    mutable: dict,
    batch: Batch,
    draw_key: Array,
    found: Guess,
    **training,
) -> tuple[Verdict, dict]:
    """Puts draws of the generator in the places of the chosen tokens, and asks the encoder.

    A draw that equals the token has replaced nothing. No gradient goes through the draws.
    """
    token, _, segment = model.examples(batch)
    drawn = categorical(draw_key, found.logits)
    drawn = jnp.where(found.chosen, drawn, found.token)
    x = token.at[jnp.arange(len(token))[:, None], found.at].set(drawn)
    out, changed = model.encode(params, mutable, x, segment, **training)
    replaced = x != token
    value = optax.sigmoid_binary_cross_entropy(out.logits, replaced.astype(jnp.float32))
    seen = jnp.ones(token.shape, bool) if segment is None else segment > 0
    return Verdict(replaced, value, (out.logits > 0) == replaced, seen), changed


def joint_loss(
    model: Masked, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The generator's `loss` plus `replaced_weight` times the encoder's mean over all tokens.

    A microbatch counts by the number of its tokens (Clark et al. 2020, section 2).
    """
    key_mask, key_draw, *keys = jax.random.split(key, 4)
    found, state = guess(model, params, mutable, batch, key_mask, key=keys[0], train=True)
    said, changed = detect(model, params, mutable, batch, key_draw, found, key=keys[1], train=True)
    metrics = {
        "masked_loss": mean(found.nll, found.chosen),
        "accuracy": mean(found.correct, found.chosen),
        "detection_loss": mean(said.loss, said.seen),
        "detection_accuracy": mean(said.correct, said.seen),
    }
    value = metrics["masked_loss"] + model.options.replaced_weight * metrics["detection_loss"]
    return value, Aux(metrics, state | changed, said.seen.sum().astype(jnp.float32))


def evaluate(
    model: Masked, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Ratio]:
    """`loss` in nats and `accuracy`, both per chosen token, with the masks of training.

    With the objective "replaced" these are the generator's; the encoder has `detection_loss` and
    `detection_accuracy` per token, and `replaced` is the share of tokens that were replaced. With
    `pseudo_positions` there are the metrics of `one_by_one`.
    """
    key_mask, key_draw, key_pseudo = jax.random.split(key, 3)
    found, _ = guess(model, params, mutable, batch, key_mask)

    def ratio(values: Array, among: Array) -> Ratio:
        return Ratio(jnp.where(among, values, 0.0).sum(-1), among.sum(-1).astype(jnp.float32))

    metrics = {
        "loss": ratio(found.nll, found.chosen),
        "accuracy": ratio(found.correct, found.chosen),
    }
    if model.generator is not None:
        said, _ = detect(model, params, mutable, batch, key_draw, found)
        metrics |= {
            "detection_loss": ratio(said.loss, said.seen),
            "detection_accuracy": ratio(said.correct, said.seen),
            "replaced": ratio(said.replaced, said.seen),
        }
    if model.options.pseudo_positions:
        metrics |= one_by_one(model, params, mutable, batch, key_pseudo)
    return metrics


def one_by_one(
    model: Masked, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Ratio]:
    """`pseudo_loss` and `pseudo_accuracy` per token: of a token given all others.

    The first is minus the pseudo-log-likelihood (Salazar et al. 2020, eq. 1), in nats. Each of
    `pseudo_positions` tokens is masked alone, in a call of its own. They are drawn without
    replacement and stand for all: the estimate is unbiased, and exact if there are no more tokens.
    """
    token, counts, segment = model.examples(batch)
    draw = jnp.where(counts, jax.random.uniform(key, token.shape), 2.0)
    order = jnp.argsort(draw, axis=1)[:, : model.options.pseudo_positions]
    rows = jnp.arange(len(token))

    def add(sums: tuple, at: Int[Array, "B"]) -> tuple[tuple, None]:
        x = token.at[rows, at].set(model.vocabulary.mask)
        logits, _ = model.predict(params, mutable, x, segment, at=at[:, None])
        found = Guess(at[:, None], token[rows, at][:, None], counts[rows, at][:, None], logits)
        terms = (jnp.where(found.chosen, v, 0.0)[:, 0] for v in (found.nll, found.correct))
        return tuple(map(jnp.add, sums, terms)), None

    sums, _ = jax.lax.scan(add, (jnp.zeros(len(token)),) * 2, order.T)
    count = counts.sum(-1).astype(jnp.float32)
    scale = count / jnp.clip(count, 1, order.shape[1])
    names = ("pseudo_loss", "pseudo_accuracy")
    return {name: Ratio(total * scale, count) for name, total in zip(names, sums, strict=True)}


def derived(means: Mapping[str, float]) -> dict[str, float]:
    """`pseudo_perplexity`, the exponential of the mean `pseudo_loss` per token."""
    known = "pseudo_loss" in means
    return {"pseudo_perplexity": math.exp(min(means["pseudo_loss"], 700.0))} if known else {}


def apply(model: Masked, params: dict, mutable: dict, batch: Batch) -> Float[Array, "B D"]:
    """The embedding of each text: the mean of its tokens' vectors, without padding."""
    token = batch[model.spec.target]
    segment = batch["segment"] if "segment" in batch else _within(model.spec, token)
    out, _ = model.encode(params, mutable, token, segment)
    return pooled(out.hidden, segment)


def encode_text(
    model: Masked, params: dict, mutable: dict, text: Int[Array, "B T"]
) -> tuple[Float[Array, "B T D"], Bool[Array, "B T"]]:
    """The encoder's vector of each token, and which tokens belong to the text."""
    segment = _within(model.spec, text)
    out, _ = model.encode(params, mutable, text, segment)
    seen = jnp.ones(text.shape, bool) if segment is None else segment > 0
    return out.hidden.astype(jnp.float32), seen


def pooled(hidden: Float[Array, "B T D"], segment: Int[Array, "B T"] | None) -> Float[Array, "B D"]:
    """The mean of vectors over the positions whose segment is not 0, in float32."""
    hidden = hidden.astype(jnp.float32)
    if segment is None:
        return hidden.mean(1)
    seen = (segment > 0).astype(jnp.float32)
    return jnp.einsum("btd,bt->bd", hidden, seen) / jnp.maximum(seen.sum(1), 1.0)[:, None]


def _within(spec: DataSpec, token: Int[Array, "B T"]) -> Int[Array, "B T"] | None:
    """1 for the tokens of a text and its end, 0 for what fills the row after them."""
    special = spec.generated.facts["special"]
    fill = special.get("pad", special.get("eos"))
    if fill is None:
        return None
    trailing = jnp.flip(jax.lax.cummin(jnp.flip(token == fill, 1).astype(jnp.int32), axis=1), 1)
    if "pad" not in special:  # the first one ends the text
        trailing = trailing * jnp.pad(trailing[:, :-1], ((0, 0), (1, 0)))
    return 1 - trailing


def sample(
    model: Masked,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
    *,
    decoding: str = "confidence",
    steps: int = 8,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    choice_temperature: float = 0.0,
    length: int = 0,
) -> Int[Array, "B S"]:
    """Fills the gaps of texts; a text without gaps gets some, drawn as in training.

    Args:
      model: the model.
      params: its parameters.
      mutable: its mutable state.
      key: random key of the draws.
      num: samples to draw.
      condition: `prompt` [num, P], with -1 for tokens to draw; without it, whole texts are drawn.
      decoding: "confidence", the most probable tokens first, or "first_hitting", one token at a
        time, in random order (Wang & Cho 2019). See `unmasking`.
      steps: calls of the network in "confidence".
      temperature: divides the logits; 0 takes the most probable token.
      top_k: draws from the `top_k` most probable tokens; 0 from all.
      top_p: draws from the smallest set of tokens with this probability; 1 from all.
      choice_temperature: noise in the choice of "confidence".
      length: tokens of a text without a prompt; 0 means the training length.

    Raises:
      ConfigError: an option out of range.
    """
    one_of("--decoding", decoding, DECODINGS)
    valid = processors.whole_number(steps) and 1 <= steps <= MOST_STEPS
    require(valid, "--steps", steps, f"a whole number from 1 to {MOST_STEPS}")
    (most,) = model.spec.generated.shape
    valid = processors.whole_number(length) and 0 <= length <= most
    require(valid, "--length", length, f"0 to {most}")
    key_gaps, key_rows = jax.random.split(key)
    tokens, segment = jnp.full((num, length or most), -1, jnp.int32), None
    if "prompt" in condition:
        tokens = condition["prompt"]
        segment = _within(model.spec, tokens)
        counts = jnp.asarray(model.vocabulary.is_text)[tokens]
        o = model.options
        draw = masking.draws(model.vocabulary, key_gaps, tokens, counts, segment, o.whole_words)
        whole = (tokens >= 0).all(1, keepdims=True)
        tokens = jnp.where((draw < o.mask_rate) & whole, -1, tokens)
    else:
        begin = jnp.array(model.begin[: tokens.shape[1]], jnp.int32)
        tokens = tokens.at[:, : len(begin)].set(begin)
    chain = processors.chain(processors.Options(temperature, top_k, top_p))
    choose = unmasking.chooser(chain, temperature == 0)
    is_text = jnp.asarray(model.vocabulary.is_text)

    def denoise(tokens: Array, masked: Array) -> Array:
        x = jnp.where(tokens < 0, model.vocabulary.mask, tokens)
        logits, _ = model.predict(params, mutable, x, segment)
        return jnp.where(is_text[: logits.shape[-1]], logits, -jnp.inf)

    keys = jax.vmap(partial(jax.random.fold_in, key_rows))(jnp.arange(num))
    if decoding == "first_hitting":
        return unmasking.first_hitting(denoise, tokens, keys, choose)
    grid = (unmasking.Schedule(), steps, float(choice_temperature))
    return unmasking.confidence(denoise, tokens, keys, choose, *grid)


def conditions_of(spec: DataSpec, documents: str) -> dict[str, Field]:
    """The condition of `sample`: a text with gaps, or one of the data."""
    prompt = prompt_field(spec, documents)
    end = ends(prompt.facts["special"])[:1] if prompt.facts["begin"] else ()
    tokenizer = Gaps(prompt.facts["tokenizer"], end)
    facts = {**prompt.facts, "tokenizer": tokenizer, "field": spec.target}
    return {"prompt": prompt._replace(facts=facts)}


def from_networks(
    encoder: Functional,
    generator: Functional | None,
    options: Options,
    spec: DataSpec,
    rules: Rules,
    known: masking.Vocabulary,
    documents: str = "stream",
) -> Method:
    """The model of any networks with the call signature of `networks/encoder.py`."""
    conditions = conditions_of(spec, documents)
    model = Masked(encoder, generator, options, spec, known, conditions["prompt"].facts["begin"])

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = {}, {}
        params["encoder"], mutable["encoder"] = encoder.init(key)
        if generator is not None:
            drawn, mutable["generator"] = generator.init(jax.random.fold_in(key, 1))
            params["generator"] = {n: leaf for n, leaf in drawn.items() if n not in SHARED}
        return params, mutable

    phase = Phase("encoder", partial(loss, model))
    if generator is not None:
        phase = Phase(("encoder", "generator"), partial(joint_loss, model))
    return Method(
        init=init,
        phases=(phase,),
        evaluate=partial(evaluate, model),
        sample=partial(sample, model),
        rules=rules,
        derived=derived,
        conditions=conditions,
        apply=partial(apply, model),
        text_encoder=TextEncoder(model.spec.generated, partial(encode_text, model)),
    )


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The model with the network of `config.model` on the texts of `spec`.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Network` and
    `RULES`, such as `encoder`; `config.model.encoder` are its options, and with the objective
    "replaced" `config.model.generator` are those in which the generator differs. Length and
    vocabulary are those of the data and the mask, unless `config.model.length` and
    `.vocabulary_size` are larger. With `config.weights`, the folder of a BERT, a new run starts
    from these weights.

    Raises:
      ConfigError: the data are not texts, or the config asks for something that does not exist.
    """
    field = spec.generated
    if field.kind != "text":
        raise ConfigError(
            f"method masked_lm needs text; {spec.target!r} of {spec.name} is of kind "
            f"{field.kind!r}. Give a --config.dataset.name such as brown, or text with "
            "--config.dataset.path."
        )
    options = read_options(config.masked_lm, "masked_lm", Options)
    one_of("config.masked_lm.objective", options.objective, OBJECTIVES)
    both = options.replace_mask + options.replace_random
    name = "config.masked_lm.replace_mask + replace_random"
    require(both <= 1 + 1e-9, name, both, "at most 1")
    module = find_module(
        "model.network", config.model.network, "genjax.networks", "Network", "RULES"
    )
    least = len(masking.vocabulary(field).is_text)
    sizes = {"length": math.prod(field.shape), "vocabulary_size": least}
    for name, value in sizes.items():
        sizes[name] = config.model[name] or value
        expected = f"at least {value}, as the data need (with a mask), or 0"
        require(sizes[name] >= value, f"config.model.{name}", config.model[name], expected)
    replaced = options.objective == "replaced"

    def network(section: ConfigDict, name: str, head: str) -> Functional:
        given = {"head": head, "dtype": jnp.dtype(config.precision), **sizes}
        return functional(lambda rngs: construct(module.Network, section, name, rngs=rngs, **given))

    own = config.model.encoder
    encoder = network(own, "model.encoder", "replaced" if replaced else "tokens")
    generator = None
    if replaced:
        narrow = own.to_dict() | config.model.generator.to_dict()
        narrow["embedding_width"] = own.get("embedding_width") or own.width
        generator = network(ConfigDict(narrow), "model.generator", "tokens")
    known = masking.vocabulary(field, sizes["vocabulary_size"])
    documents = config.dataset.text.documents
    method = from_networks(encoder, generator, options, spec, module.RULES, known, documents)
    if not config.get("weights"):
        return method
    name, given = "config.masked_lm.objective", options.objective
    require(not replaced, name, given, "masked, as config.weights are of a BERT")
    folder = pretrained.located(config.weights)

    def pretrained_networks() -> tuple[dict[str, Tree], dict[str, Tree]]:
        params = bert.read(folder).params
        if not params.keys() & set(HEAD):
            drawn = encoder.init(jax.random.key(config.seed))[0]
            params = params | {name: drawn[name] for name in HEAD}
        return {"encoder": params}, {}

    return method._replace(pretrained=pretrained_networks)
