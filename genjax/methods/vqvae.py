"""Autoencoders with discrete codes: VQ-VAE (van den Oord et al. 2017), residual VQ, and FSQ.

An encoder makes an image of vectors; each is replaced by the nearest code of a codebook, or
rounded; a decoder makes the image again. The numbers of the codes are tokens.
"""

from __future__ import annotations

import math
from functools import partial
from types import MappingProxyType
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from genjax.checks import Blocks, ConfigError, Range, Weight, Width, one_of, require
from genjax.config import construct, read_options
from genjax.method import (
    Alarm,
    Aux,
    Batch,
    Codec,
    DataSpec,
    Method,
    Phase,
    Rules,
    Tree,
    find_module,
)
from genjax.modalities.image import image_shape
from genjax.networks.autoencoders import check_mirrored
from genjax.nn import likelihoods, quantize
from genjax.nn.functional import Functional, functional, output_shape
from genjax.nn.pixels import nearness, to_float, to_uint8
from genjax.parallel.rules import replicate
from genjax.sampling import latents
from genjax.sampling.conditions import Condition, labels

# Choice -> the keys that it makes useless; 0, where they know it, says so.
USELESS = {
    ("quantizer", "vq"): ("levels",),
    ("quantizer", "fsq"): (
        *("codes", "code_dim", "depth", "gradient", "learn", "commitment"),
        *("restart_below", "kmeans"),
    ),
    ("learn", "loss"): ("restart_below", "kmeans"),
}
MOST_CODES = 2**20  # the share of each is kept
Level = Annotated[int, Range(3, 1000)]  # `quantize.fsq` has a slack, and 2 hardly learn
GRADIENTS = {"straight_through": quantize.straight_through, "rotation": quantize.rotation}


class Options(NamedTuple):
    """The `vqvae` section of a config, and its defaults.

    Attributes:
      quantizer: "vq", the nearest of a codebook's vectors; "fsq", rounding (Mentzer et al. 2024).
      codes: K, vectors in a codebook.
      code_dim: their length.
      depth: codebooks, each of what the ones before leave over (residual VQ, Zeghidour et al.
        2021, algorithm 1); with "loss" each is drawn to that.
      levels: of "fsq": values of each dimension, 3 or more: of 2 the published bound is so flat
        where vectors begin that they hardly learn.
      gradient: through the nearest code: "straight_through" or "rotation" (Fifty et al. 2024).
      learn: how codebooks follow the encoder: "ema" (van den Oord et al. 2017, appendix A.1) or
        "loss" (eq. 3).
      decay: of the averages.
      commitment: weight of the encoder's distance from its codes (eq. 3).
      restart_below: average count under which a code begins anew on a vector of the batch; 0: off.
        With "ema".
      kmeans: iterations of k-means by which the first batch makes the codebook; 0: random vectors.
        With "ema".
      collapse_below: share c of the way from one code to all K: a run is warned of collapse when
        a codebook's perplexity is under 1 + c (K - 1).
      collapse_after: evaluations in a row under it before the warning.
    """

    quantizer: str = "vq"
    codes: Annotated[int, Range(2, MOST_CODES)] = 512
    code_dim: Width = 32
    depth: Blocks = 1
    levels: tuple[Level, ...] = (8, 5, 5, 5)
    gradient: str = "rotation"
    learn: str = "ema"
    decay: Annotated[float, Range(0, 1, above=True, below=True)] = 0.99
    commitment: Weight = 0.25
    restart_below: Weight = 0.1
    kmeans: Annotated[int, Range(0, 10_000)] = 10
    collapse_below: Annotated[float, Range(0, 1, below=True)] = 0.05
    collapse_after: Annotated[int, Range(1, 1_000_000)] = 3


