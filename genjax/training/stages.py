"""Stages: trained runs whose networks are frozen parts of another run.

`config.stages` names them: a run's folder, or a config that is trained first under the workdir. The
state of the run has each stage's networks as `params["<stage>"]["<network>"]`, so that checkpoints
are whole; `stages/<stage>/config.json` in its workdir says how to build them again. Stages may have
stages.

With `config.dataset.codes` the codes of a stage are the data: they are made once and kept, and what
is generated is decoded. A stage that is used otherwise (an embedding, codes of random crops) is
reached by the method, in `prepare`, its losses and its sampler.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from genjax import files
from genjax import method as methods
from genjax.config import ConfigError, nearest, require
from genjax.durations import steps
from genjax.method import Batch, DataSpec, Method, Stage
from genjax.parallel.rules import STATE_RULES, Tactic, first_match, path_name
from genjax.training import ema, follow, game, older, workdir
from genjax.training.checkpoint import Checkpoints, Damaged
from genjax.training.digests import digest, digests

Tree = Any
logger = logging.getLogger("genjax")

FOLDER = "stages"  # in the workdir of the run that has them


class Arrays(NamedTuple):
    """The networks of stages as they are in the state of the run: stage -> network -> arrays."""

    params: dict[str, dict[str, Tree]]
    mutable: dict[str, dict[str, Tree]]


def is_config(given: str) -> bool:
    """Whether a stage is named by a config, and not by a run's folder."""
    return given.partition(":")[0].endswith(".py")


def place_of(name: str, config: ConfigDict, folder: epath.Path) -> epath.Path:
    """The folder that says how a stage of the run in `folder` is built.

    Its own under the workdir if the run has begun, or if the stage is trained there; else the run's
    folder that the config names.
    """
    given, own = config.stages[name], older.stage_folder(folder, folder / FOLDER / name)
    return own if is_config(given) or workdir.has_checkpoint(folder) else _run(name, given)


def _run(name: str, given: str) -> epath.Path:
    """The folder of a run that a stage is named by."""
    return files.place(given, f"--config.stages.{name}")


def find(config: ConfigDict, folder: epath.Path) -> dict[str, Stage]:
    """The stages of the run in `folder`, or of the one that is to begin there.

    Raises:
      ConfigError: there is no run where the config says.
    """
    return {name: _find(name, config, folder) for name in config.stages}


def _find(name: str, config: ConfigDict, folder: epath.Path) -> Stage:
    given, place = config.stages[name], place_of(name, config, folder)
    require(bool(re.fullmatch(r"\w+", name)), "a name in config.stages", name, "a word")
    if not given:
        raise ConfigError(
            f"config.stages.{name} is empty: give the workdir of a trained run, or a config that "
            "is trained first, such as configs/vqvae.py."
        )
    stored = workdir.read_config(place)
    if stored is None:
        raise ConfigError(
            f"config.stages.{name}={given!r}: no run there ({place} has no config.json). Train one "
            "first, and give its --workdir, or name its config."
        )
    workdir.import_from(workdir.read_source(place))
    spec = workdir.read_spec(place)
    method = build(stored, spec, find(stored, place))
    alone = method.codec is not None and method.apply is None
    networks = method.codec.networks if alone else tuple(network_shapes(method, spec)[0])
    return Stage(name, stored, spec, method, networks, workdir.read_digest(place))


def keep(config: ConfigDict, folder: epath.Path) -> None:
    """Writes into `folder` how its stages are built, unless a run there has begun."""
    if workdir.has_checkpoint(folder):
        return
    for name, given in config.stages.items():
        if not is_config(given):
            workdir.copy_description(_run(name, given), folder / FOLDER / name)


def build(
    config: ConfigDict, spec: DataSpec, stages: Mapping[str, Stage], data: DataSpec | None = None
) -> Method:
    """The method of a config, joined with its stages.

    Args:
      config: of the run.
      spec: of its data: of the codes, if `config.dataset.codes` names a stage.
      stages: those of the config.
      data: of the data that the codes are of; the stage's own if not given.
    """
    method = methods.build(config, spec, stages)
    return join(method, config, stages, data) if stages else method


def check_codes(config: ConfigDict) -> None:
    """Raises ConfigError if `config.dataset.codes` names no stage of `config.stages`."""
    name, known = config.dataset.codes, config.stages
    if name and name not in known:
        raise ConfigError(
            f"config.dataset.codes={name!r}: no such stage. "
            + (f"Nearest: {nearest(name, known)}." if known else "config.stages names none.")
        )


