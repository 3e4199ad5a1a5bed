"""The interface of data sets and families of generative models: `DataSpec`, `Method`, their parts.

Every family is a game of one or more players. Each player minimises its own pure loss over its own
parameters; likelihood-based families have one player. `genjax/methods/<name>.py` exports
`build(config, spec) -> Method`, or `build(config, spec, stages)` if it uses its stages. The rest of
genjax needs nothing else to train, evaluate, sample, shard, save and resume the family.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from genjax.adapters import Adapters, adapted
from genjax.config import ConfigError, nearest
from genjax.nn.precision import settled
from genjax.parallel.rules import Rules

Tree = Any
Batch = Mapping[str, jax.Array]


class Field(NamedTuple):
    """One named array of an example, or one condition of a sample.

    Attributes:
      kind: its modality: a module of `genjax.modalities`, or one of your own.
      shape: shape of one example, as the loader delivers it; None for an axis of any length.
      dtype: dtype of the array.
      facts: other properties, by name: `num_classes` and `classes` (their names) for a label;
        `vocabulary_size`, `special` tokens and `tokenizer` for a text; `vocabulary_size` for a
        code; `sample_rate` for audio. If a condition has another name in the data, `field` is that
        name.
    """

    kind: str
    shape: tuple[int | None, ...]
    dtype: Any
    facts: Mapping[str, Any] = {}


class DataSpec(NamedTuple):
    """Description of a data set, available before any data are read.

    Attributes:
      name: its name in the catalogue.
      fields: the arrays of one example.
      target: the field that is generated.
      sizes: examples in each split ("train", "validation", "test").
    """

    name: str
    fields: Mapping[str, Field]
    target: str
    sizes: Mapping[str, int]

    @property
    def generated(self) -> Field:
        """The field that is generated."""
        return self.fields[self.target]


class Aux(NamedTuple):
    """What a loss returns in addition to its value.

    Attributes:
      metrics: scalars to log, each a mean over the microbatch.
      mutable: the entries of the network state that changed, by network name.
      weight: weight of this microbatch (its number of tokens or examples) in the averages of
        gradients, losses and metrics over microbatches.
    """

    metrics: dict[str, jax.Array]
    mutable: dict[str, Tree]
    weight: jax.Array | float = 1.0


# (params, mutable, batch, key, step) -> (scalar, Aux), pure.
LossFn = Callable[..., tuple[jax.Array, Aux]]


class Phase(NamedTuple):
    """One move of the game: minimise `loss` over the parameters of the networks it `trains`.

    Attributes:
      trains: name of the network in `params` that this phase updates, or names of several, each
        with its own optimizer.
      loss: the pure loss; gradients are taken with respect to these networks only.
      repeat: updates per training step; each sees its own slice of the step's batch. A phase that
        is not repeated sees the first slice, even if another phase is repeated.
      every: run the phase only in steps divisible by this (lazy regularisers).
      start: the first step of the phase; its networks do not change before it.
      passes: passes over these slices in one step, each with its own keys: the epochs of PPO over
        the batch from `Method.prepare` (Schulman et al. 2017, algorithm 1).
      stop: the first step without the phase; None continues it to the end of the run.
    """

    trains: str | tuple[str, ...]
    loss: LossFn
    repeat: int = 1
    every: int = 1
    start: int = 0
    passes: int = 1
    stop: int | None = None

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the networks that this phase trains."""
        return (self.trains,) if isinstance(self.trains, str) else tuple(self.trains)


class Follow(NamedTuple):
    """How one network follows another, as a running average of its parameters.

    After each step whose number, counted from 1, is divisible by `every`, the follower becomes
    `decay * follower + (1 - decay) * source`. With a decay near 1 it is an averaged target network
    (Lillicrap et al. 2016, algorithm 1; Tarvainen & Valpola 2017, eq. 2); a decay of 0 copies.

    Attributes:
      source: the network that is followed.
      decay: at least 0 and below 1, or a function of the step, counted from 0.
      every: steps between two updates.
    """

    source: str
    decay: float | Callable[[jax.Array], jax.Array]
    every: int = 1


class Codec(NamedTuple):
    """Encoder and decoder of a trained method that serves as the first stage of another one.

    Attributes:
      networks: the names of the networks that the codec needs.
      encode: (params, mutable, batch) -> codes [B, ...].
      decode: (params, mutable, codes) -> examples in the data's own format.
      vocabulary_size: number of values of a code if codes are tokens, 0 if they are real numbers.
      log_likelihood: (params, mutable, batch, codes) -> log p(x | code) [B] in nats; None if
        unknown. With it, a prior that evaluates the `nll` of the codes also reports the ELBO of
        prior and codec together.
    """

    networks: tuple[str, ...]
    encode: Callable[[dict[str, Tree], dict[str, Tree], Batch], jax.Array]
    decode: Callable[[dict[str, Tree], dict[str, Tree], jax.Array], jax.Array]
    vocabulary_size: int = 0
    log_likelihood: Callable[..., jax.Array] | None = None