def options_from_config(section: ConfigDict) -> Options:
    """Reads and checks the `vqvae` section.

    Raises:
      ConfigError: an unknown key or choice, a number out of range, or a key that the others make
        useless.
    """
    o = read_options(section, "vqvae", Options)
    one_of("vqvae.quantizer", o.quantizer, ("vq", "fsq"))
    one_of("vqvae.gradient", o.gradient, tuple(GRADIENTS))
    one_of("vqvae.learn", o.learn, ("ema", "loss"))
    fits = o.codes * o.depth <= MOST_CODES
    require(fits, "vqvae.codes * vqvae.depth", o.codes * o.depth, f"at most {MOST_CODES:,}")
    fits = bool(o.levels) and math.prod(o.levels) <= MOST_CODES
    require(fits, "vqvae.levels", o.levels, f"one or more, and at most {MOST_CODES:,} codes")
    for choice in ("quantizer", "learn"):
        names, usual = USELESS.get((choice, getattr(o, choice)), ()), Options()
        changed = [name for name in names if getattr(o, name) not in (getattr(usual, name), 0)]
        if changed:
            here, there = (
                ", ".join(f"vqvae.{name}={getattr(options, name)!r}" for name in changed)
                for options in (o, usual)
            )
            raise ConfigError(
                f"{here}: of no effect with vqvae.{choice}={getattr(o, choice)!r}. Set {there}, or "
                f"choose another vqvae.{choice}."
            )
    return o


class Quantised(NamedTuple):
    """What became of the encoder's vectors.

    Attributes:
      z: the codes, with a gradient to the encoder.
      index: their numbers, one for each codebook.
      shares: of each code in this batch.
      loss: of commitment, and of the codebook if it learns by loss.
      mutable: the codebooks after this batch; as they were, outside of training.
    """

    z: Float[Array, "B h w D"]
    index: Int[Array, "B h w Q"]
    shares: Float[Array, "Q K"]
    loss: Float[Array, ""]
    mutable: Tree


