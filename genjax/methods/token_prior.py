"""An autoregressive prior over the tokens of a first stage (van den Oord et al. 2017, section 3.3).

p(tokens) is a product over positions, each token conditioned on the earlier ones. With the first
stage's decoder it generates images: see `training/stages.py`, which combines the two.
"""

from __future__ import annotations

import math
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from genjax.config import ConfigError, construct, read_options, require
from genjax.method import Aux, Batch, DataSpec, Method, Phase, Rules, Tree, find_module
from genjax.modalities.label import label_condition, required_classes
from genjax.nn.functional import Functional, functional
from genjax.sampling.conditions import Condition, labels
from genjax.sampling.logits import require_temperature, whole_number


class Options(NamedTuple):
    """The `token_prior` section of a config, and its defaults.

    Attributes:
      class_conditional: whether the prior is conditioned on the label.
    """

    class_conditional: bool = False


class Prior(NamedTuple):
    """The network and the settings that every function of the family needs."""

    network: (
        Functional  # (tokens [B, S], label) -> (logits [B, S, K], None); one token: see `sample`
    )
    options: Options
    spec: DataSpec

    def log_likelihood(
        self, params: Tree, mutable: Tree, batch: Batch, **training
    ) -> tuple[Float[Array, "B S"], Tree]:
        """log p of each token given the earlier ones, in nats, and the new mutable state."""
        index = batch[self.spec.target].reshape(len(batch[self.spec.target]), -1)
        label = batch["label"] if self.options.class_conditional else None
        (logits, _), mutable = self.network.apply(params, mutable, index, label, **training)
        return -optax.softmax_cross_entropy_with_integer_labels(logits, index), mutable


def loss(
    prior: Prior, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """Mean negative log-likelihood per token, in nats."""
    variables = (params["prior"], mutable["prior"])
    log_p, changed = prior.log_likelihood(*variables, batch, key=key, train=True)
    nll = -log_p.mean()
    metrics = {"bits_per_token": nll / math.log(2)}
    return nll, Aux(metrics, {"prior": changed}, float(len(log_p)))


def evaluate(
    prior: Prior, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"]]:
    """Per example: `nll` summed over its tokens, in nats, and `bits_per_token`."""
    log_p, _ = prior.log_likelihood(params["prior"], mutable["prior"], batch)
    return {"nll": -log_p.sum(-1), "bits_per_token": -log_p.mean(-1) / math.log(2)}


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
) -> Int[Array, "B h w Q"]:
    """Draws tokens one by one.

    Args:
      prior: the network.
      params: its parameters.
      mutable: its mutable state.
      key: random key of the draws.
      num: samples to draw.
      condition: `label`; without it, each class in turn.
      temperature: divides the logits; 1 draws from the model.
      top_k: draws from the `top_k` most probable tokens; 0 from all.

    Raises:
      ConfigError: labels for an unconditional prior; a temperature or top_k out of range.
    """
    values = prior.spec.generated.facts["vocabulary_size"]
    require_temperature("--temperature", temperature)
    require(
        whole_number(top_k) and 0 <= top_k <= values,
        "--top_k",
        top_k,
        f"a whole number from 0 to {values}",
    )
    setting, key_label = "token_prior.class_conditional=True", jax.random.fold_in(key, 0)
    conditional = prior.options.class_conditional
    classes = labels(prior.spec, conditional, num, condition, key_label, setting)
    keys = jax.random.split(jax.random.fold_in(key, 1), shape_size(prior))

    def draw(index: Array, cache: Tree, position: Array | int) -> tuple[Array, Tree]:
        (logits, cache), _ = prior.network.apply(
            params["prior"], mutable["prior"], index, classes, position=position, cache=cache
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
    return index.reshape(num, *prior.spec.generated.shape)


def shape_size(prior: Prior) -> int:
    """The number of tokens per example."""
    return math.prod(prior.spec.generated.shape)


def from_network(network: Functional, options: Options, spec: DataSpec, rules: Rules) -> Method:
    """The prior with any network that has the call signature in `Prior`."""
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
        conditions=label_condition(spec, options.class_conditional),
    )


def build(config: ConfigDict, spec: DataSpec) -> Method:
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
    module = find_module(
        "model.network", config.model.network, "genjax.networks", "Network", "RULES"
    )

    def network(rngs):
        return construct(
            module.Network,
            config.model.prior,
            "model.prior",
            shape=code.shape,
            vocabulary_size=code.facts["vocabulary_size"],
            num_classes=classes,
            dtype=jnp.dtype(config.precision),
            rngs=rngs,
        )

    return from_network(functional(network), options, spec, module.RULES)