def codes_of(config: ConfigDict, stages: Mapping[str, Stage]) -> Stage | None:
    """The stage whose codes are the data of the run; None if there is none.

    Raises:
      ConfigError: there is no such stage, or it has no codes.
    """
    check_codes(config)
    name = config.dataset.codes
    if not name:
        return None
    if stages[name].method.codec is None:
        raise ConfigError(
            f"config.dataset.codes={name!r}: a run of method {stages[name].config.method!r}, which "
            "has no codes to train on. Give one of an autoencoder, such as configs/vqvae.py."
        )
    return stages[name]


def check_facts(stage: Stage, spec: DataSpec) -> None:
    """Refuses a stage to which a field of the same name and kind means something else.

    Raises:
      ConfigError: its tokenizer, vocabulary or number of classes is another one.
    """
    then, now = (workdir.spec_to_json(s)["fields"] for s in (stage.spec, spec))
    for name in then.keys() & now.keys():
        if then[name]["kind"] != now[name]["kind"]:
            continue
        for fact in ("tokenizer", "vocabulary_size", "num_classes"):
            old, new = (
                known["sha256"] if isinstance(known, dict) else known
                for known in (fields[name]["facts"].get(fact) for fields in (then, now))
            )
            if old != new:
                raise ConfigError(
                    f"config.stages.{stage.name}: the {fact} of the field {name!r} is {old} there "
                    f"and {new} in {spec.name}: it means something else. Give a stage of these "
                    "data, or set config.dataset as it has it."
                )


def read(stages: Mapping[str, Stage], config: ConfigDict, folder: epath.Path, mesh: Mesh) -> Arrays:
    """The networks of all stages: from the run's own checkpoint if it has one, else from theirs.

    What their evaluations use: averaged parameters, where there are some.

    Raises:
      ConfigError: a stage has no checkpoint; or the run was begun with another one.
    """
    params, mutable = {}, {}
    for stage in stages.values():
        found = _own(stage, config, folder, mesh)
        params |= found.params
        mutable |= found.mutable
    return Arrays(params, mutable)


def _own(stage: Stage, config: ConfigDict, folder: epath.Path, mesh: Mesh) -> Arrays:
    given = config.stages[stage.name]
    source = place_of(stage.name, config, folder) if is_config(given) else _run(stage.name, given)
    if not workdir.has_checkpoint(folder):
        _warn_if_unfinished(stage, source)
        return _read(stage, Checkpoints(source), mesh)
    found = _read(stage, Checkpoints(folder), mesh, inside=True)
    stored = workdir.read_config(folder)
    begun = stored.stages.get(stage.name, "") if stored else ""
    if begun != given:
        now = _digest(_read(stage, Checkpoints(source), mesh))
        if now != _digest(found):
            raise ConfigError(
                f"config.stages.{stage.name}={given!r} is another one than that "
                f"({begun or 'unknown'}) which the run in {folder} was begun with: what it makes "
                "means something else. Give a new --workdir."
            )
    return found


def _warn_if_unfinished(stage: Stage, source: epath.Path) -> None:
    then, examples = stage.config, stage.spec.sizes["train"]
    total = steps(then.duration, batch_size=then.batch_size, examples=examples)
    step = Checkpoints(source).latest()
    if step is not None and step < total:
        logger.warning(
            "config.stages.%s: %s has been trained for %d of its %d steps",
            *(stage.name, source, step, total),
        )


def _digest(arrays: Arrays) -> str:
    return digest(digests(arrays._asdict()))


def network_shapes(method: Method, spec: DataSpec) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """The shapes of a method's networks, of those that follow others too."""
    batch = {name: jnp.zeros((1, *f.shape), f.dtype) for name, f in spec.fields.items()}

    def init() -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = method.init(jax.random.key(0), batch)
        return follow.begin(method.follows, params, game.trained(method)), mutable

    return jax.eval_shape(init)


def _abstract(stage: Stage) -> Arrays:
    """The shapes of the networks that are needed, as they are in the run's state."""
    made = network_shapes(stage.method, stage.spec)
    return Arrays(
        *({stage.name: {n: tree[n] for n in stage.networks if n in tree}} for tree in made)
    )


@contextlib.contextmanager
def _whole(stage: Stage) -> Iterator[None]:
    """Says of a checkpoint that cannot be read which stage it is of."""
    try:
        yield
    except Damaged as error:
        raise Damaged(f"config.stages.{stage.name}: {error}") from error