class TextEncoder(NamedTuple):
    """What a trained method makes of a text, for another run that has it as a stage.

    Attributes:
      field: the field of such texts.
      encode: (params, mutable, tokens [B, T]) -> a vector of each token [B, T, D], float32, and
        which tokens belong to the text [B, T].
    """

    field: Field
    encode: Callable[[dict[str, Tree], dict[str, Tree], jax.Array], tuple[jax.Array, jax.Array]]


class Alarm(NamedTuple):
    """A warning sign: a metric is below a bound for several evaluations in a row.

    Attributes:
      metric: a regex for the whole name, such as "eval/lowest_code_perplexity"; every metric that
        matches is watched.
      below: the bound.
      evaluations: the number of evaluations in a row.
      advice: what the warning means and what to change.
    """

    metric: str
    below: float
    evaluations: int
    advice: str


class Ratio(NamedTuple):
    """A metric whose denominator differs between examples, such as a loss per token.

    Its mean over a split is the sum of the totals divided by the sum of the weights.

    Attributes:
      total: total of each example [B].
      weight: weight of each example [B], such as its number of tokens.
    """

    total: jax.Array
    weight: jax.Array


class Method(NamedTuple):
    """A family of generative models: its functions, and facts about them.

    Attributes:
      init: (key, batch) -> (params, mutable), both dicts with one entry per network; `batch`
        gives shapes and dtypes.
      phases: the moves of one training step, in order.
      evaluate: (params, mutable, batch, key) -> dict of per-example arrays [B], `Ratio`s, or
        scalars that depend on the state alone and not on any example.
      sample: (params, mutable, key, num, condition, **options) -> samples of the generated field;
        `condition` has an array of `num` rows for each condition that is given.
      rules: how its leaves shard: `[(regex over the path, tactic)]`, first match wins.
      pictures: (params, mutable, batch, key) -> dict of uint8 pictures [rows, columns, H, W, C]
        by name, shown with the samples; `batch` is always the same one, from the evaluated split.
        The names "samples" and "step" are taken by the grid of samples.
      codec: how a second stage can be trained on the codes of this method.
      alarms: signs of failure; the log and the report warn of them.
      pretrained: () -> (params, mutable) of pretrained networks; at the start of a run they replace
        those from `init`.
      derived: means of the metrics from `evaluate`, by name -> metrics computed from them, such as
        perplexity.
      conditions: what `sample` can be given. Each is a flag of --mode=sample: --label=3.
      options: how an option of `sample` is read from the command line: text -> value. An option
        that is not listed is read as a Python literal.
      output: the field that `sample` draws, if it is not the field that the data generate.
      apply: (params, mutable, batch) -> what this method computes for another run that has it as a
        stage: an embedding, logits.
      text_encoder: how another run can read texts with this method.
      prepare: (params, mutable, batch, key, step) -> the batch that the phases see, computed once
        per step from the whole batch, without a gradient: rollouts, targets of a teacher, codes,
        pseudo-labels. Its fields and its number of examples may differ from the loader's.
      follows: the networks that follow another one, by name. They are in `params` next to those
        from `init`, start as copies, are sharded like their sources and have no mutable state of
        their own; no phase trains them.
      plan: (**options) -> the keywords of `sample` that the options stand for, computed once and
        not traced. Keywords that are NumPy arrays, or trees of NumPy arrays only, become arguments
        of the compiled program: other values of the same shapes do not compile it again. None: the
        options are the keywords themselves.
      project: network -> function applied to its parameters after each update, such as scaling
        weights to unit length (Karras et al. 2024, eq. 66).
      guided: whether `sample` uses `params["guide/<network>"]` if present: other weights of a
        trained network of the same run, which samples are guided away from (Karras et al. 2024,
        "Guiding a Diffusion Model with a Bad Version of Itself").
      adapters: those of `config.adapters`, which `build` adds; a family leaves it out.
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
    conditions: Mapping[str, Field] = {}
    options: Mapping[str, Callable[[str], Any]] = {}
    output: Field | None = None
    apply: Callable[..., Any] | None = None
    text_encoder: TextEncoder | None = None
    prepare: Callable[..., Batch] | None = None
    follows: Mapping[str, Follow] = {}
    plan: Callable[..., Mapping[str, Any]] | None = None
    project: Mapping[str, Callable[[Tree], Tree]] = {}
    guided: bool = False
    adapters: Adapters | None = None


class Stage(NamedTuple):
    """A trained run that is part of another run, whose state holds the stage's frozen networks.

    Attributes:
      name: its name in the config; its networks are `"<name>"/"<network>"` in the state.
      config: the config that it was trained with.
      spec: description of its data.
      method: its method, which uses the stage's own names of networks.
      networks: the networks that are needed: those of its codec, or all.
      digest: digest of its data.
    """

    name: str
    config: ConfigDict
    spec: DataSpec
    method: Method
    networks: tuple[str, ...]
    digest: str = ""

    def own(self, networks: Mapping[str, Tree]) -> dict[str, Tree]:
        """The stage's part of `params` or `mutable` of the whole run, by the stage's own names."""
        return networks[self.name]

    def encode(self, params: Mapping[str, Tree], mutable: Mapping[str, Tree], batch: Batch):
        """Encodes a batch with the stage's networks in the state of the whole run."""
        return self.method.codec.encode(self.own(params), self.own(mutable), batch)

    def decode(self, params: Mapping[str, Tree], mutable: Mapping[str, Tree], codes: jax.Array):
        """Decodes codes to examples in the format of the stage's data."""
        return self.method.codec.decode(self.own(params), self.own(mutable), codes)

    def apply(self, params: Mapping[str, Tree], mutable: Mapping[str, Tree], batch: Batch):
        """Applies the stage's method to a batch: see `Method.apply`."""
        return self.method.apply(self.own(params), self.own(mutable), batch)