class Autoencoder(NamedTuple):
    """The networks, and what every function of the family needs to know beside its arrays."""

    encoder: Functional  # image in [-1, 1] -> vectors
    decoder: Functional  # codes -> image
    options: Options
    spec: DataSpec

    @property
    def sizes(self) -> tuple[int, int]:
        """(tokens for each position, values of a token)."""
        o = self.options
        if o.quantizer == "vq":
            return o.depth, o.codes
        return 1, math.prod(o.levels)

    def encode(
        self, params: Tree, mutable: Tree, x: Float[Array, "B H W C"], **training
    ) -> tuple[Float[Array, "B h w D"], Tree]:
        """The encoder's vectors, and its new mutable state."""
        return self.encoder.apply(params["encoder"], mutable["encoder"], x, **training)

    def quantise(
        self, params: Tree, mutable: Tree, z: Float[Array, "B h w D"], key: Array, train: bool
    ) -> Quantised:
        """Replaces each vector by its code; in training the codebooks follow."""
        o, zero = self.options, jnp.float32(0)
        if o.quantizer == "fsq":
            code = quantize.fsq(z, o.levels)
            index = quantize.fsq_index(code, o.levels)[..., None]
            shares, mutable = self._counted(mutable, index, train)
            return Quantised(code, index, shares, zero, mutable)
        x = z.reshape(-1, z.shape[-1])
        rest, books = jax.lax.stop_gradient(x), mutable.get("books", {})
        if train and books and o.kmeans:
            books = jax.lax.cond(mutable["ready"], lambda x, k: books, self._first_books, rest, key)
        total, index, moved, learned = jnp.zeros_like(x), [], {}, zero
        for q in range(o.depth):
            name = str(q)
            codes = books[name]["codes"] if books else params["codes"][q]
            chosen = quantize.nearest(rest, jax.lax.stop_gradient(codes))
            if books:
                moved[name] = quantize.ema_update(books[name], rest, chosen, o.decay)
                if o.restart_below:
                    key_q = jax.random.fold_in(key, o.depth + q)
                    moved[name] = quantize.restart(moved[name], rest, key_q, o.restart_below)
            else:
                learned += jnp.square(rest - codes[chosen]).mean()
            total = total + codes[chosen]
            rest = rest - jax.lax.stop_gradient(codes[chosen])
            index.append(chosen)
        fixed = jax.lax.stop_gradient(total)
        loss = o.commitment * jnp.square(x - fixed).mean() + learned
        index = jnp.stack(index, -1).reshape(*z.shape[:-1], o.depth)
        shares, mutable = self._counted(mutable, index, train)
        if train and books:
            mutable = {**mutable, "books": moved, "ready": jnp.array(True)}
        code = GRADIENTS[o.gradient](x, fixed).reshape(z.shape)
        return Quantised(code, index, shares, loss, mutable)

    def _first_books(self, x: Float[Array, "N D"], key: Array) -> Tree:
        """Codebooks by k-means, each of what the ones before leave of the batch.

        A code's count is the size of its cell, and 1 if that is empty.
        """
        books = {}
        for q in range(self.options.depth):
            codes = quantize.kmeans(
                x, jax.random.fold_in(key, q), self.options.codes, self.options.kmeans
            )
            index = quantize.nearest(x, codes)
            sizes = quantize.histogram(index, len(codes)) * len(x)
            books[str(q)] = quantize.codebook(codes, jnp.maximum(sizes, 1))
            x = x - codes[index]
        return books

    def _counted(
        self, mutable: Tree, index: Int[Array, "B h w Q"], train: bool
    ) -> tuple[Float[Array, "Q K"], Tree]:
        """The shares of this batch, and in training the running ones with it."""
        depth, size = self.sizes
        found = jnp.stack([quantize.histogram(index[..., q], size) for q in range(depth)])
        if not train:
            return found, mutable
        decay = self.options.decay
        return found, {**mutable, "shares": decay * mutable["shares"] + (1 - decay) * found}

    def shares(self, mutable: Tree) -> Float[Array, "Q K"]:
        """The share of each code in what was trained on lately; of nothing all are 0."""
        total = mutable["shares"].sum(-1, keepdims=True)
        return mutable["shares"] / jnp.maximum(total, 1e-20)

    def scaled(
        self, log_scale: Float[Array, ""], made: Float[Array, "B H W C"], x: Float[Array, "B H W C"]
    ) -> Float[Array, ""]:
        """The log scale of p(x | z) after a batch: nearer to where its images are likeliest.

        That scale has no formula, as the first and the last bin reach to infinity: half of a
        picture that is black says nothing of it. A step goes up the mean pixel's slope, by 1 -
        decay times it and no more than that.
        """
        slope = jax.grad(lambda s: likelihoods.discretised("gaussian", x, made, s).mean())(
            log_scale
        )
        return log_scale + (1 - self.options.decay) * jnp.clip(slope, -1, 1)

    def look_up(
        self, params: Tree, mutable: Tree, index: Int[Array, "B h w Q"]
    ) -> Float[Array, "B h w D"]:
        """The codes of tokens."""
        o = self.options
        if o.quantizer == "fsq":
            return quantize.fsq_code(index[..., 0], o.levels)
        books = mutable.get("books")
        tables = [books[str(q)]["codes"] if books else params["codes"][q] for q in range(o.depth)]
        return sum(table[index[..., q]] for q, table in enumerate(tables))

    def decode(
        self, params: Tree, mutable: Tree, z: Float[Array, "B h w D"], **training
    ) -> tuple[Float[Array, "B H W C"], Tree]:
        """The image of codes in [-1, 1], and the decoder's new mutable state."""
        return self.decoder.apply(params["decoder"], mutable["decoder"], z, **training)


