"""A network that denoises, and what it is told: shared by the families that have one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from genjax.config import ConfigError, construct, nearest
from genjax.method import Aux, Batch, DataSpec, Field, Rules, Tree, find_module
from genjax.modalities.label import NAME, label_condition, num_classes, required_classes
from genjax.networks import told as entering
from genjax.networks.told import Told
from genjax.nn.functional import Functional, functional
from genjax.nn.pixels import to_uint8
from genjax.sampling import parametrisation
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.paths import Levels, Path, like

OWN = "conditions"  # among the parameters of a denoiser, those of `told.Rows`
# Arguments of a network: what they are for, and which networks of genjax have them.
ARGUMENTS = {
    "context_width": ("cross-attention, which texts and other rows need", "'unet' or 'dit'"),
    "vector_width": ("way in for vectors", "'unet', 'dit' or 'edm2_unet'"),
    "times": ("second time, which the method needs", "'unet'"),
}


class Section(Protocol):
    """What the options of a family say of its network."""

    prediction: str
    sigma_data: float
    variance: str
    class_conditional: bool
    conditions: tuple[str, ...]
    context_width: int
    label_dropout: float


class Known(NamedTuple):
    """The conditions of some examples.

    Attributes:
      values: by name, as the data have them.
      hidden: of which examples none is told; None: of no example.
    """

    values: Mapping[str, Array]
    hidden: Bool[Array, "B"] | None = None

    def all_hidden(self) -> Known:
        """The same examples, of which nothing is told."""
        count = len(next(iter(self.values.values())))
        return self._replace(hidden=jnp.ones((count,), bool))


# ---- what is told --------------------------------------------------------------------------------


def check_conditions(o: Section, section: str, spec: DataSpec) -> None:
    """Refuses conditions that the data do not have or that cannot enter a network.

    Raises:
      ConfigError: says which, and what there is.
    """
    required_classes(spec, f"{section}.class_conditional=True", o.class_conditional)
    key, names = f"config.{section}.conditions", o.conditions
    if not isinstance(names, tuple) or len(set(names)) < len(names):
        raise ConfigError(f'{key}={names!r}: expected names of fields, each once: ("image",).')
    if not names:
        return
    grid = shape_of(spec)[:2]
    there = [name for name in spec.fields if name != spec.target]
    for name in names:
        if name == spec.target:
            raise ConfigError(
                f"{key}: {name!r} is what is generated. Expected other fields of the data: "
                f"{', '.join(there) or 'there are none'}."
            )
        if name == NAME:
            raise ConfigError(f"{key}: for the label set {section}.class_conditional=True.")
        if name not in spec.fields:
            raise ConfigError(
                f"{key}: {spec.name} has no field {name!r}. "
                + (f"Nearest: {nearest(name, there)}." if there else "It has no other fields.")
            )
        entering.sizes({name: spec.fields[name]}, grid, o.context_width)


def fields_of(o: Section, spec: DataSpec) -> dict[str, Field]:
    """The conditions by name."""
    return label_condition(spec, o.class_conditional) | {n: spec.fields[n] for n in o.conditions}


def rows_of(o: Section, spec: DataSpec) -> Functional | None:
    """The part of a denoiser that makes a context of texts and rows; None if there are none."""
    fields = {n: spec.fields[n] for n in o.conditions}
    rows = {n: f for n, f in fields.items() if entering.way_of(n, f) == "context"}
    if not rows:
        return None
    return functional(lambda rngs: entering.Rows(rows, o.context_width, rngs=rngs))


# ---- the network ---------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """The network of a config, its sharding rules, and what becomes of its parameters."""

    net: Functional
    rules: Rules
    project: dict[str, Callable[[Tree], Tree]]


def network(config: ConfigDict, spec: DataSpec, channels: int, o: Section, **given: Any) -> Chosen:
    """The network of `config.model` for the images or latents of `spec`.

    It gets the arguments `vector_width` and `context_width` if it has conditions that need them.

    Args:
      config: of the run.
      spec: of its data.
      channels: of the output.
      o: what it is told.
      **given: more arguments of `Network`.

    Raises:
      ConfigError: the data are neither, or the network is not there or does not take an argument.
    """
    name = config.model.network
    module = find_module("model.network", name, "genjax.networks", "Network", "RULES")
    H, W, C = shape_of(spec)
    fields = {n: spec.fields[n] for n in o.conditions}
    size = entering.sizes(fields, (H, W), o.context_width)
    widths = {"vector_width": size.vector_width, "context_width": size.context_width}
    takes = signature(module.Network.__init__).parameters
    for key, value in {**given, **widths}.items():
        if value and key not in takes:
            lack, networks = ARGUMENTS[key]
            raise ConfigError(
                f"config.model.network={name!r} has no {lack}: its Network takes no {key}. "
                f"Take the network {networks}."
            )
    taken = {key: value for key, value in {**given, **widths}.items() if key in takes}

    def build(rngs):
        return construct(
            module.Network,
            config.model.denoiser,
            "model.denoiser",
            shape=(H, W, C + size.channels),
            out_channels=channels,
            num_classes=num_classes(spec) if o.class_conditional else 0,
            dtype=jnp.dtype(config.precision),
            rngs=rngs,
            **taken,
        )

    project = {name: module.project for name in ("denoiser",) if hasattr(module, "project")}
    return Chosen(functional(build), module.RULES, project)


def shape_of(spec: DataSpec) -> tuple[int, int, int]:
    """The shape of the images or latents that are generated.

    Raises:
      ConfigError: they are something else.
    """
    field = spec.generated
    real = np.issubdtype(np.dtype(field.dtype), np.floating)
    if field.kind == "image" or (field.kind == "code" and len(field.shape) == 3 and real):
        return tuple(field.shape)
    tokens = " of tokens" * (field.kind == "code" and not real)
    raise ConfigError(
        f"the method needs images or latents [H, W, C] of real numbers; the target of "
        f"{spec.name}, {spec.target!r}, is of kind {field.kind!r}{tokens} and shape "
        f"{tuple(field.shape)}."
    )


class Denoiser(NamedTuple):
    """What the functions of a family need to know, beside its arrays.

    Attributes:
      net: the network, `apply(params, mutable, x, t, label)`, with `vector`, `context` and
        `context_mask` by name if there are conditions that enter so.
      options: of the family.
      spec: of the data.
      path: of x_t.
      uncertainty: of the loss at a time, if that is learned.
      rows: makes a context of the conditions that are texts or rows.
    """

    net: Functional
    options: Section
    spec: DataSpec
    path: Path
    uncertainty: Functional | None = None
    rows: Functional | None = None

    # ---- data

    def data(self, batch: Batch) -> Float[Array, "B H W C"]:
        """The examples as the process has them: in [-1, 1], or of zero mean and unit variance."""
        return entering.scaled(self.spec.generated, batch[self.spec.target])

    def output(self, x: Float[Array, "B H W C"]) -> Array:
        """The inverse of `data`, in the data's own format."""
        field = self.spec.generated
        if field.kind == "image":
            return to_uint8(x) if field.dtype == np.uint8 else jnp.clip(0.5 * (x + 1.0), 0.0, 1.0)
        mean, std = entering.moments(field)
        return x * std + mean

    @property
    def clips(self) -> bool:
        """Whether data lie in [-1, 1]."""
        return self.spec.generated.kind == "image"

    @property
    def bounded(self) -> bool:
        """Whether data are 8-bit values, which have a bound in bits."""
        return self.clips and self.spec.generated.dtype == np.uint8

    # ---- conditions

    def known(self, batch: Batch, key: Array | None = None) -> Known:
        """The conditions of a batch; with a key, those of some examples are hidden.

        All conditions of an example are hidden together, with the probability `label_dropout`.
        """
        values = {name: batch[name] for name in fields_of(self.options, self.spec)}
        if key is None or not values:
            return Known(values)
        count = len(batch[self.spec.target])
        return Known(values, jax.random.bernoulli(key, self.options.label_dropout, (count,)))

    def tell(self, params: Tree, known: Known) -> Told:
        """What the network with these parameters is told of the conditions.

        A hidden label is the null class, a hidden row its learned null vector alone, and anything
        else zeros, which is the mean of data that are scaled.
        """
        o, spec, hidden = self.options, self.spec, known.hidden
        label = known.values.get(NAME) if o.class_conditional else None
        if label is not None and hidden is not None:
            label = jnp.where(hidden, num_classes(spec), label)
        grid = shape_of(spec)[:2]
        channels, vectors, joined = [], [], {}
        for name in o.conditions:
            field = spec.fields[name]
            way = entering.way_of(name, field)
            if way == "channels":
                x = entering.scaled(field, known.values[name])
                channels.append(_zero(entering.on_grid(name, field, x, grid), hidden))
            elif way == "vector":
                x = entering.scaled(field, known.values[name])
                vectors.append(_zero(x.reshape(len(x), -1), hidden))
        for way, parts in (("channels", channels), ("vector", vectors)):
            if parts:
                joined[way] = jnp.concatenate(parts, axis=-1)
        if self.rows:
            (context, mask), _ = self.rows.apply(params[OWN], {}, known.values, hidden)
            joined |= {"context": context, "context_mask": mask}
        return Told(label, **joined)

    # ---- the network

    def init(self, key: Array) -> tuple[Tree, Tree]:
        """Its parameters and mutable state."""
        params, mutable = self.net.init(key)
        if self.rows:
            params = {**params, OWN: self.rows.init(jax.random.fold_in(key, 1))[0]}
        return params, mutable

    def run(
        self, params: Tree, mutable: Tree, x: Array, t: Array, told: Told, **training
    ) -> tuple[Array, Tree]:
        """What the network makes of its input x and t, float32, and its mutable state."""
        own = {name: p for name, p in params.items() if name != OWN} if self.rows else params
        if told.channels is not None:
            x = jnp.concatenate([x, told.channels.astype(x.dtype)], axis=-1)
        named = {n: getattr(told, n) for n in ("vector", "context", "context_mask")}
        named = {n: value for n, value in named.items() if value is not None}
        output, changed = self.net.apply(own, mutable, x, t, told.label, **named, **training)
        return output.astype(jnp.float32), changed

    def __call__(
        self, params: Tree, mutable: Tree, x: Array, at: Levels, told: Told, **training
    ) -> tuple[Float[Array, "B H W C"], Array | None, Tree]:
        """The network's output at x_t; its fraction of the variance; its mutable state."""
        o, fraction = self.options, None
        seen = parametrisation.network_input(o.prediction, self.path, at, x, o.sigma_data)
        t = jnp.broadcast_to(jnp.asarray(at.told, jnp.float32), x.shape[:1])
        output, changed = self.run(params, mutable, seen, t, told, **training)
        if o.variance == "learned":
            output, raw = jnp.split(output, 2, axis=-1)
            fraction = 0.5 * (raw + 1.0)
        return output, fraction, changed

    def interpret(self, output: Array, at: Levels, x: Array) -> Prediction:
        """The (x0, epsilon) that an output at x_t implies."""
        o = self.options
        return parametrisation.interpret(o.prediction, at, output, x, o.sigma_data)

    def predict(self, params: Tree, mutable: Tree, x: Array, at: Levels, told: Told) -> Prediction:
        """The pair at x_t."""
        output, fraction, _ = self(params, mutable, x, at, told)
        return self.interpret(output, at, x)._replace(fraction=fraction)

    def summed_up(
        self, params: dict, mutable: dict, each: Array, told: Array, metrics: dict, changed: dict
    ) -> tuple[Float[Array, ""], Aux]:
        """The mean of the losses of examples, weighed by their uncertainty if that is learned.

        E exp(-u) L + u, u of what the network was told of the time (Karras et al. 2024, eq. 21).
        """
        if self.uncertainty:
            own = (params["uncertainty"], mutable["uncertainty"])
            log_variance, state = self.uncertainty.apply(*own, told)
            metrics = {**metrics, "unweighted_loss": each.mean()}
            changed = {**changed, "uncertainty": state}
            each = each * jnp.exp(-log_variance) + log_variance
        return each.mean(), Aux(metrics, changed, float(len(each)))


def _zero(x: Float[Array, "B ..."], hidden: Bool[Array, "B"] | None) -> Float[Array, "B ..."]:
    """x, zero in the examples that are hidden."""
    return x if hidden is None else jnp.where(like(hidden, x), 0.0, x)
