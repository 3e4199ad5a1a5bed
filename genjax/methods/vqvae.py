"""Autoencoders with discrete codes: VQ-VAE (van den Oord et al. 2017), residual VQ, and FSQ.

An encoder maps an image to a grid of vectors; each vector is replaced by the nearest code of a
codebook, or rounded; a decoder reconstructs the image. The indices of the codes are tokens.
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

# Choice -> the keys that have no effect with it; only their default or 0 is allowed.
USELESS = {
    ("quantizer", "vq"): ("levels",),
    ("quantizer", "fsq"): (
        *("codes", "code_dim", "depth", "gradient", "learn", "commitment"),
        *("restart_below", "kmeans"),
    ),
    ("learn", "loss"): ("restart_below", "kmeans"),
}
MOST_CODES = 2**20  # the state has the share of each code
Level = Annotated[int, Range(3, 1000)]  # `quantize.fsq` has a slack; 2 levels hardly learn
GRADIENTS = {"straight_through": quantize.straight_through, "rotation": quantize.rotation}


class Options(NamedTuple):
    """The `vqvae` section of a config, and its defaults.

    Attributes:
      quantizer: "vq", the nearest vector of a codebook; "fsq", rounding (Mentzer et al. 2024).
      codes: K, the number of vectors in a codebook.
      code_dim: length of these vectors.
      depth: number of codebooks, each for the residual of the ones before (residual VQ, Zeghidour
        et al. 2021, algorithm 1); with "loss" each codebook is drawn to its residual.
      levels: for "fsq": number of values of each dimension, at least 3: with 2 the published bound
        is so flat at the initial vectors that they hardly learn.
      gradient: gradient through the nearest code: "straight_through" or "rotation" (Fifty et al.
        2024).
      learn: how codebooks follow the encoder: "ema" (van den Oord et al. 2017, appendix A.1) or
        "loss" (eq. 3).
      decay: decay of the averages.
      commitment: weight of the encoder's distance from its codes (eq. 3).
      restart_below: average count below which a code restarts at a vector of the batch; 0: off.
        With "ema".
      kmeans: iterations of k-means that initialise the codebook from the first batch; 0: random
        vectors. With "ema".
      collapse_below: c: the run warns of collapse if a codebook's perplexity is below
        1 + c (K - 1), between one code and all K.
      collapse_after: number of such evaluations in a row before the warning.
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
      ConfigError: an unknown key or choice, a number out of range, or a key that has no effect
        with the others.
    """
    o = read_options(section, "vqvae", Options)
    one_of("vqvae.quantizer", o.quantizer, ("vq", "fsq"))
    one_of("vqvae.gradient", o.gradient, tuple(GRADIENTS))
    one_of("vqvae.learn", o.learn, ("ema", "loss"))
    valid = o.codes * o.depth <= MOST_CODES
    require(valid, "vqvae.codes * vqvae.depth", o.codes * o.depth, f"at most {MOST_CODES:,}")
    valid = bool(o.levels) and math.prod(o.levels) <= MOST_CODES
    require(valid, "vqvae.levels", o.levels, f"one or more, and at most {MOST_CODES:,} codes")
    for choice in ("quantizer", "learn"):
        unused, defaults = USELESS.get((choice, getattr(o, choice)), ()), Options()
        changed = [name for name in unused if getattr(o, name) not in (getattr(defaults, name), 0)]
        if changed:
            given, default = (
                ", ".join(f"vqvae.{name}={getattr(options, name)!r}" for name in changed)
                for options in (o, defaults)
            )
            raise ConfigError(
                f"{given}: no effect with vqvae.{choice}={getattr(o, choice)!r}. Set {default}, or "
                f"choose another vqvae.{choice}."
            )
    return o


class Quantised(NamedTuple):
    """The quantised vectors of the encoder.

    Attributes:
      z: the codes, with a gradient to the encoder.
      index: indices of the codes, one for each codebook.
      shares: share of each code in this batch.
      loss: commitment loss, plus the codebook loss with learn="loss".
      mutable: the codebooks after this batch; unchanged outside of training.
    """

    z: Float[Array, "B h w D"]
    index: Int[Array, "B h w Q"]
    shares: Float[Array, "Q K"]
    loss: Float[Array, ""]
    mutable: Tree


class Autoencoder(NamedTuple):
    """The networks and the settings that every function of the family needs."""

    encoder: Functional  # image in [-1, 1] -> vectors
    decoder: Functional  # codes -> image
    options: Options
    spec: DataSpec

    @property
    def sizes(self) -> tuple[int, int]:
        """(tokens per position, values of a token)."""
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
        """Replaces each vector by its code; in training the codebooks are updated."""
        o, zero = self.options, jnp.float32(0)
        if o.quantizer == "fsq":
            code = quantize.fsq(z, o.levels)
            index = quantize.fsq_index(code, o.levels)[..., None]
            shares, mutable = self._count_codes(mutable, index, train)
            return Quantised(code, index, shares, zero, mutable)
        x = z.reshape(-1, z.shape[-1])
        residual, books = jax.lax.stop_gradient(x), mutable.get("books", {})
        if train and books and o.kmeans:
            books = jax.lax.cond(
                mutable["ready"], lambda x, k: books, self._first_books, residual, key
            )
        total, index, new_books, codebook_loss = jnp.zeros_like(x), [], {}, zero
        for q in range(o.depth):
            name = str(q)
            codes = books[name]["codes"] if books else params["codes"][q]
            nearest = quantize.nearest(residual, jax.lax.stop_gradient(codes))
            if books:
                new_books[name] = quantize.ema_update(books[name], residual, nearest, o.decay)
                if o.restart_below:
                    key_q = jax.random.fold_in(key, o.depth + q)
                    new_books[name] = quantize.restart(
                        new_books[name], residual, key_q, o.restart_below
                    )
            else:
                codebook_loss += jnp.square(residual - codes[nearest]).mean()
            total = total + codes[nearest]
            residual = residual - jax.lax.stop_gradient(codes[nearest])
            index.append(nearest)
        fixed = jax.lax.stop_gradient(total)
        loss = o.commitment * jnp.square(x - fixed).mean() + codebook_loss
        index = jnp.stack(index, -1).reshape(*z.shape[:-1], o.depth)
        shares, mutable = self._count_codes(mutable, index, train)
        if train and books:
            mutable = {**mutable, "books": new_books, "ready": jnp.array(True)}
        code = GRADIENTS[o.gradient](x, fixed).reshape(z.shape)
        return Quantised(code, index, shares, loss, mutable)

    def _first_books(self, x: Float[Array, "N D"], key: Array) -> Tree:
        """Codebooks by k-means, each for the residual of the batch after the ones before.

        A code's count is the size of its cell, or 1 if the cell is empty.
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

    def _count_codes(
        self, mutable: Tree, index: Int[Array, "B h w Q"], train: bool
    ) -> tuple[Float[Array, "Q K"], Tree]:
        """The shares of codes in this batch, and the state, with updated averages in training."""
        depth, size = self.sizes
        batch_shares = jnp.stack([quantize.histogram(index[..., q], size) for q in range(depth)])
        if not train:
            return batch_shares, mutable
        decay = self.options.decay
        return batch_shares, {
            **mutable,
            "shares": decay * mutable["shares"] + (1 - decay) * batch_shares,
        }

    def shares(self, mutable: Tree) -> Float[Array, "Q K"]:
        """The share of each code in recent training batches; all are 0 before training."""
        total = mutable["shares"].sum(-1, keepdims=True)
        return mutable["shares"] / jnp.maximum(total, 1e-20)

    def scaled(
        self, log_scale: Float[Array, ""], made: Float[Array, "B H W C"], x: Float[Array, "B H W C"]
    ) -> Float[Array, ""]:
        """The log scale of p(x | z) after a batch: a step towards its maximum likelihood.

        That maximum has no closed form because the first and the last bin extend to infinity:
        black pixels do not determine the scale. The step is 1 - decay times the gradient of the
        mean log likelihood per pixel, with the gradient clipped to [-1, 1].
        """
        gradient = jax.grad(lambda s: likelihoods.discretised("gaussian", x, made, s).mean())(
            log_scale
        )
        return log_scale + (1 - self.options.decay) * jnp.clip(gradient, -1, 1)

    def look_up(
        self, params: Tree, mutable: Tree, index: Int[Array, "B h w Q"]
    ) -> Float[Array, "B h w D"]:
        """The code vectors of tokens."""
        o = self.options
        if o.quantizer == "fsq":
            return quantize.fsq_code(index[..., 0], o.levels)
        books = mutable.get("books")
        tables = [books[str(q)]["codes"] if books else params["codes"][q] for q in range(o.depth)]
        return sum(table[index[..., q]] for q, table in enumerate(tables))

    def decode(
        self, params: Tree, mutable: Tree, z: Float[Array, "B h w D"], **training
    ) -> tuple[Float[Array, "B H W C"], Tree]:
        """Decodes codes to an image in [-1, 1]; also returns the decoder's new mutable state."""
        return self.decoder.apply(params["decoder"], mutable["decoder"], z, **training)


