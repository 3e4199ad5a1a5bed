"""Stages: trained runs whose networks are frozen parts of another run.

`config.stages` names them: a run's folder, or a config that is trained first under the workdir. The
state of the run has each stage's networks as `params["<stage>"]["<network>"]`, so that checkpoints
are complete; `stages/<stage>/config.json` in its workdir says how to build them again. Stages may
have stages.

With `config.dataset.codes` the codes of a stage are the data: they are computed once and cached,
and samples are decoded. For any other use of a stage (an embedding, codes of random crops), the
method calls it in `prepare`, its losses and its sampler.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from genjax import files
from genjax import method as methods
from genjax.adapters import BASE, GUIDE
from genjax.config import ConfigError, nearest, require
from genjax.durations import steps
from genjax.method import Batch, DataSpec, Method, Stage
from genjax.parallel.rules import STATE_RULES, Tactic, first_match, path_name
from genjax.training import ema, follow, game, older, workdir
from genjax.training.checkpoint import Checkpoints, Damaged, shapes_of
from genjax.training.digests import digest, digests

Tree = Any
logger = logging.getLogger("genjax")

FOLDER = "stages"  # in the workdir of the run that has them


class Arrays(NamedTuple):
    """The networks of stages as in the run's state: stage -> network -> arrays."""

    params: dict[str, dict[str, Tree]]
    mutable: dict[str, dict[str, Tree]]


def is_config(given: str) -> bool:
    """Whether a stage is given as a config rather than a run's folder."""
    return given.partition(":")[0].endswith(".py")


def place_of(name: str, config: ConfigDict, folder: epath.Path) -> epath.Path:
    """Returns the folder that says how a stage of the run in `folder` is built.

    This is the stage's folder under the workdir if the run has begun or the stage is trained there;
    else the run's folder that the config names.
    """
    source, own_folder = config.stages[name], older.stage_folder(folder, folder / FOLDER / name)
    return (
        own_folder
        if is_config(source) or workdir.has_checkpoint(folder)
        else _run_folder(name, source)
    )


def _run_folder(name: str, path: str) -> epath.Path:
    """Returns the run's folder that is given as a stage."""
    return files.place(path, f"--config.stages.{name}")


def find(config: ConfigDict, folder: epath.Path) -> dict[str, Stage]:
    """Returns the stages of the run in `folder`, or of a run about to begin there.

    Raises:
      ConfigError: a folder that the config names has no run.
    """
    return {name: _find(name, config, folder) for name in config.stages}


def alone(name: str, path: str, key: str, mesh: Mesh) -> tuple[Stage, Callable[[], Arrays]]:
    """Returns a trained run that is no part of another, such as a judge's.

    With it comes a function that reads its networks: the parameters that its evaluations use, whole
    on every device. It raises ConfigError if there is no checkpoint, or a damaged one.

    Args:
      name: the name of the stage, under which its networks are.
      path: the run's folder.
      key: the key of the config that names the folder, for errors.
      mesh: the devices.

    Raises:
      ConfigError: there is no run.
    """
    require(bool(path), key, path, "the workdir of a trained run")
    folder = files.place(path, f"--{key}")
    if workdir.read_config(folder) is None:
        raise ConfigError(
            f"{key}={path!r}: no run there ({folder} has no config.json). Train one first and give "
            "its --workdir."
        )
    stage = _described(name, folder)
    return stage, lambda: _read(stage, Checkpoints(folder), mesh, key=key)


def _find(name: str, config: ConfigDict, folder: epath.Path) -> Stage:
    source, folder_of_stage = config.stages[name], place_of(name, config, folder)
    require(bool(re.fullmatch(r"\w+", name)), "a name in config.stages", name, "a word")
    own = [prefix.rstrip("/") for prefix in (BASE, GUIDE)]
    expected = f"another name than {' and '.join(own)}, which adapters and guides have in the state"
    require(name not in own, "a name in config.stages", name, expected)
    if not source:
        raise ConfigError(
            f"config.stages.{name} is empty: give the workdir of a trained run, or a config that "
            "is trained first, such as configs/vqvae.py."
        )
    if workdir.read_config(folder_of_stage) is None:
        raise ConfigError(
            f"config.stages.{name}={source!r}: no run there ({folder_of_stage} has no "
            "config.json). Train one first and give its --workdir, or give a config."
        )
    return _described(name, folder_of_stage)


def _described(name: str, folder: epath.Path) -> Stage:
    """Returns the run in `folder` as a stage."""
    stored = workdir.read_config(folder)
    workdir.import_from(workdir.read_source(folder))
    spec = workdir.read_spec(folder)
    method = build(stored, spec, find(stored, folder))
    codec_only = method.codec is not None and method.apply is None
    networks = method.codec.networks if codec_only else tuple(network_shapes(method, spec)[0])
    return Stage(name, stored, spec, method, networks, workdir.read_digest(folder))


