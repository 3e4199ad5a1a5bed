"""Autoregressive models of sequences: text, and the frames of piano rolls.

The likelihood of a sequence is a product over positions, each given those before it: of one token
among V, or of the keys of a frame, each on or off (Boulanger-Lewandowski et al. 2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Rate, require
from genjax.config import construct, read_options
from genjax.data import tokenizers
from genjax.data.alphabets import ends
from genjax.data.rolls import KEYS
from genjax.data.windows import targets_of
from genjax.interop import huggingface
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
from genjax.networks.sequence import begins
from genjax.networks.transformer import unstacked
from genjax.nn.functional import Bound, Functional, functional
from genjax.sampling import logits as processors
from genjax.sampling import prompts
from genjax.sampling.beam import beam_search
from genjax.sampling.conditions import Condition
from genjax.sampling.decode import generate, stream

NEW = 256  # tokens that a sample has, unless more or fewer are asked for
ENDLESS = 2**30  # positions of a network that knows no limit
MOST_FRAMES = 2**20


class Options(NamedTuple):
    """The `lm` section of a config, and its defaults.

    Attributes:
      label_smoothing: share of the target's probability that is spread over all tokens (Szegedy
        et al. 2016, section 7), in training.
      z_loss: weight of the squared log normaliser, in training (Chowdhery et al. 2022, section 5).
    """

    label_smoothing: Rate = 0.0
    z_loss: Rate = 0.0


class Terms(NamedTuple):
    """What a batch's positions come to, each [B, T].

    Attributes:
      nll: negative log-likelihood of the target, in nats.
      loss: the same with label smoothing and the z-loss.
      correct: whether the most probable token is the target; of frames, the share of keys.
      weight: 1 where there is a target that counts, else 0.
    """

    nll: Float[Array, "B T"]
    loss: Float[Array, "B T"]
    correct: Float[Array, "B T"]
    weight: Float[Array, "B T"]


class Language(NamedTuple):
    """The network, and what every function of the family needs to know beside its arrays."""

    network: Functional  # the call of `networks/sequence.py`
    options: Options
    spec: DataSpec
    context: int  # the most positions that the network takes

    def bound(self, params: dict, mutable: dict) -> Partial:
        """The network with its arrays, for `sampling/decode.py`."""
        own = params["lm"]
        if jax.default_backend() == "cpu":
            own = unstacked(own)
        return Partial(Bound(_apply, (self.network, outputs(self.spec))), own, mutable["lm"])

    def terms(self, params: Tree, mutable: Tree, batch: Batch, **training) -> tuple[Terms, Tree]:
        """The terms of every position, and the new mutable state."""
        judge = tokens if is_text(self.spec) else frames
        return judge(self, params, mutable, batch, **training)


def is_text(spec: DataSpec) -> bool:
    """Whether tokens of text are generated, and not the frames of piano rolls."""
    return spec.generated.kind == "text"


def outputs(spec: DataSpec) -> int:
    """How many logits a position has: one a token, or one a key."""
    return spec.generated.facts["vocabulary_size"] if is_text(spec) else KEYS


def _apply(
    network: Functional, known: int, params: Tree, mutable: Tree, x: Array, **named
) -> tuple[Array, Tree]:
    """Logits and cache; a token that no tokenizer knows has no chance."""
    (logits, cache), _ = network.apply(params, mutable, x, **named)
    if known < logits.shape[-1]:
        logits = jnp.where(jnp.arange(logits.shape[-1]) < known, logits, -jnp.inf)
    return logits, cache


def tokens(
    model: Language, params: Tree, mutable: Tree, batch: Batch, **training
) -> tuple[Terms, Tree]:
    """The terms of each token but the first; a document's first token is no target."""
    token, segment = batch["token"], batch.get("segment")
    own = None if segment is None else segment[:, :-1]
    (logits, _), mutable = model.network.apply(
        params, mutable, token[:, :-1], segment=own, **training
    )
    target = token[:, 1:]
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    nll = normaliser - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    smoothing, z_loss = model.options
    loss = nll
    if smoothing:
        loss = (1 - smoothing) * nll + smoothing * (normaliser - logits.mean(-1))
    if z_loss:
        loss = loss + z_loss * jnp.square(normaliser)
    weight = jnp.ones(target.shape)
    if segment is not None:
        weight = targets_of(segment).astype(jnp.float32)
    if "loss_mask" in batch:
        weight = weight * batch["loss_mask"][:, 1:]
    correct = (logits.argmax(-1) == target).astype(jnp.float32)
    return Terms(nll, loss, correct, weight), mutable


