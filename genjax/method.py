"""What data and a family of generative model provide: `DataSpec`, `Method` and their parts.

Every family is a game of one or more players, each descending its own pure loss over its own
parameters; the likelihood families have one player. `genjax/methods/<name>.py` exports
`build(config, spec) -> Method` (`build(config, spec, stages)` if it reaches its stages); nothing
else is needed for the rest of genjax to train, evaluate, sample, shard, save and resume it.
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

from genjax.config import ConfigError, nearest
from genjax.nn.precision import settled
from genjax.parallel.rules import Rules

Tree = Any
Batch = Mapping[str, jax.Array]


class Field(NamedTuple):
    """One named array of an example, or one condition of a sample.

    Attributes:
      kind: the modality that it is of: a module of `genjax.modalities`, or one of your own.
      shape: of one example, as the loader delivers it; None for an axis of any length.
      dtype: of the array.
      facts: what else is known of it, by name: `num_classes` and `classes` (their names) of a
        label; `vocabulary_size`, `special` tokens and `tokenizer` of a text; `vocabulary_size` of a
        code; `sample_rate` of audio. A condition that stands in the data under another name says
        so in `field`.
    """

    kind: str
    shape: tuple[int | None, ...]
    dtype: Any
    facts: Mapping[str, Any] = {}


class DataSpec(NamedTuple):
    """What a data set looks like, known before any of it is read.

    Attributes:
      name: the catalogue's name.
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
    """One move of the game: descend `loss` over the parameters of what it `trains`.

    Attributes:
      trains: name of the network in `params` that this phase updates, or names of several, each
        with its own optimizer.
      loss: the pure loss; gradients are taken with respect to these networks only.
      repeat: updates per training step; each sees its own slice of the step's batch. A phase that
        is not repeated sees the first slice, also beside one that is.
      every: run the phase only in steps divisible by this (lazy regularisers).
      start: the first step of the phase; before it nothing of its networks moves.
      passes: times over these slices in one step, each with its own keys: the epochs of PPO over
        what `Method.prepare` made (Schulman et al. 2017, algorithm 1).
      stop: the first step without the phase; None: it goes on to the run's end.
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
        """The names of the networks that it trains."""
        return (self.trains,) if isinstance(self.trains, str) else tuple(self.trains)


class Follow(NamedTuple):
    """How a network follows another, as a running average of its parameters.

    After a step whose number, counted from 1, is divisible by `every`, the follower is
    `decay * follower + (1 - decay) * source`. Target networks of a decay near one are averages
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
      metric: a regex of its whole name, such as "eval/lowest_code_perplexity"; each metric that it
        matches is watched.
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
      sample: (params, mutable, key, num, condition, **options) -> samples of the field that is
        generated; `condition` has an array of `num` rows for each condition that is given.
      rules: how its leaves shard: `[(regex over the path, tactic)]`, first match wins.
      pictures: (params, mutable, batch, key) -> dict of uint8 pictures [rows, columns, H, W, C]
        by name, to be looked at beside the samples; `batch` is always the same, of the split that
        is evaluated. "samples" and "step" are names of the grid of samples.
      codec: how a second stage can be trained on this one's codes.
      alarms: signs of failure, to be warned of in the log and the report.
      pretrained: () -> (params, mutable) of networks that come from elsewhere; they take the place
        of what `init` made when a run begins.
      derived: means of what `evaluate` gives, by name -> figures made of them, such as perplexity.
      conditions: what `sample` can be given. Each is a flag of --mode=sample: --label=3.
      options: how an option of `sample` is read from the command line: text -> value. One that is
        not here is read as a Python literal.
      output: what `sample` draws, if it is not the field that the data generate.
      apply: (params, mutable, batch) -> what another run can make of this one as a stage: an
        embedding, logits.
      prepare: (params, mutable, batch, key, step) -> the batch that the phases see, made once a
        step of the whole batch and without a gradient: rollouts, targets of a teacher, codes,
        pseudo-labels. It may have other fields and another number of examples than the loader's.
      follows: by name, the networks that follow another one. They are in `params` beside those
        that `init` makes, begin as copies, are sharded as their sources and have no mutable state
        of their own; no phase trains them.
      plan: (**options) -> the keywords of `sample` that follow from them, worked out once and not
        traced. Those that are NumPy arrays, or trees of such alone, become arguments of the
        compiled program: with other values of the same shapes it is not compiled again. None: the
        options are the keywords themselves.
      project: network -> what its parameters become after each of their updates, such as weights of
        unit length (Karras et al. 2024, eq. 66).
      guided: `sample` knows what to do with `params["guide/<network>"]`, where it is given: other
        weights of a trained network, of the same run, that samples are guided away from (Karras et
        al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself").
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
    prepare: Callable[..., Batch] | None = None
    follows: Mapping[str, Follow] = {}
    plan: Callable[..., Mapping[str, Any]] | None = None
    project: Mapping[str, Callable[[Tree], Tree]] = {}
    guided: bool = False


class Stage(NamedTuple):
    """A trained run that is part of another one, whose state has its networks, frozen.

    Attributes:
      name: that the config gives it; its networks are `"<name>"/"<network>"` in the state.
      config: how it was trained.
      spec: what its data look like.
      method: what it can do, by its own names of networks.
      networks: those that are needed: of its codec, or all.
      digest: of its data.
    """

    name: str
    config: ConfigDict
    spec: DataSpec
    method: Method
    networks: tuple[str, ...]
    digest: str = ""

    def own(self, networks: Mapping[str, Tree]) -> dict[str, Tree]:
        """Its networks by its own names, out of `params` or `mutable` of the whole run."""
        return networks[self.name]

    def encode(self, params: Mapping[str, Tree], mutable: Mapping[str, Tree], batch: Batch):
        """The codes of a batch, by the networks in the run's state."""
        return self.method.codec.encode(self.own(params), self.own(mutable), batch)

    def decode(self, params: Mapping[str, Tree], mutable: Mapping[str, Tree], codes: jax.Array):
        """Examples of codes, in the format of the stage's data."""
        return self.method.codec.decode(self.own(params), self.own(mutable), codes)

    def apply(self, params: Mapping[str, Tree], mutable: Mapping[str, Tree], batch: Batch):
        """What the stage's method makes of a batch: see `Method.apply`."""
        return self.method.apply(self.own(params), self.own(mutable), batch)


def find_module(key: str, name: str, package: str, *exports: str) -> ModuleType:
    """The module that a config names: `package.name`, or any module that Python can import.

    The second may have dots or none: a file beside the config, for example.

    Raises:
      ConfigError: there is no such module, or it lacks one of `exports`; `key` says where the name
        was given.
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
            "beside the config."
        ) from None
    missing = [export for export in exports if not hasattr(module, export)]
    if missing:
        raise ConfigError(
            f"config.{key}={name!r}: {path} has no {' and no '.join(missing)}: it is no module for "
            f"that key. Nearest: {nearest(name, known)}."
        )
    return module


def module(config: ConfigDict) -> ModuleType:
    """The module that `config.method` names.

    Raises:
      ConfigError: there is no such module, or it has no `build`.
    """
    return find_module("method", config.method, "genjax.methods", "build")


def defaults(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """What an absent key of the family's own section means: section -> key -> value.

    The section is the one whose keys are all fields of the module's `Options`; a module that has
    none has no defaults.

    Raises:
      ConfigError: there is no such method.
    """
    options = getattr(module(config), "Options", None)
    if options is None:
        return {}
    own = [
        name
        for name, section in config.items()
        if isinstance(section, ConfigDict) and section and set(section) <= set(options._fields)
    ]
    return {name: dict(options._field_defaults) for name in own}


def build(config: ConfigDict, spec: DataSpec, stages: Mapping[str, Stage] | None = None) -> Method:
    """Builds the method that `config.method` names.

    `"diffusion"` imports `genjax.methods.diffusion`; the name of any other module is imported as it
    stands.
    The module must export `build(config, spec) -> Method`, or `build(config, spec, stages)` if it
    reaches its stages itself.

    Raises:
      ConfigError: there is no such module, it has no `build`, or what that gives is no method.
    """
    config = settled(config)
    function = module(config).build
    takes_stages = len(inspect.signature(function).parameters) > 2
    made = function(config, spec, *([stages or {}] if takes_stages else []))
    if not isinstance(made, Method):
        raise ConfigError(
            f"config.method={config.method!r}: build gave a {type(made).__name__}, expected a "
            "genjax.method.Method."
        )
    return check(made, config.method)


def options_of(method: Method) -> dict[str, inspect.Parameter]:
    """The options of drawing samples, by name: those of `plan`, or the keywords of `sample`."""
    parameters = inspect.signature(method.plan or method.sample).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def check(method: Method, name: str) -> Method:
    """`method`, if its parts are what they have to be.

    Raises:
      ConfigError: `sample` does not take (params, mutable, key, num, condition, *, options), a
        condition is no field, or there is no phase; says what was expected.
    """

    def require(ok: bool, what: str, value: object, expected: str) -> None:
        if not ok:
            raise ConfigError(f"method {name}: {what} is {value}: expected {expected}.")

    require(bool(method.phases), "phases", method.phases, "at least one Phase")
    try:
        parameters = list(inspect.signature(method.sample).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    require(
        len(places) == 5 or several,
        "sample",
        f"a function of ({', '.join(p.name for p in places)})",
        "one of (params, mutable, key, num, condition), and its options behind a *",
    )
    options = options_of(method)
    for condition, field in method.conditions.items():
        require(
            condition.isidentifier() and isinstance(field, Field) and condition not in options,
            f"conditions[{condition!r}]",
            field,
            "a Field, under a name that can be a flag and is no option of sample",
        )
    return method
