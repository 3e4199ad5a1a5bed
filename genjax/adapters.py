"""Adapters: low-rank updates that are trained in place of whole networks, for any family.

`config.adapters` lists pairs of a regex and a rank. A kernel of a trained network is adapted if a
regex matches its path, such as `lm/body/blocks/qkv/kernel`; the first match gives its rank, and 0
leaves it as it is. The state of an adapted network "lm" has two entries: `params["lm"]`, the
factors of the updates, which are trained, and `params["base/lm"]`, the network itself, which is
frozen. The functions of the family get the sum of the two as `params["lm"]`, and the untouched
`params["base/lm"]`. In losses a kernel of the sum may be an `Updated`, whose parts are not added.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from genjax.checks import ConfigError, nearest, require
from genjax.nn import low_rank
from genjax.nn.updated import Updated
from genjax.parallel.rules import STATE_RULES, Tactic, first_match, path_name, sharing
from genjax.train_state import stream

Tree = Any
Params = Mapping[str, Tree]

BASE = "base/"  # before the name of an adapted network in the state: its frozen parameters
GUIDE = "guide/"  # before the name of a network: other parameters of it


class Adapter(NamedTuple):
    """The update of one kernel.

    Attributes:
      layout: the axes of the kernel.
      rank: R.
      scale: factor of A B: alpha / R.
    """

    layout: low_rank.Layout
    rank: int
    scale: float


class Adapters(NamedTuple):
    """The adapters of a method.

    Attributes:
      kind: "lora" or "dora".
      networks: name of an adapted network -> path of a kernel in it -> its adapter.
      follows: the networks that follow an adapted one -> its name.
      project: see `Method.project`; applied to what is merged.
    """

    kind: str
    networks: Mapping[str, Mapping[str, Adapter]]
    follows: Mapping[str, str]
    project: Mapping[str, Callable[[Tree], Tree]]

    def source(self, name: str) -> str | None:
        """The adapted network that an entry of the parameters has factors of; None if of none."""
        name = name.removeprefix(GUIDE)
        name = self.follows.get(name, name)
        return name if name in self.networks else None

    def merge(self, params: Params, apart: bool = False) -> dict[str, Tree]:
        """The parameters with every adapted network in full.

        With `apart`, kernels of linear maps are `Updated`: their updates are not added.
        """
        full = dict(params)
        for name, factors in params.items():
            if source := self.source(name):
                full[name] = self._merged(source, params[BASE + source], factors, apart)
        return full

    def _merged(self, network: str, base: Tree, factors: Tree, apart: bool) -> Tree:
        known = self.networks[network]
        apart = apart and self.kind == "lora" and network not in self.project

        def leaf(path: tuple, kernel: jax.Array) -> jax.Array | Updated:
            name = path_name(path)
            if name not in known:
                return kernel
            own = reduce(lambda tree, key: tree[key], name.split("/"), factors)
            layout, _, scale = known[name]
            if apart and len(layout.inputs) == 1 and name.rpartition("/")[2] == "kernel":
                return Updated(kernel, own["a"], own["b"], scale)
            return low_rank.merged(layout, kernel, own, scale)

        full = jax.tree_util.tree_map_with_path(leaf, base)
        return self.project[network](full) if network in self.project else full

    def begin(self, key: jax.Array, network: str) -> Tree:
        """The factors of a network whose updates are all zero."""
        factors = {
            path: low_rank.begin(
                stream(key, f"{network}/{path}"), adapter.layout, adapter.rank, self.kind
            )
            for path, adapter in self.networks[network].items()
        }
        return unflatten_dict(factors, sep="/")

    def split(self, networks: Params) -> dict[str, Tree]:
        """Whole networks under their names in the state; followers start as copies of others."""
        return {
            BASE + name if name in self.networks else name: tree
            for name, tree in networks.items()
            if name not in self.follows
        }


def adapted(method: Any, config: ConfigDict, fields: Mapping[str, Any]) -> Any:
    """A `Method` with adapters, as `config.adapters` and `config.lora` say; without, `method`.

    Args:
      method: a `genjax.method.Method`.
      config: the whole config.
      fields: the `Field`s of an example.

    Raises:
      ConfigError: a regex matches no kernel of a trained network, or a rank is above the sides of a
        kernel.
    """
    if not config.get("adapters"):
        return method
    batch = {name: jnp.zeros((1, *f.shape), f.dtype) for name, f in fields.items()}
    shapes, _ = jax.eval_shape(method.init, jax.random.key(0), batch)
    trained = {name for phase in method.phases for name in phase.networks}
    networks = _chosen(config, {name: shapes[name] for name in sorted(trained)})
    follows = {n: rule.source for n, rule in method.follows.items() if rule.source in networks}
    project = {n: function for n, function in method.project.items() if n in networks}
    adapters = Adapters(config.lora.kind, networks, follows, project)

    def init(key: jax.Array, batch: Mapping) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = method.init(key, batch)
        own_key = stream(key, "adapters")
        return {
            **adapters.split(params),
            **{name: adapters.begin(own_key, name) for name in networks},
        }, mutable

    def pretrained() -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = method.pretrained()
        return adapters.split(params), mutable

    def in_full(function: Callable | None, apart: bool = False) -> Callable | None:
        """The function of (params, mutable, ...), which gets whole networks."""
        if function is None:
            return None

        def merging(params: Params, mutable: Params, *args: Any, **named: Any) -> Any:
            return function(adapters.merge(params, apart), mutable, *args, **named)

        merging.__signature__ = inspect.signature(function)
        return merging

    codec = method.codec
    if codec is not None:
        bases = (BASE + name for name in codec.networks if name in networks)
        codec = codec._replace(
            networks=(*codec.networks, *bases),
            encode=in_full(codec.encode),
            decode=in_full(codec.decode),
            log_likelihood=in_full(codec.log_likelihood),
        )
    functions = ("evaluate", "sample", "pictures", "apply")
    apart, reader = not config.lora.merged, method.text_encoder
    return method._replace(
        init=init,
        phases=tuple(p._replace(loss=in_full(p.loss, apart)) for p in method.phases),
        **{name: in_full(getattr(method, name)) for name in functions},
        prepare=in_full(method.prepare, apart),  # a loss may weigh what it draws
        text_encoder=reader and reader._replace(encode=in_full(reader.encode)),
        codec=codec,
        pretrained=None if method.pretrained is None else pretrained,
        rules=(*_rules(method.rules, adapters, shapes), *method.rules),
        project={n: function for n, function in method.project.items() if n not in networks},
        adapters=adapters,
    )


def _chosen(config: ConfigDict, shapes: Params) -> dict[str, dict[str, Adapter]]:
    """The adapters that the config asks for: network -> path in it -> adapter."""
    layouts = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(shapes)):
        name = path_name(path)
        if found := low_rank.layout(name, leaf.shape):
            layouts[name] = found
    for regex, _ in config.adapters:
        if not any(re.search(regex, name) for name in layouts):
            raise ConfigError(
                f"config.adapters: {regex!r} matches no kernel of a trained network. "
                f"Nearest: {nearest(regex, layouts)}."
            )
    networks: dict[str, dict[str, Adapter]] = {}
    rules = (*config.adapters, ("", 0))
    for name, found in layouts.items():
        rank = first_match(rules, name, "adapter")
        sides = f"at most {min(found.sides)}, the smaller side of its matrix {list(found.sides)}"
        require(rank <= min(found.sides), f"config.adapters: the rank for {name}", rank, sides)
        network, _, path = name.partition("/")
        if rank:
            adapter = Adapter(found, rank, config.lora.alpha / rank)
            networks.setdefault(network, {})[path] = adapter
    require(bool(networks), "config.adapters", config.adapters, "a rank above 0 for some kernel")
    return networks


def _rules(rules: tuple, adapters: Adapters, shapes: Params) -> Iterator[tuple[str, Tactic]]:
    """How bases and factors shard: a base as without adapters, factors as the kernel's own axes."""
    rules = (*STATE_RULES, *rules)
    for network, known in adapters.networks.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes[network]):
            name = path_name(path)
            tactic = first_match(rules, f"params/{network}/{name}", "sharding")
            yield rf"^params/{re.escape(BASE + network)}/{re.escape(name)}$", tactic
            if name not in known:
                continue
            axes, found = range(leaf.ndim), known[name].layout
            first = len(found.stack)
            last = first + len(found.inputs)
            parts = {
                "a": (*axes[:last], None),
                "b": (*axes[:first], None, *axes[last:]),
                "magnitude": (*axes[:first], *axes[last:]),
            }
            for part, shared in parts.items():
                where = rf"(^|/){re.escape(network)}/(.*/)?{re.escape(name)}/{part}$"
                yield where, sharing(tactic, leaf.shape, shared)