def find_module(key: str, name: str, package: str, *exports: str) -> ModuleType:
    """The module that a config names: `package.name`, or any module that Python can import.

    Such a module may have dots in its name or none: a file next to the config has none.

    Raises:
      ConfigError: there is no such module, or it lacks one of `exports`; the message names the
        config `key` that gave the name.
    """
    known = [m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    path = f"{package}.{name}" if name in known else name
    try:
        if not all(part.isidentifier() for part in path.split(".")):
            raise ModuleNotFoundError(name=path)
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = getattr(error, "name", None)
        if missing and not (path == missing or path.startswith(missing + ".")):
            raise
        raise ConfigError(
            f"config.{key}={name!r}: no module {path!r}. Nearest: {nearest(name, known)}. "
            "Give one of these, or a module of your own: its dotted path, or the name of a file "
            "next to the config."
        ) from None
    missing = [export for export in exports if not hasattr(module, export)]
    if missing:
        raise ConfigError(
            f"config.{key}={name!r}: {path} has no {' and no '.join(missing)}, which this key "
            f"needs. Nearest: {nearest(name, known)}."
        )
    return module


def module(config: ConfigDict) -> ModuleType:
    """The module that `config.method` names.

    Raises:
      ConfigError: there is no such module, or it has no `build`.
    """
    return find_module("method", config.method, "genjax.methods", "build")


def defaults(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The default values of the keys in the family's own section: section -> key -> value.

    The section is the one whose keys are all fields of the module's `Options`; a module without
    `Options` has no defaults.

    Raises:
      ConfigError: there is no such method.
    """
    options = getattr(module(config), "Options", None)
    if options is None:
        return {}
    sections = [
        name
        for name, section in config.items()
        if isinstance(section, ConfigDict) and section and set(section) <= set(options._fields)
    ]
    return {name: dict(options._field_defaults) for name in sections}


def build(config: ConfigDict, spec: DataSpec, stages: Mapping[str, Stage] | None = None) -> Method:
    """Builds the method that `config.method` names, with the adapters of `config.adapters`.

    `"diffusion"` imports `genjax.methods.diffusion`; any other module is imported by the name
    itself.
    The module must export `build(config, spec) -> Method`, or `build(config, spec, stages)` if it
    uses its stages itself.

    Raises:
      ConfigError: there is no such module, it has no `build`, its `build` returns no `Method`, or
        the adapters do not fit its networks.
    """
    config = settled(config)
    function = module(config).build
    takes_stages = len(inspect.signature(function).parameters) > 2
    method = function(config, spec, *([stages or {}] if takes_stages else []))
    if not isinstance(method, Method):
        raise ConfigError(
            f"config.method={config.method!r}: build returned a {type(method).__name__}, expected "
            "a genjax.method.Method."
        )
    return adapted(check(method, config.method), config, spec.fields)


def options_of(method: Method) -> dict[str, inspect.Parameter]:
    """The sampling options by name: keywords of `plan`, or of `sample` if there is no plan."""
    parameters = inspect.signature(method.plan or method.sample).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def check(method: Method, name: str) -> Method:
    """Returns `method` after checking its parts.

    Raises:
      ConfigError: `sample` does not take (params, mutable, key, num, condition, *, options), a
        condition is not a `Field`, or there is no phase; the message says what was expected.
    """

    def require(ok: bool, part: str, value: object, expected: str) -> None:
        if not ok:
            raise ConfigError(f"method {name}: {part} is {value}: expected {expected}.")

    require(bool(method.phases), "phases", method.phases, "at least one Phase")
    try:
        parameters = list(inspect.signature(method.sample).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    require(
        len(positional) == 5 or takes_any,
        "sample",
        f"a function of ({', '.join(p.name for p in positional)})",
        "a function of (params, mutable, key, num, condition), with its options after a *",
    )
    options = options_of(method)
    for condition, field in method.conditions.items():
        require(
            condition.isidentifier() and isinstance(field, Field) and condition not in options,
            f"conditions[{condition!r}]",
            field,
            "a Field, under a name that can be a flag and is not an option of sample",
        )
    return method
