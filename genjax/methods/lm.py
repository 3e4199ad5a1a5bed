"""Autoregressive models of sequences: text, and the frames of piano rolls.

The likelihood of a sequence is a product over positions, each conditioned on the earlier ones. A
position is one token among V, or the keys of a frame, each on or off (Boulanger-Lewandowski et al.
2012).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Rate, require
from genjax.config import construct, read_options
from genjax.data import prompted, tokenizers
from genjax.data.alphabets import ends
from genjax.data.rolls import KEYS
from genjax.data.windows import targets_of
from genjax.interop import pretrained
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
from genjax.methods.lm_pairs import on_pairs
from genjax.networks.sequence import begins
from genjax.networks.transformer import unstacked
from genjax.nn.functional import Bound, Functional, functional
from genjax.parallel.mesh import platform
from genjax.sampling import logits as processors
from genjax.sampling import prompts
from genjax.sampling.beam import beam_search
from genjax.sampling.conditions import Condition
from genjax.sampling.decode import generate, stream

NEW = 256  # default number of new tokens in a sample
ENDLESS = 2**30  # positions of a network without a limit
MOST_FRAMES = 2**20


class Options(NamedTuple):
    """The `lm` section of a config, and its defaults.

    Attributes:
      label_smoothing: share of the target's probability that is spread over all tokens in training
        (Szegedy et al. 2016, section 7).
      z_loss: weight of the squared log normaliser, in training (Chowdhery et al. 2022, section 5).
    """

    label_smoothing: Rate = 0.0
    z_loss: Rate = 0.0


class Terms(NamedTuple):
    """Loss terms at each position of a batch, each [B, T].

    Attributes:
      nll: negative log-likelihood of the target, in nats.
      loss: `nll` with label smoothing and the z-loss.
      correct: whether the most probable token is the target; for frames, the share of correct keys.
      weight: 1 where there is a target that counts, else 0.
    """

    nll: Float[Array, "B T"]
    loss: Float[Array, "B T"]
    correct: Float[Array, "B T"]
    weight: Float[Array, "B T"]


class Language(NamedTuple):
    """The network and the settings that every function of the family needs."""

    network: Functional  # with the call signature of `networks/sequence.py`
    options: Options
    spec: DataSpec
    context: int  # maximum number of positions of the network

    name = "lm"  # of the network
    slides = True  # whether a text may become longer than the context
    never = ()  # sequences of tokens that are never drawn

    def start(
        self, params: dict, mutable: dict, num: int, condition: Condition, beams: int
    ) -> tuple[Partial, Int[Array, "B P"]]:
        """The network bound to its arrays, and the tokens that `num` samples begin with.

        Raises:
          ConfigError: several samples that would all be the same.
        """
        if "prompt" in condition:
            prompt = condition["prompt"]
        else:
            expected = "1 with --beams, which is deterministic: all texts would be the same"
            require(num == 1 or beams == 1, "--num", num, expected)
            first = self.spec.generated.facts["special"]["start"]
            prompt = jnp.full((num, 1), first, jnp.int32)
        return self.bound(params, mutable), prompt

    def bound(self, params: dict, mutable: dict) -> Partial:
        """The network bound to its arrays, for `sampling/decode.py`."""
        return bound(self, params, mutable)

    def terms(self, params: Tree, mutable: Tree, batch: Batch, **training) -> tuple[Terms, Tree]:
        """The terms at every position, and the new mutable state."""
        judge = tokens if is_text(self.spec) else frames
        return judge(self, params, mutable, batch, **training)


def is_text(spec: DataSpec) -> bool:
    """Whether the model generates tokens of text; if not, frames of piano rolls."""
    return spec.generated.kind == "text"


def outputs(spec: DataSpec) -> int:
    """The number of logits per position: one per token, or one per key."""
    return spec.generated.facts["vocabulary_size"] if is_text(spec) else KEYS


def bound(model: Language, params: dict, mutable: dict, **named: Array) -> Partial:
    """The network of a model bound to its arrays, and to arguments of its call by name."""
    net_params = params[model.name]
    if platform() == "cpu":
        net_params = unstacked(net_params)
    apply = Bound(_apply, (model.network, outputs(model.spec)))
    return Partial(apply, net_params, mutable[model.name], **named)


def _apply(
    network: Functional, known: int, params: Tree, mutable: Tree, x: Array, **named
) -> tuple[Array, Tree]:
    """Logits and cache; logits of tokens outside the tokenizer's vocabulary are -inf."""
    (logits, cache), _ = network.apply(params, mutable, x, **named)
    if known < logits.shape[-1]:
        logits = jnp.where(jnp.arange(logits.shape[-1]) < known, logits, -jnp.inf)
    return logits, cache


