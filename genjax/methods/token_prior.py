"""An autoregressive prior over the tokens of a first stage (van den Oord et al. 2017, section 3.3).

p(tokens) is a product over positions, each token given those before it. With the first stage's
decoder it is a generator of images: the core joins the two, see `training/first_stage.py`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from genjax.config import ConfigError, construct, read_options, require
from genjax.method import Aux, Batch, DataSpec, Method, Phase, Rules, Tree, find_module
from genjax.nn.functional import Functional, functional
from genjax.sampling.conditions import labels_if
from genjax.sampling.logits import require_temperature, whole_number


class Options(NamedTuple):
    """The `token_prior` section of a config, and its defaults.

    Attributes:
      class_conditional: whether the prior is given the label.
    """

    class_conditional: bool = False


class Prior(NamedTuple):
    """The network, and what every function of the family needs to know beside its arrays."""

    network: Functional  # (tokens [B, S], label) -> (logits [B, S, K], None); one by one: see there
    options: Options
    spec: DataSpec

    def log_likelihood(
        self, params: Tree, mutable: Tree, batch: Batch, **training
    ) -> tuple[Float[Array, "B S"], Tree]:
        """log p of each token given those before it, in nats, and the new mutable state."""
        index = batch["code"].reshape(len(batch["code"]), -1)
        label = batch["label"] if self.options.class_conditional else None
        (logits, _), mutable = self.network.apply(params, mutable, index, label, **training)
        return -optax.softmax_cross_entropy_with_integer_labels(logits, index), mutable


def loss(
    prior: Prior, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """Mean negative log-likelihood of a token, in nats."""
    own = (params["prior"], mutable["prior"])
    each, changed = prior.log_likelihood(*own, batch, key=key, train=True)
    nll = -each.mean()
    metrics = {"bits_per_token": nll / math.log(2)}
    return nll, Aux(metrics, {"prior": changed}, float(len(each)))


def evaluate(
    prior: Prior, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"]]:
    """`nll` of all tokens of each example, in nats, and `bits_per_token`."""
    each, _ = prior.log_likelihood(params["prior"], mutable["prior"], batch)
    return {"nll": -each.sum(-1), "bits_per_token": -each.mean(-1) / math.log(2)}


def sample(
    prior: Prior,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Int[Array, "B"] | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
) -> Int[Array, "B h w Q"]:
    """Draws tokens one after the other.

    Args:
      prior: the network.
      params: its parameters.
      mutable: its mutable state.
      key: draws.
      num: samples to draw.
      condition: labels, or None for each class in turn.
      temperature: divides the logits; 1 draws from the model.
      top_k: draws among the most probable so many tokens; 0 among all.

    Raises:
      ConfigError: labels for a prior that knows none; a temperature or top_k out of range.
    """
    values = prior.spec.vocabulary_size
    require_temperature("--temperature", temperature)
    require(
        whole_number(top_k) and 0 <= top_k <= values,
        "--top_k",
        top_k,
        f"a whole number from 0 to {values}",
    )
    setting = "token_prior.class_conditional=True"
    known = prior.options.class_conditional
    label = labels_if(setting, known, prior.spec, num, condition, jax.random.fold_in(key, 0))
    keys = jax.random.split(jax.random.fold_in(key, 1), shape_size(prior))

    def draw(index: Array, cache: Tree, position: Array | int) -> tuple[Array, Tree]:
        (logits, cache), _ = prior.network.apply(
            params["prior"], mutable["prior"], index, label, position=position, cache=cache
        )
        logits = logits / float(temperature)
        if top_k:
            least = jax.lax.top_k(logits, top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return jax.random.categorical(keys[position], logits).astype(jnp.int32), cache

    def step(carry: tuple[Array, Tree], position: Array) -> tuple[tuple[Array, Tree], Array]:
        carry = draw(*carry, position)
        return carry, carry[0]

    first = draw(jnp.zeros(num, jnp.int32), None, 0)
    _, rest = jax.lax.scan(step, first, jnp.arange(1, len(keys)))
    index = jnp.concatenate([first[0][None], rest]).T
    return index.reshape(num, *prior.spec.features["code"].shape)


def shape_size(prior: Prior) -> int:
    """Tokens of an example."""
    return math.prod(prior.spec.features["code"].shape)


def from_network(network: Functional, options: Options, spec: DataSpec, rules: Rules) -> Method:
    """The prior of any network with the call signature that `Prior` names."""
    prior = Prior(network, options, spec)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = network.init(key)
        return {"prior": params}, {"prior": mutable}

    return Method(
        init=init,
        phases=(Phase("prior", partial(loss, prior)),),
        evaluate=partial(evaluate, prior),
        sample=partial(sample, prior),
        rules=rules,
    )


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The prior with the network of `config.model` on the tokens of `spec`.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Network` and
    `RULES`; `config.model.prior` are its options.

    Raises:
      ConfigError: the data are no tokens, or the config asks for something that does not exist.
    """
    if spec.modality != "code" or not spec.vocabulary_size:
        held = "codes of real numbers" if spec.modality == "code" else f"{spec.modality}s"
        raise ConfigError(
            f"method token_prior needs tokens; {spec.name} holds {held}. Give "
            "--config.first_stage=RUNDIR, the workdir of a trained VQ-VAE (configs/vqvae.py)."
        )
    options = read_options(config.token_prior, "token_prior", Options)
    if options.class_conditional and not spec.num_classes:
        raise ConfigError(
            f"token_prior.class_conditional=True, but {spec.name} has no labels. Set it to False."
        )
    module = find_module(
        "model.network", config.model.network, "genjax.networks", "Network", "RULES"
    )

    def network(rngs):
        return construct(
            module.Network,
            config.model.prior,
            "model.prior",
            shape=spec.features["code"].shape,
            vocabulary_size=spec.vocabulary_size,
            num_classes=spec.num_classes if options.class_conditional else 0,
            dtype=jnp.dtype(config.precision),
            rngs=rngs,
        )

    return from_network(functional(network), options, spec, module.RULES)