def frames(
    model: Language, params: Tree, mutable: Tree, batch: Batch, **training
) -> tuple[Terms, Tree]:
    """The terms of each frame; a frame of silence stands before the first one of a tune."""
    frame, segment = batch["frame"].astype(jnp.float32), batch["segment"]
    before = jnp.pad(frame[:, :-1], ((0, 0), (1, 0), (0, 0)))
    before = jnp.where(begins(segment)[..., None], 0.0, before)
    (logits, _), mutable = model.network.apply(params, mutable, before, segment=segment, **training)
    nll = optax.sigmoid_binary_cross_entropy(logits, frame).sum(-1)
    correct = ((logits > 0) == (frame > 0)).mean(-1)
    return Terms(nll, nll, correct, (segment > 0).astype(jnp.float32)), mutable


def loss(
    model: Language, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """Mean loss of a target, in nats; a microbatch weighs as much as it has targets."""
    terms, changed = model.terms(params["lm"], mutable["lm"], batch, key=key, train=True)
    weight = terms.weight.sum()

    def mean(values: Float[Array, "B T"]) -> Float[Array, ""]:
        return (values * terms.weight).sum() / jnp.maximum(weight, 1.0)

    metrics = {"accuracy": mean(terms.correct)}
    if any(model.options):
        metrics["nll"] = mean(terms.nll)
    return mean(terms.loss), Aux(metrics, {"lm": changed}, weight)


def evaluate(
    model: Language, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Ratio]:
    """`loss` in nats and `accuracy`, of a target; of text `bits_per_byte` too.

    Of piano rolls the first frame of a tune does not count, as in Bai et al. 2018.
    """
    terms, _ = model.terms(params["lm"], mutable["lm"], batch)
    weight = terms.weight
    if not is_text(model.spec):
        weight = weight * ~begins(batch["segment"])
    nll, count = (terms.nll * weight).sum(-1), weight.sum(-1)
    found = {"loss": Ratio(nll, count), "accuracy": Ratio((terms.correct * weight).sum(-1), count)}
    if "bytes" in batch:
        found["bits_per_byte"] = Ratio(nll / math.log(2), batch["bytes"])
    return found


def derived(means: Mapping[str, float]) -> dict[str, float]:
    """`perplexity`, the exponential of the mean loss of a token."""
    return {"perplexity": math.exp(min(means["loss"], 700.0))} if "loss" in means else {}


def sample(
    model: Language,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
    *,
    decode: Callable[[Sequence[int]], str] | None = None,
    max_new_tokens: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    allowed: Sequence[int] = (),
    banned: Sequence[Sequence[int]] = (),
    min_new_tokens: int = 0,
    stop: Int[Array, "Q V"] | None = None,
    beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
) -> Int[Array, "B S"] | Iterator[str]:
    """Continues each prompt; a text ends with the tokenizer's end of text, if it has one.

    Args:
      model: the network.
      params: its parameters.
      mutable: its mutable state.
      key: draws.
      num: samples.
      condition: `prompt` [num, P], with -1 on the left of shorter ones; without it texts begin new.
      decode: the tokenizer's; with it the only prompt's continuation comes as an iterator of texts.
      max_new_tokens: to add to each prompt, at most; 0 stands for 256, or with beams for as many of
        these as the network's positions leave.
      temperature: divides the logits; 0 takes the most probable token.
      top_k: see `logits.Options`, like all up to `min_new_tokens`.
      top_p: see there.
      min_p: see there.
      repetition_penalty: see there.
      no_repeat_ngram: see there.
      allowed: see there.
      banned: see there.
      min_new_tokens: see there.
      stop: what else ends a text (`stopping.automaton`).
      beams: of a beam search, which draws nothing; 1 is none.
      length_penalty: see `beam_search`.
      early_stopping: see there.

    Returns:
      Tokens [num, S] with -1 where nothing is, or the iterator.

    Raises:
      ConfigError: an option out of range, or options that exclude each other.
    """
    special = model.spec.generated.facts["special"]
    require(processors.whole_number(beams), "--beams", beams, "a whole number from 1")
    if "prompt" in condition:
        prompt = condition["prompt"]
    else:
        one = "1 with --beams, which draws nothing: every text would be the same"
        require(num == 1 or beams == 1, "--num", num, one)
        prompt = jnp.full((num, 1), special["start"], jnp.int32)
    whole = processors.whole_number(max_new_tokens) and max_new_tokens >= 0
    require(whole, "--max_new_tokens", max_new_tokens, "a whole number, at least 0")
    room = max(model.context + 1 - prompt.shape[1], 1)
    new = max_new_tokens or (min(room, NEW) if beams != 1 else NEW)
    eos = ends(special)
    chosen = processors.Options(
        *(temperature, top_k, top_p, min_p, repetition_penalty, no_repeat_ngram),
        *(tuple(allowed), tuple(banned), min_new_tokens),
    )
    chain = processors.chain(chosen, eos=eos, prompt=prompt.shape[1])
    common = {
        "max_new_tokens": new,
        "context": model.context,
        "eos": eos,
        "processors": chain,
    }
    apply = model.bound(params, mutable)
    if beams == 1:
        plain = length_penalty == 1 and early_stopping is False
        given = (length_penalty, early_stopping)
        require(plain, "--length_penalty, --early_stopping", given, "nothing without --beams")
        key = None if temperature == 0 else key
        if decode is None:
            return generate(apply, prompt, key, stop=stop, **common)
        return stream(apply, prompt[0], key, decode=decode, stop=stop, **common)
    require(stop is None, "--stop", True, "nothing with --beams: it does not go with it")
    require(decode is None, "--stream", True, "nothing with --beams: it does not go with it")
    tokens, _ = beam_search(
        *(apply, prompt),
        beams=beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        **common,
    )
    return tokens[:, 0]


def sample_frames(
    model: Language,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
    *,
    frames: int = 0,
    temperature: float = 1.0,
) -> UInt8[Array, "B T 88"]:
    """Draws piano rolls, frame by frame, each key by itself.

    Args:
      model: the network.
      params: its parameters.
      mutable: its mutable state.
      key: draws.
      num: rolls.
      condition: must be empty.
      frames: length of a roll; 0 stands for the length trained on.
      temperature: divides the logits.

    Raises:
      ConfigError: a condition, or an option out of range.
    """
    given = tuple(condition)
    require(not given, "conditions", given, "none: a roll is drawn from its start")
    most = min(model.context, MOST_FRAMES)
    whole = processors.whole_number(frames) and 0 <= frames <= most
    require(whole, "--frames", frames, f"0 to {most}")
    processors.require_temperature("--temperature", temperature)
    length = frames or model.spec.generated.shape[0]
    return _frames(model.bound(params, mutable), key, num, length, float(temperature))


@partial(jax.jit, static_argnames=("num", "length"))
def _frames(
    apply: Partial, key: Array, num: int, length: int, temperature: Float[Array, ""] | float
) -> UInt8[Array, "B T 88"]:
    """Frame by frame, each after those before it."""

    def draw(logits: Array, position: Array | int) -> Array:
        shares = jax.nn.sigmoid(logits[:, -1:] / temperature)
        drawn = jax.random.bernoulli(jax.random.fold_in(key, position), shares)
        return drawn.astype(jnp.float32)

    def step(carry: tuple[Array, Tree], position: Array) -> tuple[tuple[Array, Tree], Array]:
        logits, cache = apply(carry[0], cache=carry[1])
        frame = draw(logits, position)
        return (frame, cache), frame

    logits, cache = apply(jnp.zeros((num, 1, KEYS)), capacity=length)  # silence comes before
    first = draw(logits, 0)
    _, rest = jax.lax.scan(step, (first, cache), jnp.arange(1, length))
    rolls = jnp.concatenate([first[None], rest])[:, :, 0]
    return rolls.swapaxes(0, 1).astype(jnp.uint8)


def from_network(
    network: Functional,
    options: Options,
    spec: DataSpec,
    context: int,
    rules: Rules,
    documents: str = "stream",
) -> Method:
    """The model of any network with the call of `networks/sequence.py`.

    `documents` is `dataset.text.documents`, which says what stands before a prompt.
    """
    model = Language(network, options, spec, context)
    text = is_text(spec)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = network.init(key)
        return {"lm": params}, {"lm": mutable}

    return Method(
        init=init,
        phases=(Phase("lm", partial(loss, model)),),
        evaluate=partial(evaluate, model),
        sample=partial(sample if text else sample_frames, model),
        rules=rules,
        derived=derived if text else None,
        conditions={"prompt": prompt_field(spec, documents)} if text else {},
        options=prompts.readers(spec.generated.facts["tokenizer"]) if text else {},
    )


def prompt_field(spec: DataSpec, documents: str) -> Field:
    """What a prompt is: text of any length, behind the tokens that begin one if there are any.

    See `tokenizers.begins`.
    """
    facts = spec.generated.facts
    begin = tokenizers.begins(facts["tokenizer"], facts["special"], documents)
    return Field("text", (None,), np.dtype(np.int32), {**facts, "begin": begin})


# What to do where a model out of config.weights is smaller than the data need.
_FIXED = {
    "length": "the model of config.weights knows no more positions; give a smaller "
    "--config.dataset.text.length",
    "vocabulary_size": "the model of config.weights knows no more tokens; give the tokenizer.json "
    "that belongs to it as --config.dataset.text.tokenizer",
}


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The model with the network of `config.model` on the sequences of `spec`.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Network`,
    `RULES` and, if its cache knows no limit, `ENDLESS = True`, such as `decoder`, `recurrent` or
    `tcn`; `config.model.lm` are its options. It has the
    data's length and vocabulary unless `config.model.length` and `.vocabulary_size` say more. With
    `config.weights`, a folder of Hugging Face, a new run begins with what is in there.

    Raises:
      ConfigError: the data are no sequences, or the config asks for something that does not exist.
    """
    if spec.generated.kind not in ("text", "roll"):
        raise ConfigError(
            f"method lm models text and piano rolls; {spec.target!r} of {spec.name} is of kind "
            f"{spec.generated.kind!r}. Give a "
            "--config.dataset.name such as tiny_shakespeare, or text with --config.dataset.path."
        )
    options = read_options(config.lm, "lm", Options)
    module = find_module(
        "model.network", config.model.network, "genjax.networks", "Network", "RULES"
    )
    text = is_text(spec)
    for name, value in options._asdict().items():
        require(text or not value, f"config.lm.{name}", value, "0 with piano rolls")
    sizes = {"length": spec.generated.shape[0] - text, "vocabulary_size": outputs(spec)}
    for name, least in sizes.items():
        sizes[name] = config.model[name] or least
        needed = f"at least {least}, which the data have, or 0"
        if config.get("weights"):  # they fix the size: 0 would be no way out
            needed = f"at least {least}, which the data have: {_FIXED[name]}"
        require(sizes[name] >= least, f"config.model.{name}", config.model[name], needed)
    keys = sizes["vocabulary_size"]
    require(text or keys == KEYS, "config.model.vocabulary_size", keys, f"{KEYS} keys, or 0")

    def network(rngs):
        return construct(
            module.Network,
            config.model.lm,
            "model.lm",
            **sizes,
            frames=not text,
            dtype=jnp.dtype(config.precision),
            rngs=rngs,
        )

    context = ENDLESS if getattr(module, "ENDLESS", False) else sizes["length"]
    how = config.dataset.text.documents
    made = from_network(functional(network), options, spec, context, module.RULES, how)
    if not config.get("weights"):
        return made
    return made._replace(pretrained=lambda: ({"lm": huggingface.read(config.weights).params}, {}))
