"""Masked diffusion over tokens of text or of a first stage (Sahoo et al. 2024; Shi et al. 2024).

Tokens are masked one by one, and a network predicts the masked ones from the rest: all at once and
independently ("SUBS": a mask is never predicted, and unmasked tokens do not change). The
continuous-time bound is a weighted mean of cross entropies, the same for all schedules. With an
exact network the bound is exact: it is the mean of -log p over all orders of the tokens.

Tokens of images may be conditioned on a text, as in Muse (Chang et al. 2023).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Positive, Range, Rate, one_of, require
from genjax.config import construct, read_options
from genjax.data.windows import targets_of
from genjax.method import (
    Aux,
    Batch,
    DataSpec,
    Field,
    Method,
    Phase,
    Ratio,
    Rules,
    Tree,
    find_module,
)
from genjax.methods.lm import derived, is_text, prompt_field
from genjax.modalities.label import label_condition, num_classes, required_classes
from genjax.modalities.text import text_condition
from genjax.nn.functional import Functional, functional
from genjax.sampling import logits as processors
from genjax.sampling import unmasking
from genjax.sampling.bound import stratified_uniform
from genjax.sampling.conditions import Condition, complete, token_conditions
from genjax.sampling.prompts import Gaps
from genjax.sampling.unmasking import Schedule

MOST_STEPS = 2**20


class Options(NamedTuple):
    """The `masked_diffusion` section of a config, and its defaults.

    Attributes:
      schedule: masking schedule: "linear", "cosine" or "polynomial".
      exponent: exponent of "polynomial".
      timesteps: T of the bound for training and evaluation; 0 is continuous time.
      time_conditional: whether the network is conditioned on the share of masked tokens.
      class_conditional: whether the network is conditioned on the label.
      conditions: the name of the text of the data that the tokens of an image are conditioned on,
        as in ("text",); () for none.
      label_dropout: share of training examples whose conditions are hidden, for guidance.
      eval_times: network calls per example in the estimate of the bound.
      decoding: default decoding method: "ancestral", "first_hitting" or "confidence".
      steps: default number of steps for "ancestral" and "confidence".
      choice_temperature: default noise of "confidence".
      guidance: default scale of classifier-free guidance; 1 is none.
    """

    schedule: str = "linear"
    exponent: Positive = 2.0
    timesteps: Annotated[int, Range(0, 1_000_000)] = 0
    time_conditional: bool = False
    class_conditional: bool = False
    conditions: tuple[str, ...] = ()
    label_dropout: Rate = 0.1
    eval_times: Annotated[int, Range(1, 10_000)] = 8
    decoding: str = "ancestral"
    steps: int = 128
    choice_temperature: float = 4.5
    guidance: float = 1.0


class Terms(NamedTuple):
    """Loss terms at each position of a batch, each [B, S].

    Attributes:
      nll: -log p of the token given the unmasked tokens, in nats.
      correct: whether the most probable token is the correct one.
      masked: 1 where a token is masked, else 0.
    """

    nll: Float[Array, "B S"]
    correct: Float[Array, "B S"]
    masked: Float[Array, "B S"]


class Denoiser(NamedTuple):
    """The network and the settings that every function of the family needs."""

    network: Functional  # (tokens, label, share masked, text=, seen=, segment=) -> logits [B, S, K]
    options: Options
    spec: DataSpec
    begin: tuple[int, ...] = ()  # the tokens that each text begins with

    @property
    def schedule(self) -> Schedule:
        """The share of masked tokens as a function of time."""
        return Schedule(self.options.schedule, self.options.exponent)

    @property
    def values(self) -> int:
        """K, the number of values of a token; K itself is the mask."""
        return self.spec.generated.facts["vocabulary_size"]

    @property
    def conditions(self) -> dict[str, Field]:
        """The fields that the network is conditioned on."""
        texts = {name: self.spec.fields[name] for name in self.options.conditions}
        return label_condition(self.spec, self.options.class_conditional) | texts

    def conditioning(
        self, values: Mapping[str, Array], hidden: Bool[Array, "B"] | None = None
    ) -> dict[str, Array]:
        """The network's arguments for conditions, which the `hidden` examples do not have."""
        return token_conditions(self.conditions, values, hidden)

    def __call__(
        self,
        params: dict,
        mutable: dict,
        x: Array,
        cond: Mapping[str, Array] | None,
        masked: Array,
        **named,
    ) -> tuple[Float[Array, "B S K"], dict]:
        """Logits at all positions of x, where K marks a mask, and the new mutable state.

        `cond` is what `conditioning` returns.
        """
        named, time = {**(cond or {}), **named}, masked if self.options.time_conditional else None
        label = named.pop("label", None)
        out, changed = self.network.apply(
            params["denoiser"], mutable["denoiser"], x, label, time, **named
        )
        return out, {"denoiser": changed}

    def examples(self, batch: Batch) -> tuple[Int[Array, "B S"], Float[Array, "B S"], dict]:
        """Tokens; 1 where a token counts, else 0; and further inputs of the network.

        The first token of a document (the same in all documents), tokens outside `loss_mask` and
        padding do not count. Only tokens that count are ever masked.
        """
        token = batch[self.spec.target]
        token = token.reshape(len(token), -1)
        counts, extra = jnp.ones(token.shape), {}
        if "segment" in batch:
            extra["segment"] = batch["segment"]
            counts = jnp.pad(targets_of(batch["segment"]), ((0, 0), (1, 0))).astype(jnp.float32)
        if "loss_mask" in batch:
            counts = counts * batch["loss_mask"]
        return token, counts, extra

    def terms(
        self,
        params: dict,
        mutable: dict,
        batch: Batch,
        cond: Mapping[str, Array] | None,
        t: Float[Array, "B"],
        mask: Array,
        **training,
    ) -> tuple[Terms, dict]:
        """The terms at each position of the batch, masked as at times t with the key `mask`."""
        token, counts, extra = self.examples(batch)
        share = self.schedule.masked(t)
        masked = (jax.random.uniform(mask, token.shape) < share[:, None]) & (counts > 0)
        x = jnp.where(masked, self.values, token)
        logits, changed = self(params, mutable, x, cond, share, **extra, **training)
        token_logit = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(logits, axis=-1) - token_logit
        correct = (logits.argmax(-1) == token).astype(jnp.float32)
        return Terms(nll, correct, masked.astype(jnp.float32)), changed

    def times(self, u: Float[Array, "*N"]) -> tuple[Float[Array, "*N"], Float[Array, "*N"]]:
        """Times for uniform numbers in [0, 1), and the weights of tokens masked at these times."""
        t, T = jnp.maximum(1 - u, 2.0**-24), self.options.timesteps  # u may be rounded to 1
        if not T:
            return t, self.schedule.weight(t)
        t = jnp.ceil(t * T) / T
        return t, self.schedule.step_weight(t, T)