def loss(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """Mean squared error of pixels in [-1, 1], and what keeps vectors and codes together."""
    params, mutable = params["autoencoder"], mutable["autoencoder"]
    key_net, key_code = (jax.random.fold_in(key, i) for i in range(2))
    training = {"key": key_net, "train": True}
    x = to_float(batch[model.spec.target])
    z, encoder = model.encode(params, mutable, x, **training)
    found = model.quantise(params, mutable, z, key_code, train=True)
    made, decoder = model.decode(params, mutable, found.z, **training)
    error = jnp.square(made - x).mean()
    scale = model.scaled(mutable["log_scale"], jax.lax.stop_gradient(made), x)
    metrics = {
        "mse": error,
        "code_perplexity": jax.vmap(quantize.perplexity)(found.shares).mean(),
        "code_usage": (found.shares > 0).mean(),
    }
    changed = {**found.mutable, "log_scale": scale, "encoder": encoder, "decoder": decoder}
    return error + found.loss, Aux(metrics, {"autoencoder": changed}, float(len(x)))


def _reconstruct(
    model: Autoencoder, params: Tree, mutable: Tree, x: Float[Array, "B H W C"]
) -> tuple[Float[Array, "B H W C"], Int[Array, "B h w Q"]]:
    z, _ = model.encode(params, mutable, x)
    found = model.quantise(params, mutable, z, jax.random.key(0), train=False)
    return model.decode(params, mutable, found.z)[0], found.index


def _log_likelihood(
    mutable: Tree, made: Float[Array, "B H W C"], x: Float[Array, "B H W C"]
) -> Float[Array, "B"]:
    return likelihoods.discretised("gaussian", x, made, mutable["log_scale"]).sum((1, 2, 3))


def evaluate(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Array]:
    """ELBO of the 8-bit image and its parts in nats, and `nearness` of its reconstruction.

    The ELBO has a uniform prior of the tokens, so that its KL is the log of the codes' number for
    each token (van den Oord et al. 2017, section 3.2), and for p(x | z) a Gaussian around the
    decoder's image, discretised to 8 bits, whose one scale follows the training images
    (`Autoencoder.scaled`; Rybkin et al. 2021). `code_perplexity` and `code_usage` are of the codes'
    running shares in training: means over codebooks, and the lowest perplexity of one. A code
    counts as used with more than a hundredth of an equal share.
    """
    params, mutable = params["autoencoder"], mutable["autoencoder"]
    x = to_float(batch[model.spec.target])
    made, index = _reconstruct(model, params, mutable, x)
    shares = model.shares(mutable)
    perplexity = jax.vmap(quantize.perplexity)(shares)
    likelihood = _log_likelihood(mutable, made, x)
    kl = jnp.float32(index[0].size * math.log(shares.shape[-1]))
    return {
        "elbo": likelihood - kl,
        "bits_per_dim": (kl - likelihood) / (math.log(2) * x[0].size),
        "reconstruction": likelihood,
        "kl": kl,
        **nearness(made, x),
        "code_perplexity": perplexity.mean(),
        "lowest_code_perplexity": perplexity.min(),
        "code_usage": (shares > 0.01 / shares.shape[-1]).mean(),
    }


def encode(model: Autoencoder, params: dict, mutable: dict, batch: Batch) -> Int[Array, "B h w Q"]:
    """The tokens of 8-bit images."""
    params, mutable = params["autoencoder"], mutable["autoencoder"]
    z, _ = model.encode(params, mutable, to_float(batch[model.spec.target]))
    return model.quantise(params, mutable, z, jax.random.key(0), train=False).index


def log_likelihood(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, index: Int[Array, "B h w Q"]
) -> Float[Array, "B"]:
    """log p(x | tokens) of 8-bit images, in nats."""
    params, mutable = params["autoencoder"], mutable["autoencoder"]
    made, _ = model.decode(params, mutable, model.look_up(params, mutable, index))
    return _log_likelihood(mutable, made, to_float(batch[model.spec.target]))


def decode(model: Autoencoder, params: dict, mutable: dict, index: Int[Array, "B h w Q"]) -> Array:
    """The 8-bit images of tokens."""
    params, mutable = params["autoencoder"], mutable["autoencoder"]
    return to_uint8(model.decode(params, mutable, model.look_up(params, mutable, index))[0])


def sample(
    model: Autoencoder,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
) -> Array:
    """Images of tokens drawn independently by their shares in training.

    What the decoder makes without a prior: textures, not pictures.

    Raises:
      ConfigError: conditions, which this model does not know.
    """
    labels(model.spec, False, num, condition, key)
    shares = model.shares(mutable["autoencoder"])
    logits = jnp.log(jnp.maximum(shares, 1e-20))
    side = output_shape(model.encoder, _one(model.spec))[1:3]
    index = jax.random.categorical(key, logits, shape=(num, *side, len(shares)))
    return decode(model, params, mutable, index)


def _one(spec: DataSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *spec.generated.shape), jnp.float32)


