"""A denoising network and its conditions, shared by the families that use one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from genjax.config import ConfigError, construct, nearest, require
from genjax.method import Aux, Batch, DataSpec, Field, Rules, Tree, find_module
from genjax.modalities.label import NAME, label_condition, num_classes, required_classes
from genjax.networks import conditioning
from genjax.networks.conditioning import Conditioning
from genjax.nn.functional import Functional, functional
from genjax.nn.pixels import to_uint8
from genjax.sampling import parametrisation
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.paths import Levels, Path, like

OWN = "conditions"  # key of the parameters of `conditioning.Rows` within those of a denoiser
# Arguments of a network: their purpose, and the networks of genjax that take them.
ARGUMENTS = {
    "context_width": (
        "cross-attention, which texts and other rows need",
        "'unet', 'dit' or 'mmdit'",
    ),
    "vector_width": ("way in for vectors", "'unet', 'dit', 'mmdit' or 'edm2_unet'"),
    "times": ("second time, which the method needs", "'unet'"),
}


class Section(Protocol):
    """The options of a family that concern its network."""

    prediction: str
    sigma_data: float
    variance: str
    class_conditional: bool
    conditions: tuple[str, ...]
    context_width: int
    context_depth: int
    context_heads: int
    label_dropout: float


class Known(NamedTuple):
    """The conditions of some examples.

    Attributes:
      values: conditions by name, in the format of the data.
      hidden: mask of the examples whose conditions are all hidden; None hides none.
    """

    values: Mapping[str, Array]
    hidden: Bool[Array, "B"] | None = None

    def all_hidden(self) -> Known:
        """The same examples with all conditions hidden."""
        count = len(next(iter(self.values.values())))
        return self._replace(hidden=jnp.ones((count,), bool))


# ---- conditions ----------------------------------------------------------------------------------


def check_conditions(o: Section, section: str, spec: DataSpec) -> None:
    """Checks that the data have the conditions and that a network can take them.

    Raises:
      ConfigError: names the condition that fails, and the available fields.
    """
    required_classes(spec, f"{section}.class_conditional=True", o.class_conditional)
    key, names = f"config.{section}.conditions", o.conditions
    if not isinstance(names, tuple) or len(set(names)) < len(names):
        raise ConfigError(f'{key}={names!r}: expected names of fields, each once: ("image",).')
    if not names:
        return
    grid = shape_of(spec)[:2]
    other_fields = [name for name in spec.fields if name != spec.target]
    for name in names:
        if name == spec.target:
            raise ConfigError(
                f"{key}: {name!r} is the generated field. Expected other fields of the data: "
                f"{', '.join(other_fields) or 'there are none'}."
            )
        if name == NAME:
            raise ConfigError(f"{key}: for the label set {section}.class_conditional=True.")
        if name not in spec.fields:
            raise ConfigError(
                f"{key}: {spec.name} has no field {name!r}. "
                + (
                    f"Nearest: {nearest(name, other_fields)}."
                    if other_fields
                    else "It has no other fields."
                )
            )
        conditioning.sizes({name: spec.fields[name]}, grid, o.context_width)


def fields_of(o: Section, spec: DataSpec) -> dict[str, Field]:
    """The fields of the conditions, by name."""
    return label_condition(spec, o.class_conditional) | {n: spec.fields[n] for n in o.conditions}


def rows_of(o: Section, spec: DataSpec, dtype: Any) -> Functional | None:
    """The part of a denoiser that turns texts and rows into a context; None if there are none.

    Raises:
      ConfigError: a transformer over texts without a text, or whose heads do not divide its width.
    """
    fields = {n: spec.fields[n] for n in o.conditions}
    rows = {n: f for n, f in fields.items() if conditioning.way_of(n, f) == "context"}
    width, depth, heads = o.context_width, o.context_depth, o.context_heads
    if not any(conditioning.text_of(field) for field in rows.values()):
        require(not depth, "context_depth", depth, "0: no text is among the conditions")
    if not rows:
        return None
    if depth:
        require(width % heads == 0, "context_heads", heads, f"a divisor of context_width={width}")
    options = conditioning.RowOptions(width, depth, heads, dtype)
    return functional(lambda rngs: conditioning.Rows(rows, options, rngs=rngs))


# ---- the network ---------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """The network of a config, its sharding rules, and the projections of its parameters."""

    net: Functional
    rules: Rules
    project: dict[str, Callable[[Tree], Tree]]


def network(config: ConfigDict, spec: DataSpec, channels: int, o: Section, **given: Any) -> Chosen:
    """The network of `config.model` for the images or latents of `spec`.

    `Network` gets the arguments `vector_width` and `context_width` if conditions need them.

    Args:
      config: config of the run.
      spec: description of its data.
      channels: channels of the output.
      o: options with the conditions of the network.
      **given: further arguments of `Network`.

    Raises:
      ConfigError: the data are neither, the network does not exist, or it does not take an
        argument.
    """
    name = config.model.network
    module = find_module("model.network", name, "genjax.networks", "Network", "RULES")
    H, W, C = shape_of(spec)
    fields = {n: spec.fields[n] for n in o.conditions}
    sizes = conditioning.sizes(fields, (H, W), o.context_width)
    widths = {
        "vector_width": sizes.vector_width,
        "context_width": sizes.context_width,
    }
    takes = signature(module.Network.__init__).parameters
    for key, value in {**given, **widths}.items():
        if value and key not in takes:
            capability, networks = ARGUMENTS[key]
            raise ConfigError(
                f"config.model.network={name!r} has no {capability}: its Network takes no {key}. "
                f"Use the network {networks}."
            )
    arguments = {key: value for key, value in {**given, **widths}.items() if key in takes}

    def build(rngs):
        return construct(
            module.Network,
            config.model.denoiser,
            "model.denoiser",
            shape=(H, W, C + sizes.channels),
            out_channels=channels,
            num_classes=num_classes(spec) if o.class_conditional else 0,
            dtype=jnp.dtype(config.precision),
            rngs=rngs,
            **arguments,
        )

    project = {name: module.project for name in ("denoiser",) if hasattr(module, "project")}
    return Chosen(functional(build), module.RULES, project)


def shape_of(spec: DataSpec) -> tuple[int, int, int]:
    """The shape of the generated images or latents.

    Raises:
      ConfigError: the generated field is neither.
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
    """The networks and settings that the functions of a family need.

    Attributes:
      net: the network, `apply(params, mutable, x, t, label)`, with the keywords `vector`, `context`
        and `context_mask` if there are conditions that enter this way.
      options: options of the family.
      spec: description of the data.
      path: path of x_t.
      uncertainty: network for the uncertainty of the loss at a time, if it is learned.
      rows: turns conditions that are texts or rows into a context.
    """

    net: Functional
    options: Section
    spec: DataSpec
    path: Path
    uncertainty: Functional | None = None
    rows: Functional | None = None

    # ---- data

    def data(self, batch: Batch) -> Float[Array, "B H W C"]:
        """The examples scaled for the process: to [-1, 1], or to zero mean and unit variance."""
        return conditioning.scaled(self.spec.generated, batch[self.spec.target])

    def output(self, x: Float[Array, "B H W C"]) -> Array:
        """The inverse of `data`, in the data's own format."""
        field = self.spec.generated
        if field.kind == "image":
            return to_uint8(x) if field.dtype == np.uint8 else jnp.clip(0.5 * (x + 1.0), 0.0, 1.0)
        mean, std = conditioning.moments(field)
        return x * std + mean

    @property
    def clips(self) -> bool:
        """Whether the scaled data lie in [-1, 1]."""
        return self.spec.generated.kind == "image"

    @property
    def bounded(self) -> bool:
        """Whether the data are 8-bit images, for which there is a bound in bits."""
        return self.clips and self.spec.generated.dtype == np.uint8

    # ---- conditions

    def known(self, batch: Batch, key: Array | None = None) -> Known:
        """The conditions of a batch; with a key, some examples have theirs hidden.

        All conditions of an example are hidden together, with probability `label_dropout`.
        """
        values = {name: batch[name] for name in fields_of(self.options, self.spec)}
        if key is None or not values:
            return Known(values)
        count = len(batch[self.spec.target])
        return Known(values, jax.random.bernoulli(key, self.options.label_dropout, (count,)))

    def conditioning(self, params: Tree, known: Known) -> Conditioning:
        """Encodes the conditions as inputs of the network, with its parameters.

        A hidden label becomes the null class, a hidden row only its learned null vector, and any
        other hidden condition zeros, the mean of scaled data.
        """
        o, spec, hidden = self.options, self.spec, known.hidden
        label = known.values.get(NAME) if o.class_conditional else None
        if label is not None and hidden is not None:
            label = jnp.where(hidden, num_classes(spec), label)
        grid = shape_of(spec)[:2]
        channels, vectors, inputs = [], [], {}
        for name in o.conditions:
            field = spec.fields[name]
            way = conditioning.way_of(name, field)
            if way == "channels":
                x = conditioning.scaled(field, known.values[name])
                channels.append(_zero_hidden(conditioning.on_grid(name, field, x, grid), hidden))
            elif way == "vector":
                x = conditioning.scaled(field, known.values[name])
                vectors.append(_zero_hidden(x.reshape(len(x), -1), hidden))
        for way, parts in (("channels", channels), ("vector", vectors)):
            if parts:
                inputs[way] = jnp.concatenate(parts, axis=-1)
        if self.rows:
            (context, mask), _ = self.rows.apply(params[OWN], {}, known.values, hidden)
            inputs |= {"context": context, "context_mask": mask}
        return Conditioning(label, **inputs)

    # ---- the network

    def init(self, key: Array) -> tuple[Tree, Tree]:
        """The parameters and mutable state of the network."""
        params, mutable = self.net.init(key)
        if self.rows:
            params = {**params, OWN: self.rows.init(jax.random.fold_in(key, 1))[0]}
        return params, mutable

    def run(
        self, params: Tree, mutable: Tree, x: Array, t: Array, cond: Conditioning, **training
    ) -> tuple[Array, Tree]:
        """The network's output for the inputs x and t, in float32, and its mutable state."""
        net_params = {name: p for name, p in params.items() if name != OWN} if self.rows else params
        if cond.channels is not None:
            x = jnp.concatenate([x, cond.channels.astype(x.dtype)], axis=-1)
        keywords = {n: getattr(cond, n) for n in ("vector", "context", "context_mask")}
        keywords = {n: value for n, value in keywords.items() if value is not None}
        output, changed = self.net.apply(
            net_params, mutable, x, t, cond.label, **keywords, **training
        )
        return output.astype(jnp.float32), changed

    def __call__(
        self, params: Tree, mutable: Tree, x: Array, at: Levels, cond: Conditioning, **training
    ) -> tuple[Float[Array, "B H W C"], Array | None, Tree]:
        """The network's output at x_t, its variance fraction (or None), its mutable state."""
        o, fraction = self.options, None
        net_input = parametrisation.network_input(o.prediction, self.path, at, x, o.sigma_data)
        t = jnp.broadcast_to(jnp.asarray(at.time_input, jnp.float32), x.shape[:1])
        output, changed = self.run(params, mutable, net_input, t, cond, **training)
        if o.variance == "learned":
            output, raw = jnp.split(output, 2, axis=-1)
            fraction = 0.5 * (raw + 1.0)
        return output, fraction, changed

    def interpret(self, output: Array, at: Levels, x: Array) -> Prediction:
        """The (x0, epsilon) that an output at x_t implies."""
        o = self.options
        return parametrisation.interpret(o.prediction, at, output, x, o.sigma_data)

    def predict(
        self, params: Tree, mutable: Tree, x: Array, at: Levels, cond: Conditioning
    ) -> Prediction:
        """The predicted (x0, epsilon) at x_t, with the fraction of a learned variance."""
        output, fraction, _ = self(params, mutable, x, at, cond)
        return self.interpret(output, at, x)._replace(fraction=fraction)

    def summed_up(
        self,
        params: dict,
        mutable: dict,
        each: Array,
        time_input: Array,
        metrics: dict,
        changed: dict,
    ) -> tuple[Float[Array, ""], Aux]:
        """The mean loss of the examples, weighted by their uncertainty if it is learned.

        E[exp(-u) L + u], where u depends on the time input of the network (Karras et al. 2024,
        eq. 21).
        """
        if self.uncertainty:
            variables = (params["uncertainty"], mutable["uncertainty"])
            log_variance, net_state = self.uncertainty.apply(*variables, time_input)
            metrics = {**metrics, "unweighted_loss": each.mean()}
            changed = {**changed, "uncertainty": net_state}
            each = each * jnp.exp(-log_variance) + log_variance
        return each.mean(), Aux(metrics, changed, float(len(each)))


def _zero_hidden(
    x: Float[Array, "B ..."], hidden: Bool[Array, "B"] | None
) -> Float[Array, "B ..."]:
    """x with the hidden examples set to zero."""
    return x if hidden is None else jnp.where(like(hidden, x), 0.0, x)