def keep(config: ConfigDict, folder: epath.Path) -> None:
    """Writes descriptions of the stages to `folder`, unless a run there has begun."""
    if workdir.has_checkpoint(folder):
        return
    for name, run_or_config in config.stages.items():
        if not is_config(run_or_config):
            workdir.copy_description(_run_folder(name, run_or_config), folder / FOLDER / name)


def build(
    config: ConfigDict, spec: DataSpec, stages: Mapping[str, Stage], data: DataSpec | None = None
) -> Method:
    """Returns the method of a config, joined with its stages.

    Args:
      config: the run's config.
      spec: describes its data: the codes, if `config.dataset.codes` names a stage.
      stages: the config's stages.
      data: describes the data that were encoded; by default the stage's own.
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
    """Returns the stage whose codes are the data of the run; None if there is none.

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
    """Refuses a stage for which a field of the same name and kind means something else.

    Raises:
      ConfigError: its tokenizer, vocabulary or number of classes differs.
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
                    f"and {new} in {spec.name}, so the field means something else. Give a stage "
                    "trained on these data, or set config.dataset as the stage has it."
                )


def read(stages: Mapping[str, Stage], config: ConfigDict, folder: epath.Path, mesh: Mesh) -> Arrays:
    """Reads the networks of all stages: from the run's checkpoint if it has one, else from theirs.

    These are the parameters that their evaluations use: averages, if there are any.

    Raises:
      ConfigError: a stage has no checkpoint, or the run was begun with another stage.
    """
    params, mutable = {}, {}
    for stage in stages.values():
        arrays = _stage_arrays(stage, config, folder, mesh)
        params |= arrays.params
        mutable |= arrays.mutable
    return Arrays(params, mutable)


def _stage_arrays(stage: Stage, config: ConfigDict, folder: epath.Path, mesh: Mesh) -> Arrays:
    run_or_config = config.stages[stage.name]
    source = (
        place_of(stage.name, config, folder)
        if is_config(run_or_config)
        else _run_folder(stage.name, run_or_config)
    )
    if not workdir.has_checkpoint(folder):
        _warn_if_unfinished(stage, source)
        return _read(stage, Checkpoints(source), mesh)
    arrays = _read(stage, Checkpoints(folder), mesh, inside=True)
    stored = workdir.read_config(folder)
    begun = stored.stages.get(stage.name, "") if stored else ""
    if begun != run_or_config:
        now = _digest(_read(stage, Checkpoints(source), mesh))
        if now != _digest(arrays):
            raise ConfigError(
                f"config.stages.{stage.name}={run_or_config!r} is not the stage that the run in "
                f"{folder} was begun with ({begun or 'unknown'}): its outputs mean something else. "
                "Give a new --workdir."
            )
    return arrays


def _warn_if_unfinished(stage: Stage, source: epath.Path) -> None:
    config, examples = stage.config, stage.spec.sizes["train"]
    total = steps(config.duration, batch_size=config.batch_size, examples=examples)
    step = Checkpoints(source).latest()
    if step is not None and step < total:
        logger.warning(
            "config.stages.%s: %s has been trained for %d of its %d steps",
            *(stage.name, source, step, total),
        )


def _digest(arrays: Arrays) -> str:
    return digest(digests(arrays._asdict()))


def network_shapes(method: Method, spec: DataSpec) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """Returns the shapes of a method's networks, including those that follow others."""
    batch = {name: jnp.zeros((1, *f.shape), f.dtype) for name, f in spec.fields.items()}

    def init() -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = method.init(jax.random.key(0), batch)
        return follow.begin(method.follows, params, game.trained(method)), mutable

    return jax.eval_shape(init)


