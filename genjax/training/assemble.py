"""Builds everything that a run is made of from its config, before any array exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from genjax import durations
from genjax import method as methods
from genjax.config import ConfigError, require
from genjax.data import catalogue
from genjax.method import Batch, DataSpec, Method, Tree
from genjax.parallel import rules
from genjax.parallel.mesh import BATCH, make_mesh
from genjax.train_state import TrainState, seeded_key, stream
from genjax.training import ema, follow, game, optim
from genjax.training.step import StepOutput, make_step


class Assembly(NamedTuple):
    """The parts of a run.

    Attributes:
      config: the config.
      mesh: the device mesh.
      spec: the description of the data.
      method: the model family.
      total_steps: steps of the whole run.
      examples_per_step: examples that one step takes from the loader.
      learning_rates: the schedule of each trained network.
      init: the jitted, sharded function () -> the initial state.
      step: the jitted, donated function (state, batch) -> (state, output).
      steps: the same for n = `config.steps_per_dispatch` batches [n, B, ...] in sequence, with
        outputs [n].
      state: the state's shapes, dtypes and shardings.
      batch: the batch's shapes, dtypes and shardings.
    """

    config: ConfigDict
    mesh: Mesh
    spec: DataSpec
    method: Method
    total_steps: int
    examples_per_step: int
    learning_rates: Mapping[str, optax.Schedule]
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, StepOutput]]
    steps: Callable[[TrainState, Batch], tuple[TrainState, StepOutput]]
    state: TrainState
    batch: Mapping[str, jax.ShapeDtypeStruct]


def assemble(
    config: ConfigDict,
    spec: DataSpec | None = None,
    method: Method | None = None,
    devices: list[jax.Device] | None = None,
) -> Assembly:
    """Builds a run from its config; nothing is allocated or compiled yet.

    Args:
      config: a checked config.
      spec: the description of the data; by default the catalogue's for `config.dataset`.
      method: the model family; by default the one that `config.method` names.
      devices: the devices to use; by default all.

    Raises:
      ConfigError: the config does not fit the data, the devices or the family.
      ValueError: no sharding rule covers a leaf of the state.
    """
    mesh = make_mesh(config, devices)
    spec = catalogue.spec(config.dataset) if spec is None else spec
    method = methods.build(config, spec) if method is None else method
    game.check(method)
    examples = config.batch_size * game.slices(method)
    size = {"batch_size": examples, "examples": spec.sizes.get("train", 0)}
    total = total_steps(config, spec, method)
    warmup = durations.steps(config.schedule.warmup, **size, total=total)
    trained = game.trained(method)
    rates = {name: optim.learning_rate(config, name, total, warmup) for name in trained}
    optimizers = {name: optim.build(config, name, rates[name]) for name in trained}

    on_batch = NamedSharding(mesh, BATCH)
    batch = {
        name: jax.ShapeDtypeStruct((examples, *s.shape), s.dtype, sharding=on_batch)
        for name, s in spec.fields.items()
    }
    traced_init = jax.jit(_make_init(config, method, optimizers, batch), inline=True)
    with jax.set_mesh(mesh):  # as when it is called: a trace belongs to one mesh
        abstract = jax.eval_shape(traced_init)
    own_params = {
        name: tree for name, tree in abstract.params.items() if name not in method.follows
    }
    optim.check_rules(config, own_params)
    shardings = rules.shardings(abstract.replace(params=own_params), method.rules, mesh)
    followers = {name: shardings.params[rule.source] for name, rule in method.follows.items()}
    shardings = shardings.replace(params={**shardings.params, **followers})
    step = make_step(config, _spread(method, mesh), optimizers)

    def compiled(function, split: PartitionSpec):
        on_batches = NamedSharding(mesh, split)
        return jax.jit(
            function,
            in_shardings=(shardings, {name: on_batches for name in batch}),
            out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
            donate_argnums=0,
        )

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, StepOutput]:
        return jax.lax.scan(step, state, batches)

    def init() -> TrainState:
        return traced_init()  # jitted again, with shardings, without a second trace

    state = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        abstract,
        shardings,
    )
    return Assembly(
        config=config,
        mesh=mesh,
        spec=spec,
        method=method,
        total_steps=total,
        examples_per_step=examples,
        learning_rates=rates,
        init=jax.jit(init, out_shardings=shardings),
        step=compiled(step, BATCH),
        steps=compiled(steps, PartitionSpec(None, *BATCH)),
        state=state,
        batch=batch,
    )


def total_steps(config: ConfigDict, spec: DataSpec, method: Method) -> int:
    """Returns the number of steps of the whole run.

    Raises:
      ConfigError: there are more steps than the state can count.
    """
    size = {"batch_size": config.batch_size * game.slices(method)}
    total = durations.steps(config.duration, **size, examples=spec.sizes.get("train", 0))
    most = durations.MOST_STEPS
    require(total <= most, "config.duration", config.duration, f"at most {most:,} steps")
    return total


def _spread(method: Method, mesh: Mesh) -> Method:
    """Returns `method` with prepared batches sharded like the loader's, where sizes allow."""
    if method.prepare is None:
        return method
    parts, on_batch = mesh.shape["data"] * mesh.shape["fsdp"], NamedSharding(mesh, BATCH)

    def prepare(*args) -> Batch:
        return {
            name: jax.lax.with_sharding_constraint(value, on_batch)
            if value.ndim and value.shape[0] % parts == 0
            else value
            for name, value in method.prepare(*args).items()
        }

    return method._replace(prepare=prepare)