def loss(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """Mean squared error of pixels in [-1, 1], plus the losses of the quantiser."""
    params, mutable = params["autoencoder"], mutable["autoencoder"]
    key_net, key_code = (jax.random.fold_in(key, i) for i in range(2))
    training = {"key": key_net, "train": True}
    x = to_float(batch[model.spec.target])
    z, encoder = model.encode(params, mutable, x, **training)
    quantised = model.quantise(params, mutable, z, key_code, train=True)
    decoded, decoder = model.decode(params, mutable, quantised.z, **training)
    error = jnp.square(decoded - x).mean()
    scale = model.scaled(mutable["log_scale"], jax.lax.stop_gradient(decoded), x)
    metrics = {
        "mse": error,
        "code_perplexity": jax.vmap(quantize.perplexity)(quantised.shares).mean(),
        "code_usage": (quantised.shares > 0).mean(),
    }
    changed = {**quantised.mutable, "log_scale": scale, "encoder": encoder, "decoder": decoder}
    return error + quantised.loss, Aux(metrics, {"autoencoder": changed}, float(len(x)))


def _reconstruct(
    model: Autoencoder, params: Tree, mutable: Tree, x: Float[Array, "B H W C"]
) -> tuple[Float[Array, "B H W C"], Int[Array, "B h w Q"]]:
    z, _ = model.encode(params, mutable, x)
    quantised = model.quantise(params, mutable, z, jax.random.key(0), train=False)
    return model.decode(params, mutable, quantised.z)[0], quantised.index


def _log_likelihood(
    mutable: Tree, decoded: Float[Array, "B H W C"], x: Float[Array, "B H W C"]
) -> Float[Array, "B"]:
    return likelihoods.discretised("gaussian", x, decoded, mutable["log_scale"]).sum((1, 2, 3))


def evaluate(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Array]:
    """ELBO of the 8-bit image and its parts in nats, and `nearness` of its reconstruction.

    The prior of the tokens is uniform, so the KL per token is the log of the number of codes (van
    den Oord et al. 2017, section 3.2). p(x | z) is a Gaussian around the decoder's image,
    discretised to 8 bits, with one scale that follows the training images (`Autoencoder.scaled`;
    Rybkin et al. 2021). `code_perplexity` and `code_usage` come from the running shares of codes in
    training and are means over codebooks; `lowest_code_perplexity` is the lowest of a codebook. A
    code counts as used if its share is more than a hundredth of an equal share.
    """
    params, mutable = params["autoencoder"], mutable["autoencoder"]
    x = to_float(batch[model.spec.target])
    decoded, index = _reconstruct(model, params, mutable, x)
    shares = model.shares(mutable)
    perplexity = jax.vmap(quantize.perplexity)(shares)
    likelihood = _log_likelihood(mutable, decoded, x)
    kl = jnp.float32(index[0].size * math.log(shares.shape[-1]))
    return {
        "elbo": likelihood - kl,
        "bits_per_dim": (kl - likelihood) / (math.log(2) * x[0].size),
        "reconstruction": likelihood,
        "kl": kl,
        **nearness(decoded, x),
        "code_perplexity": perplexity.mean(),
        "lowest_code_perplexity": perplexity.min(),
        "code_usage": (shares > 0.01 / shares.shape[-1]).mean(),
    }


def encode(model: Autoencoder, params: dict, mutable: dict, batch: Batch) -> Int[Array, "B h w Q"]:
    """Encodes 8-bit images to tokens."""
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
    """Decodes tokens to 8-bit images."""
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
    """Decodes tokens that are drawn independently, with their shares in training.

    Without a prior the decoder gives textures, not pictures.

    Raises:
      ConfigError: conditions were given; this model has none.
    """
    labels(model.spec, False, num, condition, key)
    shares = model.shares(mutable["autoencoder"])
    logits = jnp.log(jnp.maximum(shares, 1e-20))
    side = output_shape(model.encoder, _one_image(model.spec))[1:3]
    index = jax.random.categorical(key, logits, shape=(num, *side, len(shares)))
    return decode(model, params, mutable, index)


def _one_image(spec: DataSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *spec.generated.shape), jnp.float32)