def loss(
    denoiser: Denoiser, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The bound on -log p per token, in nats (MDLM, eq. 10 and 11; MD4, eq. 5), at one time.

    The times of a microbatch are spread evenly. It is weighted by its number of tokens that count.
    """
    key_time, key_mask, key_label, key_net = (jax.random.fold_in(key, i) for i in range(4))
    token, counts, _ = denoiser.examples(batch)
    t, weight = denoiser.times(stratified_uniform(key_time, len(token)))
    hidden = jax.random.bernoulli(key_label, denoiser.options.label_dropout, (len(token),))
    cond = denoiser.conditioning(batch, hidden)
    terms, changed = denoiser.terms(
        params, mutable, batch, cond, t, key_mask, key=key_net, train=True
    )
    token_count = counts.sum()
    value = (weight[:, None] * terms.masked * terms.nll).sum() / jnp.maximum(token_count, 1.0)
    accuracy = (terms.correct * terms.masked).sum() / jnp.maximum(terms.masked.sum(), 1.0)
    return value, Aux({"accuracy": accuracy}, changed, token_count)


def evaluate(
    denoiser: Denoiser, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Array | Ratio]:
    """The bound per example from `eval_times` times, spread evenly over example and batch.

    For text: `loss` in nats per token and `bits_per_byte`. For codes: `nll`, summed over the tokens
    of an example, and `bits_per_token`. For both: `accuracy` per masked token at uniform times.
    """
    key_time, key_mask = (jax.random.fold_in(key, i) for i in range(2))
    token, counts, _ = denoiser.examples(batch)
    cond = denoiser.conditioning(batch)
    K, shift = denoiser.options.eval_times, stratified_uniform(key_time, len(token))

    def add_time(sums: tuple, i: Array) -> tuple[tuple, None]:
        t, weight = denoiser.times((i + shift) / K)
        key_i = jax.random.fold_in(key_mask, i)
        terms, _ = denoiser.terms(params, mutable, batch, cond, t, key_i)
        nll = (weight[:, None] * terms.masked * terms.nll).sum(-1) / K
        terms_sum = (nll, (terms.correct * terms.masked).sum(-1), terms.masked.sum(-1))
        return jax.tree.map(jnp.add, sums, terms_sum), None

    zeros = (jnp.zeros(len(token)),) * 3
    (nll, correct, masked), _ = jax.lax.scan(add_time, zeros, jnp.arange(K))
    metrics = {"accuracy": Ratio(correct, masked)}
    count = counts.sum(-1)
    if not is_text(denoiser.spec):
        return metrics | {"nll": nll, "bits_per_token": nll / count / math.log(2)}
    metrics["loss"] = Ratio(nll, count)
    if "bytes" in batch:  # without a window's first token, which counts above in a stream
        share = counts[:, 1:].sum(-1) / jnp.maximum(count, 1.0)
        metrics["bits_per_byte"] = Ratio(share * nll / math.log(2), batch["bytes"])
    return metrics


def sample(
    denoiser: Denoiser,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
    *,
    decoding: str | None = None,
    steps: int | None = None,
    schedule: str | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    choice_temperature: float | None = None,
    guidance: float | None = None,
    length: int = 0,
) -> Int[Array, "B ..."]:
    """Draws tokens; None takes the value of the config's `masked_diffusion` section.

    Each sample depends on its own row of the key, and not on how many are drawn with it.

    Args:
      denoiser: the model.
      params: its parameters.
      mutable: its mutable state.
      key: random key of the draws.
      num: samples to draw.
      condition: `label`; without it, each class in turn. The text, if the network has one. For
        text, `prompt` [num, P]: the first tokens, with -1 for tokens to draw. All tokens after the
        prompt are drawn.
      decoding: "ancestral", "first_hitting" (token by token) or "confidence".
      steps: steps of "ancestral" and "confidence", each with at most one network call.
      schedule: schedule of these steps, independent of the one in training.
      temperature: divides the logits; 0 takes the most probable token.
      top_k: draws from the `top_k` most probable tokens; 0 from all.
      top_p: draws from the smallest set of tokens with this probability; 1 from all.
      choice_temperature: noise in the choice of "confidence".
      guidance: w of `unmasking.guided`; 1 is none, other values double the network's batch.
      length: tokens of a text; 0 means the training length.

    Returns:
      Tokens, in the shape of the data.

    Raises:
      ConfigError: an option out of range, or one that this model does not support.
    """
    overrides = dict(decoding=decoding, steps=steps, schedule=schedule, guidance=guidance)
    overrides["choice_temperature"] = choice_temperature
    o = denoiser.options._replace(**{k: v for k, v in overrides.items() if v is not None})
    _check_sampling(o)
    unused = ("steps", "schedule") if o.decoding == "first_hitting" else ()
    unused += () if o.decoding == "confidence" else ("choice_temperature",)
    for name in unused:
        expected = f"nothing with decoding={o.decoding}"
        require(overrides[name] is None, f"--{name}", overrides[name], expected)
    setting, key_label = "masked_diffusion.class_conditional=True", jax.random.fold_in(key, 0)
    other_conditions = {name: value for name, value in condition.items() if name != "prompt"}
    fields = denoiser.conditions
    known = complete(denoiser.spec, fields, num, other_conditions, key_label, setting)
    tokens = _initial_tokens(denoiser, num, condition.get("prompt"), length)
    chain = processors.chain(processors.Options(temperature, top_k, top_p))
    choose = unmasking.chooser(chain, temperature == 0)
    row = partial(jax.random.fold_in, jax.random.fold_in(key, 1))

    def logits(tokens: Array, cond: Mapping[str, Array], masked: Array) -> Array:
        x = jnp.where(tokens < 0, denoiser.values, tokens)
        return denoiser(params, mutable, x, cond, masked)[0]

    cond, unconditional = (
        denoiser.conditioning(known),
        denoiser.conditioning(known, jnp.ones(num, bool)),
    )
    denoise = unmasking.guided(logits, cond, unconditional, float(o.guidance))
    arguments = (denoise, tokens, jax.vmap(row)(jnp.arange(num)), choose)
    grid = (Schedule(o.schedule, o.exponent), o.steps)
    if o.decoding == "first_hitting":
        drawn = unmasking.first_hitting(*arguments)
    elif o.decoding == "ancestral":
        drawn = unmasking.ancestral(*arguments, *grid)
    else:
        drawn = unmasking.confidence(*arguments, *grid, float(o.choice_temperature))
    return drawn if is_text(denoiser.spec) else drawn.reshape(num, *denoiser.spec.generated.shape)


def _initial_tokens(
    denoiser: Denoiser, num: int, prompt: Int[Array, "B P"] | None, length: int
) -> Int[Array, "B S"]:
    """The initial tokens of sampling: the prompt, and -1 for tokens to draw.

    Raises:
      ConfigError: a length out of range, or a prompt that is longer.
    """
    most = math.prod(denoiser.spec.generated.shape)
    text = is_text(denoiser.spec)
    valid = processors.whole_number(length) and 0 <= length <= (most if text else 0)
    require(valid, "--length", length, f"0 to {most}" if text else "0: images have a fixed size")
    require(prompt is None or text, "--prompt", "codes", "none: only texts can have a prompt")
    tokens = jnp.full((num, length or most), -1, jnp.int32)
    if prompt is None:
        begin = jnp.array(denoiser.begin[: tokens.shape[1]], jnp.int32)
        return tokens.at[:, : len(begin)].set(begin)
    P, S = prompt.shape[1], tokens.shape[1]
    require(P <= S, "prompt", f"{P} tokens", f"at most {S}, the length of a text")
    return tokens.at[:, :P].set(prompt)


def _check_sampling(o: Options) -> None:
    """Raises `ConfigError` for sampling options that the model does not support."""
    one_of("decoding", o.decoding, unmasking.DECODINGS)
    one_of("schedule", o.schedule, unmasking.SCHEDULES)
    valid = processors.whole_number(o.steps) and 1 <= o.steps <= MOST_STEPS
    require(valid, "steps", o.steps, f"a whole number from 1 to {MOST_STEPS}")
    for name in ("choice_temperature", "guidance"):
        value = getattr(o, name)
        require(isinstance(value, int | float) and value >= 0, name, value, "a number from 0")
    if o.guidance != 1 and not ((o.class_conditional or o.conditions) and o.label_dropout):
        raise ConfigError(
            f"guidance={o.guidance}: the model must have been trained with "
            "masked_diffusion.class_conditional=True or masked_diffusion.conditions, and with "
            "masked_diffusion.label_dropout > 0, to be guided. Use guidance=1."
        )


def options_from_config(section: ConfigDict, spec: DataSpec) -> Options:
    """Reads and checks the `masked_diffusion` section.

    Raises:
      ConfigError: an unknown key or choice, a number out of range, or conditions that the data do
        not have.
    """
    o = read_options(section, "masked_diffusion", Options)
    required_classes(spec, "masked_diffusion.class_conditional=True", o.class_conditional)
    text_condition(spec, "masked_diffusion.conditions", o.conditions)
    images = not (o.conditions and is_text(spec))
    expected = "() for text, which has a prompt"
    require(images, "config.masked_diffusion.conditions", o.conditions, expected)
    _check_sampling(o)
    return o


def conditions_of(spec: DataSpec, options: Options, prompt: Field | None) -> Mapping[str, Field]:
    """The conditions of `sample`: the label, the text, and for text a prompt with gaps."""
    texts = {name: spec.fields[name] for name in options.conditions}
    conditions = label_condition(spec, options.class_conditional) | texts
    if prompt is None:
        return conditions
    facts = {**prompt.facts, "tokenizer": Gaps(prompt.facts["tokenizer"])}
    return {"prompt": prompt._replace(facts=facts), **conditions}


def from_network(
    network: Functional,
    options: Options,
    spec: DataSpec,
    rules: Rules,
    prompt: Field | None = None,
) -> Method:
    """The model of any network that has the call signature in `Denoiser`.

    `prompt` is the field of a text's prompt, and contains the tokens that each text begins with.
    """
    begin = prompt.facts["begin"] if prompt else ()
    denoiser = Denoiser(network, options, spec, begin)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = network.init(key)
        return {"denoiser": params}, {"denoiser": mutable}

    return Method(
        init=init,
        phases=(Phase("denoiser", partial(loss, denoiser)),),
        evaluate=partial(evaluate, denoiser),
        sample=partial(sample, denoiser),
        rules=rules,
        derived=derived if is_text(spec) else None,
        conditions=conditions_of(spec, options, prompt),
    )


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The model with the network of `config.model` on the tokens of `spec`: text, or codes.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Network` and
    `RULES`, such as `masked_transformer`; `config.model.denoiser` are its options.

    Raises:
      ConfigError: the data are not tokens, or the config asks for something that does not exist.
    """
    field = spec.generated
    if field.kind not in ("text", "code") or not field.facts.get("vocabulary_size"):
        real = field.kind == "code"
        target = "codes of real numbers" if real else f"{spec.target} ({field.kind})"
        raise ConfigError(
            f"method masked_diffusion needs tokens; the target of {spec.name} is {target}. Give "
            "text with --config.dataset.name=tiny_shakespeare or --config.dataset.path, or set "
            "dataset.codes to a stage that has tokens, such as a VQ-VAE (configs/vqvae.py)."
        )
    options = options_from_config(config.masked_diffusion, spec)
    module = find_module(
        "model.network", config.model.network, "genjax.networks", "Network", "RULES"
    )
    text, of_text = is_text(spec), {}
    for name in options.conditions:
        takes = "text_length" in inspect.signature(module.Network.__init__).parameters
        expected = "a network that reads texts, such as masked_transformer"
        require(takes, "config.model.network", config.model.network, expected)
        condition = spec.fields[name]
        of_text["text_length"] = condition.shape[0]
        of_text["text_vocabulary_size"] = condition.facts["vocabulary_size"]

    def network(rngs):
        return construct(
            module.Network,
            config.model.denoiser,
            "model.denoiser",
            vocabulary_size=field.facts["vocabulary_size"],
            length=math.prod(field.shape),
            codebooks=1 if text else field.shape[-1],
            num_classes=num_classes(spec) if options.class_conditional else 0,
            time=options.time_conditional,
            dtype=jnp.dtype(config.precision),
            rngs=rngs,
            **of_text,
        )

    prompt = prompt_field(spec, config.dataset.text.documents) if text else None
    return from_network(functional(network), options, spec, module.RULES, prompt)