def _read(stage: Stage, checkpoints: Checkpoints, mesh: Mesh, inside: bool = False) -> Arrays:
    """The networks of a stage out of its own checkpoint, or of one that it is `inside` of."""
    step = checkpoints.latest()
    if step is None:
        raise ConfigError(
            f"config.stages.{stage.name}: {checkpoints.folder} has no checkpoint. Train the run to "
            "its end first."
        )
    place = checkpoints.folder / str(step)
    with _whole(stage):
        saved = checkpoints.shapes(step)
    everywhere = NamedSharding(mesh, PartitionSpec())
    profile = "" if inside else next(iter(ema.profiles(stage.config)), "")
    abstract = _abstract(stage)._asdict()
    paths, wanted = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        name = path_name(path)
        kind, _, rest = name.partition("/")
        own = rest.removeprefix(f"{stage.name}/")
        source = name if inside and name in saved else f"{kind}/{own}"
        average = f"ema/{profile}/{own}" if profile else ""
        source = average if kind == "params" and average in saved else source
        if saved.get(source) != leaf.shape:
            raise ConfigError(
                f"config.stages.{stage.name}: {place} does not fit the config beside it: {source} "
                f"is {saved.get(source, 'absent')}, expected {leaf.shape}. Give the workdir of an "
                "unchanged run, made by this version of genjax."
            )
        paths[name] = source
        wanted[source] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)
    with _whole(stage):
        found = checkpoints.read(step, wanted)
    return Arrays(
        **jax.tree_util.tree_map_with_path(lambda path, _: found[paths[path_name(path)]], abstract)
    )


def _rules(stage: Stage) -> list[tuple[str, Tactic]]:
    """The sharding rules of a stage's leaves, as they are called in the state of the run.

    Each leaf is matched under its own name, since a rule may begin with `^`, as those of the
    stage's own stages do.
    """
    own = (*STATE_RULES, *stage.method.rules)
    numbered = [(pattern, number) for number, (pattern, _) in enumerate(own)]
    leaves: dict[int, list[str]] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(_abstract(stage)._asdict()):
        name = path_name(path)
        number = first_match(numbered, name.replace(f"/{stage.name}/", "/", 1), "sharding")
        leaves.setdefault(number, []).append(re.escape(name))
    return [(f"^({'|'.join(names)})$", own[number][1]) for number, names in leaves.items()]


def join(
    method: Method,
    config: ConfigDict,
    stages: Mapping[str, Stage],
    data: DataSpec | None = None,
) -> Method:
    """`method` beside the frozen networks of its stages, under their names.

    If the data are a stage's codes, samples are decoded, and where log p(x | code) and the codes'
    `nll` are known, evaluations have the ELBO in nats and `bits_per_dim` of both together. The
    stages' networks are zero at first: `pretrained`, or a checkpoint, brings the trained ones.

    Raises:
      ConfigError: a network of the method is called like a stage.
    """
    coded = codes_of(config, stages)
    shapes = [_abstract(stage) for stage in stages.values()]

    def init(key: jax.Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = method.init(key, batch)
        for frozen in jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes):
            if taken := params.keys() & frozen.params.keys():
                raise ConfigError(
                    f"config.stages: {sorted(taken)} is the name of a network of the method too: "
                    "give the stage another one."
                )
            params, mutable = {**frozen.params, **params}, {**frozen.mutable, **mutable}
        return params, mutable

    rules = [rule for stage in stages.values() for rule in _rules(stage)]
    joined = method._replace(init=init, rules=(*rules, *method.rules))
    if coded is None:
        return joined
    field = (data or coded.spec).generated

    def sample(params: Tree, mutable: Tree, key: jax.Array, num: int, condition, **options):
        codes = method.sample(params, mutable, key, num, condition, **options)
        return coded.decode(params, mutable, codes)

    def evaluate(params: Tree, mutable: Tree, batch: Batch, key: jax.Array) -> dict:
        found = method.evaluate(params, mutable, batch, key)
        if "log_likelihood" in batch and "nll" in found:
            elbo = batch["log_likelihood"] - found["nll"]
            bits = -elbo / (math.log(2) * math.prod(field.shape))
            found |= {"elbo": elbo, "bits_per_dim": bits}
        return found

    sample.__signature__ = inspect.signature(method.sample)
    return joined._replace(sample=sample, evaluate=evaluate, output=field)
