"""Models that generate a text from another or from an image: an encoder and a decoder.

The likelihood of a target is a product over its tokens, each conditioned on the source and on the
tokens before it (Sutskever et al. 2014). The pairs come from the data, or are made of plain text by
`config.seq2seq.corruption`: "spans" (T5) or "infilling" (BART). Decoding is that of `methods.lm`.

The source may be an image, whose caption is the target (Vinyals et al. 2015, Show and Tell).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Positive, Range, Rate, one_of, require
from genjax.config import construct, read_options
from genjax.data.prompted import refuse_preferences
from genjax.data.text import TOKENIZER
from genjax.interop import encoder_decoder
from genjax.method import Batch, DataSpec, Field, Method, Phase, TextEncoder, Tree, find_module
from genjax.methods import lm
from genjax.methods.corruption import corrupt_spans, infill, spans
from genjax.modalities.image import image_shape
from genjax.nn.functional import Functional, functional
from genjax.nn.pixels import to_float
from genjax.sampling import prompts
from genjax.sampling.beam import MOST_BEAMS
from genjax.sampling.conditions import Condition, required

CORRUPTIONS = ("spans", "infilling")
SOURCE, TARGET = "source", "target"  # of pairs that are made of plain text


class Options(NamedTuple):
    """The `seq2seq` section of a config, and its defaults.

    Attributes:
      label_smoothing: see `lm.Options`, also for the next.
      z_loss: see there.
      corruption: how pairs are made of plain text, one of CORRUPTIONS; "" for data of pairs.
      density: the share of the tokens that corruption takes out. T5 has 0.15, BART 0.3.
      mean_span: the mean length of what it takes out in one piece.
      start: the token before each target; -1 for the tokenizer's.
      beams: number of beams of samples if --beams is not given; 1 takes the most probable token.
    """

    label_smoothing: Rate = 0.0
    z_loss: Rate = 0.0
    corruption: str = ""
    density: Annotated[float, Range(0, 0.5, above=True)] = 0.15
    mean_span: Positive = 3.0
    start: Annotated[int, Range(-1, 2**31 - 1)] = -1
    beams: Annotated[int, Range(1, MOST_BEAMS)] = 1


class Pairs(NamedTuple):
    """Where pairs come from.

    Attributes:
      spec: of the pairs; its fields are the source and the target, and perhaps others.
      source: the name of the source, a text or an image.
      make: (batch of the data, key) -> batch of pairs; None if the data are pairs.
      gaps: the tokens that stand for the gaps of a source, in turn.
    """

    spec: DataSpec
    source: str
    make: Callable[[Batch, Array], Batch] | None
    gaps: tuple[int, ...] = ()

    def read(self, source: Array, end: int) -> dict[str, Array]:
        """The network's arguments for a source: images in [-1, 1]; texts, and which of it is seen.

        `end` is the token that ends a text.
        """
        if self.spec.fields[self.source].kind == "image":
            return {"source": to_float(source)}
        return {"source": source, "seen": whole(source, end)}


class Seq2seq(NamedTuple):
    """The network and the settings that every function needs; `lm` uses it like a `Language`."""

    network: Functional  # `networks/encoder_decoder.py`
    options: lm.Options
    spec: DataSpec  # of the pairs
    context: int  # maximum number of positions of the target
    pairs: Pairs
    first: int  # the token before each target

    name = "seq2seq"
    slides = False

    def start(
        self, params: dict, mutable: dict, num: int, condition: Condition, beams: int
    ) -> tuple[Partial, Int[Array, "B 1"]]:
        """The decoder bound to the encoded sources, and the token that each target begins with.

        Raises:
          ConfigError: there is no source.
        """
        del beams
        gaps, name = self.pairs.gaps, self.pairs.source
        if gaps and name not in condition:
            source = jnp.full((num, 2), self._end).at[:, 0].set(gaps[0])  # all is to be filled in
        else:
            source = filled(jnp.asarray(required(condition, name)), gaps)
        sources = self.pairs.read(source, self._end)
        context = _encoded(self.network, params[self.name], mutable[self.name], sources)
        bound = lm.bound(self, params, mutable, context=context, seen=sources.get("seen"))
        return bound, jnp.full((num, 1), self.first, jnp.int32)

    def terms(self, params: Tree, mutable: Tree, batch: Batch, **training) -> tuple[lm.Terms, Tree]:
        """The terms of each token of a target, to its end, given its source and earlier tokens."""
        source, target = batch[self.pairs.source], batch[self.spec.target]
        before = jnp.full((len(target), 1), self.first, target.dtype)
        counts = whole(target, self._end)
        joined = {
            "token": jnp.concatenate([before, target], axis=1),
            "loss_mask": jnp.pad(counts, ((0, 0), (1, 0))),
        }
        sources = self.pairs.read(source, self._end)
        return lm.tokens(self, params, mutable, joined, **sources, **training)

    @property
    def never(self) -> tuple[tuple[int], ...]:
        """The token that pads targets, which a model does not learn to leave out."""
        special = self.spec.generated.facts["special"]
        return ((special["pad"],),) if special.get("pad", self._end) != self._end else ()

    @property
    def _end(self) -> int:
        return self.spec.generated.facts["special"]["eos"]


@partial(jax.jit, static_argnums=0)
def _encoded(
    network: Functional, params: Tree, mutable: Tree, sources: dict[str, Array]
) -> Float[Array, "B S D"]:
    """The encoder's output."""
    return network.apply(params, mutable, None, **sources)[0]