def pictures(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Array]:
    """Reconstructions, and how often each code was used in training, the most used first."""
    own = (params["autoencoder"], mutable["autoencoder"])
    made = to_uint8(_reconstruct(model, *own, to_float(batch[model.spec.target]))[0])
    return {
        "reconstructions": latents.reconstructions(batch[model.spec.target], made),
        "code_usage": latents.bars(model.shares(own[1])),
    }


def from_networks(
    encoder: Functional, decoder: Functional, options: Options, spec: DataSpec, rules: Rules
) -> Method:
    """The autoencoder of any two networks with the call signatures that `Autoencoder` names."""
    model = Autoencoder(encoder, decoder, options, spec)
    depth, size = model.sizes

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = {}, {"shares": jnp.zeros((depth, size)), "log_scale": jnp.zeros(())}
        for i, name in enumerate(("encoder", "decoder")):
            net = getattr(model, name)
            params[name], mutable[name] = net.init(jax.random.fold_in(key, i))
        if options.quantizer == "vq":
            codes = jax.random.normal(jax.random.fold_in(key, 2), (depth, size, options.code_dim))
            if options.learn == "loss":
                params["codes"] = codes
            else:
                books = {str(q): quantize.codebook(codes[q]) for q in range(depth)}
                mutable |= {"books": books, "ready": jnp.array(False)}
        return {"autoencoder": params}, {"autoencoder": mutable}

    return Method(
        init=init,
        phases=(Phase("autoencoder", partial(loss, model)),),
        evaluate=partial(evaluate, model),
        sample=partial(sample, model),
        rules=((r"(shares|log_scale|ready|codes|counts|sums)$", replicate), *rules),
        pictures=partial(pictures, model),
        alarms=(_collapse(options, size),),
        codec=Codec(
            ("autoencoder",),
            *(partial(function, model) for function in (encode, decode)),
            size,
            partial(log_likelihood, model),
        ),
    )


def _collapse(o: Options, size: int) -> Alarm:
    advice = {
        "fsq": "lower the learning rate, or ask for fewer vqvae.levels.",
        "vq": "raise vqvae.restart_below (with vqvae.learn='ema'), lower the learning rate or "
        "vqvae.codes, or use vqvae.quantizer='fsq', which has no codebook.",
    }[o.quantizer]
    text = f"few of the {size} codes are in use. To keep more alive {advice}"
    bound = 1 + o.collapse_below * (size - 1)  # a perplexity is at least 1
    return Alarm("eval/lowest_code_perplexity", bound, o.collapse_after, text)


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The autoencoder of `config.vqvae` with the networks of `config.model` on `spec`'s images.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Encoder`,
    `Decoder` and `RULES`; `config.model.encoder` and `.decoder` are their options.

    Raises:
      ConfigError: the data are no 8-bit images, or the config asks for something that does not
        exist.
    """
    shape = image_shape(spec, "vqvae")
    options, model = options_from_config(config.vqvae), config.model
    module = find_module(
        "model.network", model.network, "genjax.networks", "Encoder", "Decoder", "RULES"
    )
    features = options.code_dim if options.quantizer == "vq" else len(options.levels)
    shared = {"shape": shape, "features": features, "dtype": jnp.dtype(config.precision)}

    def encoder(rngs):
        return construct(module.Encoder, model.encoder, "model.encoder", rngs=rngs, **shared)

    def decoder(rngs):
        return construct(module.Decoder, model.decoder, "model.decoder", rngs=rngs, **shared)

    nets = functional(encoder), functional(decoder)
    check_mirrored(*nets, shape, features)
    return from_networks(*nets, options, spec, module.RULES)