def pictures(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Array]:
    """Reconstructions, and the usage of each code in training, most used first."""
    variables = (params["autoencoder"], mutable["autoencoder"])
    images = batch[model.spec.target]
    reconstructions = to_uint8(_reconstruct(model, *variables, to_float(images))[0])
    return {
        "reconstructions": latents.reconstructions(images, reconstructions),
        "code_usage": latents.bars(model.shares(variables[1])),
    }


def from_networks(
    encoder: Functional, decoder: Functional, options: Options, spec: DataSpec, rules: Rules
) -> Method:
    """The autoencoder with any two networks that have the call signatures in `Autoencoder`."""
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
        alarms=(_collapse_alarm(options, size),),
        codec=Codec(
            ("autoencoder",),
            *(partial(function, model) for function in (encode, decode)),
            size,
            partial(log_likelihood, model),
        ),
    )


def _collapse_alarm(o: Options, size: int) -> Alarm:
    advice = {
        "fsq": "lower the learning rate, or set fewer vqvae.levels.",
        "vq": "raise vqvae.restart_below (with vqvae.learn='ema'), lower the learning rate or "
        "vqvae.codes, or use vqvae.quantizer='fsq', which has no codebook.",
    }[o.quantizer]
    text = f"few of the {size} codes are in use. To use more of them, {advice}"
    bound = 1 + o.collapse_below * (size - 1)  # a perplexity is at least 1
    return Alarm("eval/lowest_code_perplexity", bound, o.collapse_after, text)


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The autoencoder of `config.vqvae` with the networks of `config.model` on `spec`'s images.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Encoder`,
    `Decoder` and `RULES`; `config.model.encoder` and `.decoder` are their options.

    Raises:
      ConfigError: the data are not 8-bit images, or the config asks for something that does not
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