def whole(token: Int[Array, "B T"], end: int) -> Bool[Array, "B T"]:
    """Which tokens belong to a text: those up to the first that ends it, and this one."""
    ends = token == end
    return jnp.cumsum(ends, axis=1) - ends == 0


def filled(source: Int[Array, "B S"], gaps: tuple[int, ...]) -> Int[Array, "B S"]:
    """The source with the tokens `gaps`, in turn, in place of each -1."""
    if not gaps:
        return source
    number = jnp.cumsum(source < 0, axis=1) - 1
    return jnp.where(source < 0, jnp.asarray(gaps)[number % len(gaps)], source)


def text_encoder(model: Seq2seq) -> TextEncoder | None:
    """The encoder, for other runs; None if it reads images."""
    pairs = model.pairs
    if pairs.spec.fields[pairs.source].kind == "image":
        return None

    def encode(
        params: dict, mutable: dict, text: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Bool[Array, "B T"]]:
        sources = pairs.read(text, model._end)
        variables = params[model.name], mutable[model.name]
        return _encoded(model.network, *variables, sources).astype(jnp.float32), sources["seen"]

    return TextEncoder(pairs.spec.fields[pairs.source], encode)


def evaluate(
    model: Seq2seq, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, lm.Ratio]:
    """`loss` in nats and `accuracy`, both per token of the targets, with their ends."""
    make = model.pairs.make
    return lm.evaluate(model, params, mutable, make(batch, key) if make else batch, key)


def pairs_of(spec: DataSpec, options: Options) -> Pairs:
    """The pairs that the data have, or that are made of their text.

    Raises:
      ConfigError: the data are neither two texts, nor images whose captions are the target, nor
        rows of plain text; they are preferences, or `corruption` does not fit them.
    """
    refuse_preferences(spec)
    o, texts = options, [name for name, field in spec.fields.items() if field.kind == "text"]
    if spec.name == TOKENIZER:  # no data: a model to sample from or to export
        field = spec.generated._replace(shape=(spec.generated.shape[0] - 1,))
        expected = "a tokenizer with a token that ends a text"
        require("eos" in field.facts["special"], "config.dataset.text.tokenizer", "", expected)
        pair = DataSpec(spec.name, {SOURCE: field, TARGET: field}, TARGET, spec.sizes)
        return Pairs(pair, SOURCE, _same)
    images = [name for name, field in spec.fields.items() if field.kind == "image"]
    if texts == [spec.target] and len(images) == 1:
        expected = f"'' for {spec.name}, whose examples are images with captions"
        require(not o.corruption, "config.seq2seq.corruption", o.corruption, expected)
        image_shape(spec._replace(target=images[0]), "seq2seq")
        return Pairs(spec, images[0], None)
    if len(texts) == 2 and spec.target in texts:
        expected = f"'' for {spec.name}, whose examples are pairs"
        require(not o.corruption, "config.seq2seq.corruption", o.corruption, expected)
        (source,) = (name for name in texts if name != spec.target)
        return Pairs(spec, source, None)
    if texts != ["token"]:
        raise ConfigError(
            f"method seq2seq needs two texts, one of them the target; {spec.name} has the texts "
            f"{', '.join(texts) or 'none'} and the target {spec.target}. Give "
            "--config.dataset.name=pairs with --config.dataset.path, plain text with "
            "--config.seq2seq.corruption=spans, or images with captions, such as avatars, with "
            "--config.dataset.target=text."
        )
    one_of("config.seq2seq.corruption", o.corruption, CORRUPTIONS)
    whole_rows = "segment" not in spec.fields
    expected = "'stream' with config.seq2seq.corruption, which fills each row"
    require(whole_rows, "config.dataset.text.documents", "packed or padded", expected)
    return _corrupted(spec, o)


def _same(batch: Batch, key: Array) -> Batch:
    """A text as the target of itself, which gives the shapes of pairs where there are no data."""
    del key
    return dict.fromkeys((SOURCE, TARGET), batch["token"][:, :-1])


