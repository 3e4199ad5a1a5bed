"""What a family of generative model provides, as data: `Method`, `Phase`, `Aux`, `DataSpec`.

Every family is a game of one or more players, each descending its own pure loss over its own
parameters; the likelihood families have one player. `genjax/methods/<name>.py` exports
`build(config, spec) -> Method`, and nothing else is needed for the rest of genjax to train,
evaluate, sample, shard, save and resume it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from genjax.config import ConfigError, nearest
from genjax.parallel.rules import Rules

Tree = Any
Batch = Mapping[str, jax.Array]


class Aux(NamedTuple):
    """What a loss returns beside its value.

    Attributes:
      metrics: scalars to log, each a mean over the microbatch.
      mutable: the entries of the network state that changed, by network name.
      weight: how much this microbatch counts (tokens, examples); gradients, losses and metrics
        of microbatches are averaged with it.
    """

    metrics: dict[str, jax.Array]
    mutable: dict[str, Tree]
    weight: jax.Array | float = 1.0


# (params, mutable, batch, key, step) -> (scalar, Aux), pure.
LossFn = Callable[..., tuple[jax.Array, Aux]]


class Phase(NamedTuple):
    """One move of the game: descend `loss` over the parameters of the network `trains`.

    Attributes:
      trains: name of the network in `params` that this phase updates.
      loss: the pure loss; gradients are taken with respect to `params[trains]` only.
      repeat: updates per training step; each sees its own slice of the step's batch. A phase that
        is not repeated sees the first slice, also beside one that is.
      every: run the phase only in steps divisible by this (lazy regularisers).
      start: the first step of the phase; before it nothing of its network moves.
    """

    trains: str
    loss: LossFn
    repeat: int = 1
    every: int = 1
    start: int = 0


class Codec(NamedTuple):
    """What makes a trained method the first stage of another: codes of examples, and back.

    Attributes:
      networks: the names of the networks that it needs.
      encode: (params, mutable, batch) -> codes [B, ...].
      decode: (params, mutable, codes) -> examples in the data's own format.
      vocabulary_size: the values of a code if codes are tokens, 0 if they are real numbers.
      log_likelihood: (params, mutable, batch, codes) -> log p(x | code) [B] in nats: a prior of the
        codes that evaluates their `nll` has the ELBO of both; None if that is unknown.
    """

    networks: tuple[str, ...]
    encode: Callable[[dict[str, Tree], dict[str, Tree], Batch], jax.Array]
    decode: Callable[[dict[str, Tree], dict[str, Tree], jax.Array], jax.Array]
    vocabulary_size: int = 0
    log_likelihood: Callable[..., jax.Array] | None = None


class Alarm(NamedTuple):
    """A sign that a run goes wrong: a metric below a bound for some evaluations in a row.

    Attributes:
      metric: its name, such as "eval/lowest_code_perplexity".
      below: the bound.
      evaluations: how many in a row.
      advice: what it means and what to change.
    """

    metric: str
    below: float
    evaluations: int
    advice: str


class Ratio(NamedTuple):
    """A quantity of which examples have different amounts, such as a loss per token.

    Its mean over a split is the sum of the totals over the sum of the weights.

    Attributes:
      total: of each example [B].
      weight: of each example [B], such as its number of tokens.
    """

    total: jax.Array
    weight: jax.Array


class Method(NamedTuple):
    """A family, as data.

    Attributes:
      init: (key, batch) -> (params, mutable), both dicts with one entry per network; `batch`
        gives shapes and dtypes.
      phases: the moves of one training step, in order.
      evaluate: (params, mutable, batch, key) -> dict of per-example arrays [B], `Ratio`s, or
        scalars that are of the state and of no example.
      sample: (params, mutable, key, num, condition, **options) -> samples in the data's own
        format; `condition` is an array of `num` conditions, or None.
      rules: how its leaves shard: `[(regex over the path, tactic)]`, first match wins.
      pictures: (params, mutable, batch, key) -> dict of uint8 pictures [rows, columns, H, W, C]
        by name, to be looked at beside the samples; `batch` is always the same, of the split that
        is evaluated. "samples" and "step" are names of the grid of samples.
      codec: how a second stage can be trained on this one's codes.
      alarms: signs of failure, to be warned of in the log and the report.
      pretrained: () -> (params, mutable) of networks that come from elsewhere; they take the place
        of what `init` made when a run begins.
      derived: means of what `evaluate` gives, by name -> figures made of them, such as perplexity.
    """

    init: Callable[[jax.Array, Batch], tuple[dict[str, Tree], dict[str, Tree]]]
    phases: tuple[Phase, ...]
    evaluate: Callable[..., dict[str, jax.Array]]
    sample: Callable[..., jax.Array]
    rules: Rules
    pictures: Callable[..., dict[str, jax.Array]] | None = None
    codec: Codec | None = None
    alarms: tuple[Alarm, ...] = ()
    pretrained: Callable[[], tuple[dict[str, Tree], dict[str, Tree]]] | None = None
    derived: Callable[[Mapping[str, float]], dict[str, float]] | None = None


class DataSpec(NamedTuple):
    """What a data set looks like, known before any of it is read.

    Attributes:
      name: the catalogue's name.
      modality: "image", "code" (of a first stage), "text", "roll" (piano rolls), ...
      features: shape and dtype of each field of one example, as the loader delivers it.
      sizes: examples in each split ("train", "validation", "test").
      num_classes: number of labels, 0 if there are none.
      vocabulary_size: number of tokens, 0 for continuous data.
      special_tokens: of text: "start", with which a text begins, and "eos" and "pad" if there are;
        a text ends with "eos_2" and so on too.
    """

    name: str
    modality: str
    features: dict[str, jax.ShapeDtypeStruct]
    sizes: dict[str, int]
    num_classes: int = 0
    vocabulary_size: int = 0
    special_tokens: Mapping[str, int] = {}


def find_module(key: str, name: str, package: str, *exports: str) -> ModuleType:
    """The module that a config names: `package.name`, or `name` itself if it has a dot.

    Raises:
      ConfigError: there is no such module, or it lacks one of `exports`; `key` says where the name
        was given.
    """
    path = name if "." in name else f"{package}.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not error.name or not (path == error.name or path.startswith(error.name + ".")):
            raise
        known = [m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__)]
        raise ConfigError(
            f"config.{key}={name!r}: no module {path!r}. Nearest: {nearest(name, known)}. "
            "Give one of these or the dotted path of an importable module."
        ) from None
    missing = [export for export in exports if not hasattr(module, export)]
    if missing:
        raise ConfigError(
            f"config.{key}={name!r}: {path} has no {' and no '.join(missing)}: it is no module for "
            "that key."
        )
    return module


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """Builds the method that `config.method` names.

    `"ddpm"` imports `genjax.methods.ddpm`; a dotted path such as `"my_package.my_method"` is
    imported as it stands. The module must export `build(config, spec) -> Method`.

    Raises:
      ConfigError: there is no such module, or it has no `build`.
    """
    return find_module("method", config.method, "genjax.methods", "build").build(config, spec)