def _abstract(stage: Stage) -> Arrays:
    """Returns the shapes of the networks that are needed, as in the run's state."""
    shapes = network_shapes(stage.method, stage.spec)
    return Arrays(
        *({stage.name: {n: tree[n] for n in stage.networks if n in tree}} for tree in shapes)
    )


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Adds the key that names a stage to the error of a damaged checkpoint."""
    try:
        yield
    except Damaged as error:
        raise Damaged(f"{key}: {error}") from error


def _read(
    stage: Stage, checkpoints: Checkpoints, mesh: Mesh, inside: bool = False, key: str = ""
) -> Arrays:
    """Reads a stage's networks from its own checkpoint, or from one that it is `inside`."""
    step, key = checkpoints.latest(), key or f"config.stages.{stage.name}"
    if step is None:
        raise ConfigError(
            f"{key}: {checkpoints.folder} has no checkpoint. Train the run to its end first."
        )
    checkpoint = checkpoints.folder / str(step)
    with _naming(key):
        arrays = checkpoints.arrays(step)
    saved = shapes_of(arrays)
    everywhere = NamedSharding(mesh, PartitionSpec())
    profile = "" if inside else next(iter(ema.profiles(stage.config)), "")
    abstract = _abstract(stage)._asdict()
    paths, requested = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        name = path_name(path)
        kind, _, rest = name.partition("/")
        network_path = rest.removeprefix(f"{stage.name}/")
        source = name if inside and name in saved else f"{kind}/{network_path}"
        average = f"ema/{profile}/{network_path}" if profile else ""
        source = average if kind == "params" and average in saved else source
        if not older.fits(source, saved.get(source), leaf.shape):
            raise ConfigError(
                f"{key}: {checkpoint} does not fit the config next to it: "
                f"{source} is {saved.get(source, 'absent')}, expected {leaf.shape}. Give the "
                "workdir of an unchanged run, made by this version of genjax."
            )
        paths[name] = source
        requested[source] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)
    with _naming(key):
        found = checkpoints.read(step, requested, arrays)
    return Arrays(
        **jax.tree_util.tree_map_with_path(lambda path, _: found[paths[path_name(path)]], abstract)
    )


def _rules(stage: Stage) -> list[tuple[str, Tactic]]:
    """Returns the sharding rules of a stage's leaves under their names in the run's state.

    Each leaf is matched under its name in the stage, because a rule may begin with `^`, as the
    rules of the stage's own stages do.
    """
    stage_rules = (*STATE_RULES, *stage.method.rules)
    numbered = [(pattern, number) for number, (pattern, _) in enumerate(stage_rules)]
    leaves: dict[int, list[str]] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(_abstract(stage)._asdict()):
        name = path_name(path)
        number = first_match(numbered, name.replace(f"/{stage.name}/", "/", 1), "sharding")
        leaves.setdefault(number, []).append(re.escape(name))
    return [(f"^({'|'.join(names)})$", stage_rules[number][1]) for number, names in leaves.items()]


def join(
    method: Method,
    config: ConfigDict,
    stages: Mapping[str, Stage],
    data: DataSpec | None = None,
) -> Method:
    """Returns `method` with the frozen networks of its stages, under the stages' names.

    If the data are a stage's codes, samples are decoded, and a condition of kind "code" is given as
    what it encodes. If log p(x | code) and the codes' `nll` are known too, evaluations have the
    ELBO in nats and `bits_per_dim` of both together. The stages' networks are zero at first:
    `pretrained` or a checkpoint gives the trained ones.

    Raises:
      ConfigError: a network of the method has the name of a stage.
    """
    code_stage = codes_of(config, stages)
    shapes = [_abstract(stage) for stage in stages.values()]

    def init(key: jax.Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = method.init(key, batch)
        for frozen in jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes):
            if taken := params.keys() & frozen.params.keys():
                raise ConfigError(
                    f"config.stages: {sorted(taken)} is the name of a network of the method too: "
                    "give the stage another name."
                )
            params, mutable = {**frozen.params, **params}, {**frozen.mutable, **mutable}
        return params, mutable

    rules = [rule for stage in stages.values() for rule in _rules(stage)]
    joined = method._replace(init=init, rules=(*rules, *method.rules))
    if code_stage is None:
        return joined
    field, target = (data or code_stage.spec).generated, code_stage.spec.target
    encoded = {name: f for name, f in method.conditions.items() if f.kind == "code"}

    def sample(params: Tree, mutable: Tree, key: jax.Array, num: int, condition, **options):
        known = dict(condition)
        for name in known.keys() & encoded.keys():
            known[name] = code_stage.encode(params, mutable, {target: known[name]})
        codes = method.sample(params, mutable, key, num, known, **options)
        return code_stage.decode(params, mutable, codes)

    def evaluate(params: Tree, mutable: Tree, batch: Batch, key: jax.Array) -> dict:
        metrics = method.evaluate(params, mutable, batch, key)
        if "log_likelihood" in batch and "nll" in metrics:
            elbo = batch["log_likelihood"] - metrics["nll"]
            bits = -elbo / (math.log(2) * math.prod(field.shape))
            metrics |= {"elbo": elbo, "bits_per_dim": bits}
        return metrics

    sample.__signature__ = inspect.signature(method.sample)
    about = ("field", "of_start")  # facts of a condition itself, not of the codes
    given = {
        name: field._replace(facts=field.facts | {n: f.facts[n] for n in about if n in f.facts})
        for name, f in encoded.items()
    }
    return joined._replace(
        sample=sample, evaluate=evaluate, output=field, conditions={**method.conditions, **given}
    )