def logits(model: Language, params: dict, mutable: dict, batch: Batch) -> Float[Array, "B T V"]:
    """The logits of what follows each `token` of a batch, in its `segment` if there are any.

    It is what the model offers to another run, as a reference or a teacher.
    """
    found, _ = _apply(
        *(model.network, outputs(model.spec), params["lm"], mutable["lm"], batch["token"]),
        segment=batch.get("segment"),
    )
    return found


def tokens(
    model: Language, params: Tree, mutable: Tree, batch: Batch, **training
) -> tuple[Terms, Tree]:
    """The terms of all tokens but the first; a document's first token is not a target."""
    token, segment = batch["token"], batch.get("segment")
    input_segment = None if segment is None else segment[:, :-1]
    (logits, _), mutable = model.network.apply(
        params, mutable, token[:, :-1], segment=input_segment, **training
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
    """The terms of each frame; the input before the first frame of a tune is silence."""
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
    """Mean loss per target, in nats; a microbatch is weighted by its number of targets."""
    terms, changed = model.terms(
        params[model.name], mutable[model.name], batch, key=key, train=True
    )
    weight = terms.weight.sum()

    def mean(values: Float[Array, "B T"]) -> Float[Array, ""]:
        return (values * terms.weight).sum() / jnp.maximum(weight, 1.0)

    metrics = {"accuracy": mean(terms.correct)}
    if any(model.options):
        metrics["nll"] = mean(terms.nll)
    return mean(terms.loss), Aux(metrics, {model.name: changed}, weight)


def evaluate(
    model: Language, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Ratio]:
    """`loss` in nats and `accuracy`, both per target; for text also `bits_per_byte`.

    For piano rolls the first frame of a tune does not count, as in Bai et al. 2018.
    """
    terms, _ = model.terms(params[model.name], mutable[model.name], batch)
    weight = terms.weight
    if not is_text(model.spec):
        weight = weight * ~begins(batch["segment"])
    nll, count = (terms.nll * weight).sum(-1), weight.sum(-1)
    metrics = {
        "loss": Ratio(nll, count),
        "accuracy": Ratio((terms.correct * weight).sum(-1), count),
    }
    if "bytes" in batch:
        metrics["bits_per_byte"] = Ratio(nll / math.log(2), batch["bytes"])
    return metrics


def derived(means: Mapping[str, float]) -> dict[str, float]:
    """`perplexity`, the exponential of the mean loss per token."""
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
    end_tokens: Sequence[int] = (),
    beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
) -> Int[Array, "B S"] | Iterator[str]:
    """Continues each prompt; a text ends at any of the tokenizer's tokens that end a text.

    Args:
      model: the network.
      params: its parameters.
      mutable: its mutable state.
      key: random key of the draws.
      num: number of samples.
      condition: for `Language.start`: `prompt` [num, P], with shorter prompts padded with -1 on the
        left; without it, texts start from the beginning.
      decode: the tokenizer's `decode`; with it, there must be one prompt, and the continuation is
        returned as an iterator of texts.
      max_new_tokens: maximum number of tokens to add to each prompt; 0 means 256, and with beams
        or without a sliding window at most as many as the network has positions left.
      temperature: divides the logits; 0 takes the most probable token.
      top_k: see `logits.Options`, also for the options down to `min_new_tokens`.
      top_p: see there.
      min_p: see there.
      repetition_penalty: see there.
      no_repeat_ngram: see there.
      allowed: see there.
      banned: see there.
      min_new_tokens: see there.
      stop: other strings that end a text, as a `stopping.automaton`.
      end_tokens: other tokens that end a text.
      beams: number of beams of a beam search, which is deterministic; 1 is no beam search.
      length_penalty: see `beam_search`.
      early_stopping: see there.

    Returns:
      Tokens [num, S], padded with -1, or the iterator.

    Raises:
      ConfigError: an option out of range, or options that cannot be combined.
    """
    special = model.spec.generated.facts["special"]
    require(processors.whole_number(beams), "--beams", beams, "a whole number from 1")
    apply, prompt = model.start(params, mutable, num, condition, beams)
    valid = processors.whole_number(max_new_tokens) and max_new_tokens >= 0
    require(valid, "--max_new_tokens", max_new_tokens, "a whole number, at least 0")
    positions_left = max(model.context + 1 - prompt.shape[1], 1)
    slides = model.slides and beams == 1
    new_tokens = max_new_tokens or (NEW if slides else min(positions_left, NEW))
    eos = (*ends(special), *processors.ids("--end_tokens", end_tokens))
    processor_options = processors.Options(
        *(temperature, top_k, top_p, min_p, repetition_penalty, no_repeat_ngram),
        *(tuple(allowed), (*banned, *model.never), min_new_tokens),
    )
    chain = processors.chain(processor_options, eos=eos, prompt=prompt.shape[1])
    settings = {
        "max_new_tokens": new_tokens,
        "context": model.context,
        "eos": eos,
        "processors": chain,
    }
    if beams == 1:
        unchanged = length_penalty == 1 and early_stopping is False
        beam_options = (length_penalty, early_stopping)
        require(
            unchanged, "--length_penalty, --early_stopping", beam_options, "nothing without --beams"
        )
        key = None if temperature == 0 else key
        if decode is None:
            return generate(apply, prompt, key, stop=stop, **settings)
        return stream(apply, prompt[0], key, decode=decode, stop=stop, **settings)
    require(stop is None, "--stop", True, "nothing with --beams: they cannot be combined")
    require(decode is None, "--stream", True, "nothing with --beams: they cannot be combined")
    tokens, _ = beam_search(
        *(apply, prompt),
        beams=beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        **settings,
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
    """Draws piano rolls frame by frame, each key independently.

    Args:
      model: the network.
      params: its parameters.
      mutable: its mutable state.
      key: random key of the draws.
      num: number of rolls.
      condition: must be empty.
      frames: length of a roll; 0 means the training length.
      temperature: divides the logits.

    Raises:
      ConfigError: a condition, or an option out of range.
    """
    names = tuple(condition)
    require(not names, "conditions", names, "none: a roll is drawn from the beginning")
    most = min(model.context, MOST_FRAMES)
    valid = processors.whole_number(frames) and 0 <= frames <= most
    require(valid, "--frames", frames, f"0 to {most}")
    processors.require_temperature("--temperature", temperature)
    length = frames or model.spec.generated.shape[0]
    return _frames(model.bound(params, mutable), key, num, length, float(temperature))


@partial(jax.jit, static_argnames=("num", "length"))
def _frames(
    apply: Partial, key: Array, num: int, length: int, temperature: Float[Array, ""] | float
) -> UInt8[Array, "B T 88"]:
    """Draws the frames in order, each conditioned on the earlier ones."""

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
    """The model of any network with the call signature of `networks/sequence.py`.

    `documents` is `dataset.text.documents`, which determines the tokens before a prompt.
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
        apply=partial(logits, model) if text else None,
        conditions={"prompt": prompt_field(spec, documents)} if text else {},
        options=prompts.readers(spec.generated.facts["tokenizer"]) if text else {},
    )


def prompt_field(spec: DataSpec, documents: str) -> Field:
    """The field of a prompt: text of any length, after the tokens that begin every text, if any.

    See `tokenizers.begins`.
    """
    facts = spec.generated.facts
    begin = tokenizers.begins(facts["tokenizer"], facts["special"], documents)
    return Field("text", (None,), np.dtype(np.int32), {**facts, "begin": begin})


# What to do if the model in config.weights is smaller than the data require.
_SIZE_ADVICE = {
    "length": "the model in config.weights has no more positions; give a smaller "
    "--config.dataset.text.length",
    "vocabulary_size": "the model in config.weights has no more tokens; give its tokenizer.json "
    "as --config.dataset.text.tokenizer",
}


class Parts(NamedTuple):
    """What a config says of a language model's network; `context` is its most positions."""

    network: Functional
    context: int
    rules: Rules


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The model with the network of `config.model` on the sequences of `spec`.

    Pairs of texts become prompts and answers by `config.dataset.text.template`; see
    `data.prompted`.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Network`,
    `RULES` and, if its cache has no limit, `ENDLESS = True`, such as `decoder`, `recurrent` or
    `tcn`; `config.model.lm` are its options. Length and vocabulary are those of the data unless
    `config.model.length` and `.vocabulary_size` are larger. With `config.weights` (see
    `interop.pretrained`), a new run starts from these weights.

    Raises:
      ConfigError: the data are not sequences, or the config asks for something that does not exist.
    """
    if pairs := prompted.of_pairs(spec, config.dataset.text.template):
        return on_pairs(build(config, pairs.rows), pairs, spec)
    options = read_options(config.lm, "lm", Options)
    for name, value in options._asdict().items():
        require(is_text(spec) or not value, f"config.lm.{name}", value, "0 with piano rolls")
    network, context, rules = parts(config, spec)
    documents = config.dataset.text.documents
    return with_weights(config, from_network(network, options, spec, context, rules, documents))


def parts(config: ConfigDict, spec: DataSpec, *, whole: bool = False, **given: Any) -> Parts:
    """The network of `config.model`, as `build` describes it; `given` are more of its arguments.

    It reads the rows of the data without their last token, or with it if `whole`.

    Raises:
      ConfigError: as `build`, or the network does not take an argument of `given`.
    """
    if spec.generated.kind not in ("text", "roll"):
        raise ConfigError(
            f"method {config.method} needs text or piano rolls; {spec.target!r} of {spec.name} is "
            f"of kind {spec.generated.kind!r}. Give a "
            "--config.dataset.name such as tiny_shakespeare, or text with --config.dataset.path."
        )
    module = find_module(
        "model.network", config.model.network, "genjax.networks", "Network", "RULES"
    )
    for name in given:
        known = name in inspect.signature(module.Network.__init__).parameters
        expected = f"a network with the argument {name}, such as decoder"
        require(known, "config.model.network", config.model.network, expected)
    text = is_text(spec)
    length = spec.generated.shape[0] - (text and not whole)
    sizes = {"length": length, "vocabulary_size": outputs(spec)}
    for name, least in sizes.items():
        sizes[name] = config.model[name] or least
        needed = f"at least {least}, as in the data, or 0"
        if config.get("weights"):  # the weights fix the size, so 0 would not help
            needed = f"at least {least}, as in the data: {_SIZE_ADVICE[name]}"
        require(sizes[name] >= least, f"config.model.{name}", config.model[name], needed)
    size = sizes["vocabulary_size"]
    require(text or size == KEYS, "config.model.vocabulary_size", size, f"{KEYS} keys, or 0")

    def network(rngs):
        return construct(
            module.Network,
            config.model.lm,
            "model.lm",
            **sizes,
            **given,
            frames=not text,
            dtype=jnp.dtype(config.precision),
            rngs=rngs,
        )

    context = ENDLESS if getattr(module, "ENDLESS", False) else sizes["length"]
    return Parts(functional(network), context, module.RULES)


def with_weights(config: ConfigDict, method: Method) -> Method:
    """`method`, whose new runs start from the weights that `config.weights` names, if any."""
    if not config.get("weights"):
        return method
    return method._replace(pretrained=lambda: ({"lm": pretrained.read(config.weights).params}, {}))