def _shapes(networks: dict[str, Tree]) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(networks)
    return {rules.path_name(path): tuple(leaf.shape) for path, leaf in leaves}


def read_pretrained(run: Assembly) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """Returns the parameters and mutable state from `method.pretrained`, on the host.

    They are compared with the run's shapes before anything of the run is allocated.

    Raises:
      ConfigError: their arrays or shapes differ from those of the config's networks.
    """
    if run.method.pretrained is None:
        return {}, {}
    pretrained = run.method.pretrained()
    for old, new in zip((run.state.params, run.state.mutable), pretrained, strict=True):
        loaded, expected = _shapes(new), _shapes({name: old[name] for name in new})
        if loaded != expected:
            lines = "\n".join(
                f"  {name}: {loaded.get(name, 'absent')} -> {expected.get(name, 'absent')}"
                for name in sorted(loaded | expected)
                if loaded.get(name) != expected.get(name)
            )
            raise ConfigError(
                "the pretrained networks do not fit the config's networks (given -> expected):\n"
                f"{lines}\nSet the keys that differ, such as model.length and "
                "model.vocabulary_size, to the pretrained model's values."
            )
    return pretrained


def put_pretrained(
    state: TrainState, params: dict[str, Tree], mutable: dict[str, Tree]
) -> TrainState:
    """Returns `state` with these networks, sharded as its own were; their averages restart."""

    def replaced(old: dict[str, Tree], new: dict[str, Tree]) -> dict[str, Tree]:
        shardings = {name: jax.tree.map(lambda x: x.sharding, old[name]) for name in new}
        return {**old, **jax.device_put(new, shardings)}

    new_params = replaced(state.params, params)
    averages = {
        profile: {
            name: jax.tree.map(jnp.copy, new_params[name]) if name in params else average
            for name, average in averaged.items()
        }
        for profile, averaged in state.ema.items()
    }
    return state.replace(params=new_params, mutable=replaced(state.mutable, mutable), ema=averages)


def _make_init(
    config: ConfigDict,
    method: Method,
    optimizers: Mapping[str, optax.GradientTransformationExtraArgs],
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> Callable[[], TrainState]:
    """Returns the function () -> the state before the first step, from `config.seed`."""

    def init() -> TrainState:
        key = seeded_key(config.seed)
        zeros = {name: jnp.zeros(s.shape, s.dtype) for name, s in batch.items()}
        params, mutable = method.init(stream(key, "init"), zeros)
        if missing := optimizers.keys() - params.keys():
            raise ConfigError(
                f"method {config.method!r} trains {sorted(missing)}, but init made only "
                f"{sorted(params)}."
            )
        params = follow.begin(method.follows, params, optimizers)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state={name: tx.init(params[name]) for name, tx in optimizers.items()},
            mutable=mutable,
            ema=ema.init(config, params, optimizers),
            key=key,
        )

    return init