def _corrupted(spec: DataSpec, o: Options) -> Pairs:
    """Pairs of the rows of plain text; the tokens that corruption needs follow those of the text.

    These are the tokens of the gaps and, if the text has no token that ends it, one for that.
    """
    plain = spec.generated
    L, size = plain.shape[0] - 1, plain.facts["vocabulary_size"]  # the last token begins the next
    noise, count = spans(L, o.density, o.mean_span)
    gaps = tuple(range(size, size + (count if o.corruption == "spans" else 1)))
    special = dict(plain.facts["special"])
    end = special.setdefault("eos", gaps[-1] + 1)
    facts = {**plain.facts, "special": special, "vocabulary_size": max(gaps[-1], end) + 1}

    def make(batch: Batch, key: Array) -> Batch:
        token = batch["token"][:, :-1]
        if o.corruption == "spans":
            corrupt = partial(corrupt_spans, noise=noise, count=count, first=size, end=end)
        else:
            corrupt = partial(infill, noise=noise, mean=o.mean_span, mask=size, end=end)
        pair = jax.vmap(corrupt)(jax.random.split(key, len(token)), token)
        return dict(zip((SOURCE, TARGET), pair, strict=True))

    row = jax.ShapeDtypeStruct((1, L + 1), jnp.int32)
    made = jax.eval_shape(make, {"token": row}, jax.random.key(0))
    lengths = {name: array.shape[1] for name, array in made.items()}
    fields = {
        name: Field("text", (length,), np.dtype(np.int32), facts)
        for name, length in lengths.items()
    }
    return Pairs(DataSpec(spec.name, fields, TARGET, spec.sizes), SOURCE, make, gaps)


def source_field(pairs: Pairs) -> Field:
    """The field of the condition: with gaps, [MASK] in its text stands for one."""
    field = pairs.spec.fields[pairs.source]
    if not pairs.gaps:
        return field
    return field._replace(
        facts={**field.facts, "tokenizer": prompts.Gaps(field.facts["tokenizer"])}
    )


def from_network(
    network: Functional, options: Options, pairs: Pairs, context: int, rules
) -> Method:
    """The model of any network with the call signature of `networks/encoder_decoder.py`."""
    facts = pairs.spec.generated.facts
    first = facts["special"]["start"] if options.start < 0 else options.start
    known = f"-1, or a token from 0 to {facts['vocabulary_size'] - 1}"
    require(first < facts["vocabulary_size"], "config.seq2seq.start", first, known)
    of_loss = lm.Options(options.label_smoothing, options.z_loss)
    model = Seq2seq(network, of_loss, pairs.spec, context, pairs, first)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = network.init(key)
        return {model.name: params}, {model.name: mutable}

    def prepare(params: dict, mutable: dict, batch: Batch, key: Array, step: Array) -> Batch:
        return pairs.make(batch, key)

    return Method(
        init=init,
        phases=(Phase(model.name, partial(lm.loss, model)),),
        evaluate=partial(evaluate, model),
        sample=partial(lm.sample, model, temperature=0.0, beams=options.beams),
        rules=rules,
        derived=lm.derived,
        conditions={pairs.source: source_field(pairs)},
        options=prompts.readers(facts["tokenizer"]),
        output=pairs.spec.generated if pairs.make else None,
        prepare=prepare if pairs.make else None,
        text_encoder=text_encoder(model),
    )


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The model with the network of `config.model` on the pairs of `spec`.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Network` and
    `RULES`, such as `encoder_decoder`; `config.model.seq2seq` are its options. Lengths and
    vocabulary are those of the data unless `config.model.length`, `.source_length` and
    `.vocabulary_size` are larger. With `config.weights`, a folder of `interop.encoder_decoder`, a
    new run starts from these weights.

    Raises:
      ConfigError: the data are not pairs of texts and cannot be made into such, or the config asks
        for something that does not exist.
    """
    options = read_options(config.seq2seq, "seq2seq", Options)
    pairs = pairs_of(spec, options)
    module = find_module(
        "model.network", config.model.network, "genjax.networks", "Network", "RULES"
    )
    fields, target = pairs.spec.fields, pairs.spec.generated
    sizes = {"vocabulary_size": target.facts["vocabulary_size"], "length": target.shape[0]}
    source, of_image = fields[pairs.source], {}
    if source.kind == "image":
        takes = "source_shape" in inspect.signature(module.Network.__init__).parameters
        expected = "a network that reads images, such as image_to_text"
        require(takes, "config.model.network", config.model.network, expected)
        of_image = {"source_shape": source.shape}
    else:
        sizes["source_length"] = source.shape[0]
    for name, least in sizes.items():
        given = config.model.get(name) or least
        require(given >= least, f"config.model.{name}", given, f"at least {least}, as in the data")
        sizes[name] = given

    def network(rngs):
        options, dtype = config.model.seq2seq, jnp.dtype(config.precision)
        named = {**sizes, **of_image, "dtype": dtype, "rngs": rngs}
        return construct(module.Network, options, "model.seq2seq", **named)

    rules, context = module.RULES, sizes["length"]
    method = from_network(functional(network), options, pairs, context, rules)
    if not config.get("weights"):
        return method
    weights, name = config.weights, Seq2seq.name
    return method._replace(pretrained=lambda: ({name: encoder_decoder.read(weights).params}, {}))
