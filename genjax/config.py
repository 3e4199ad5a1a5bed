"""Configs: the base of every experiment, presets, overrides, checks and comparison.

An experiment is a Python file with `get_config() -> ConfigDict` and, optionally,
`PRESETS = {name: {"dotted.key": value}}` and `resolve(config) -> config`, which fills in derived
values. `base()` makes the keys that every experiment shares; a family adds its own sections. An
unknown key is an error that names the nearest keys.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple, TypeVar

from ml_collections import ConfigDict

from genjax.checks import (
    ConfigError,
    Positive,
    Range,
    Size,
    Weight,
    by_likeness,
    check_options,
    check_value,
    literal,
    nearest,
    one_of,
    require,
    shown,
)
from genjax.durations import parse_duration
from genjax.files import at_home

T = TypeVar("T", bound=tuple)
Built = TypeVar("Built")
# (config, overrides) -> config with added sections, such as the judges'
Complete = Callable[[ConfigDict, Mapping[str, Any]], ConfigDict]

# Keys that a resumed run may change: its length, its devices, how often it logs, and so on.
FREE_ON_RESUME = (
    r"duration|cpu_library|early_stop\..*|log\..*|mesh\..*|.*\.every"
    r"|checkpoint\.(minutes|keep|best|mode|digests)|dataset\.threads|profile|ema\.snapshots"
)


# Keys of `optimizer` that `optimizer.networks.<name>` may set for one network.
PER_NETWORK = (
    *("name", "learning_rate", "b1", "b2", "eps", "momentum"),
    *("weight_decay", "clip_norm", "weight_clip"),
)


def base() -> ConfigDict:
    """The keys that every experiment shares, with their defaults.

    Durations are strings with a unit: `"2000_steps"`, `"5_epochs"`, `"60000_examples"`, or
    `"10_percent"` of the run; an empty string means never. The config is locked, so that a mistyped
    key in a config file is an error; a family adds its sections under `unlocked()`.
    """
    return ConfigDict(
        {
            "method": "",  # a module of genjax.methods, or one of your own
            # name -> a run's folder, or a config to train first; used as frozen parts of this run
            "stages": {},
            "seed": 0,
            "batch_size": 64,  # examples per update, over all devices
            "accumulation": 1,  # microbatches per update
            "steps_per_dispatch": 1,  # steps per call of the compiled program
            "duration": "10_epochs",
            # how long to trace the devices after warm-up; --mode=eval and sample trace everything
            "profile": "",
            # convolutions and matrix products on one CPU: "onednn" if available, or "xla"
            "cpu_library": "onednn",
            # (regex on a kernel's path, rank): train low-rank updates of the kernels that match,
            # first match wins, 0 is none; what is left of their networks is frozen
            "adapters": (),
            "lora": {  # of these updates
                "kind": "lora",  # "dora"
                "alpha": 16.0,  # an update is multiplied by alpha / rank
                # add updates to kernels before each training step, or apply them beside kernels
                "merged": False,
                "weights": "",  # folder of adapters in peft's format; new runs start from them
            },
            # of matrix products: "float32", "bfloat16", or "auto": bfloat16 if the devices of the
            # run's start support it; parameters, sums and statistics stay float32
            "precision": "float32",
            "dataset": {
                # catalogue name, TFDS name, "npz", "folder", "text", "pairs", "rolls", or a module
                "name": "",
                "path": "",  # of the files
                "fields": (),  # (name, kind) of further arrays of "npz", or the texts of "pairs"
                "target": "",  # the field to generate; "": the data's own
                # (name, how, argument) of fields computed from the image: see data/derived.py
                "derived": (),
                "mixture": (),  # of "mixture": (name, path, weight) of each data set
                "codes": "",  # the stage whose codes of the target are generated instead of it
                "validation": "",  # taken from train if the data set has no such split
                "test": "",
                "image_size": (),  # side or (height, width): resize, centre crop; () keeps it
                "channels": 0,  # 1 or 3 converts; 0 keeps them
                "flip": False,
                "crop_padding": 0,
                "dequantize": False,
                "on_corrupt": "error",  # or "skip": skip and count
                "max_pixels": 178_956_970,  # of an image file; larger ones are refused
                "threads": 2,
                "text": {  # for texts; piano rolls use `length`
                    # "bytes", "characters", "bpe", "wordpiece", "unigram", "gpt2", or a path
                    "tokenizer": "bytes",
                    "vocabulary_size": 0,  # of bpe, wordpiece, unigram, trained on the train split
                    "length": 256,  # T: positions per input
                    "source_length": 0,  # of the source of pairs; 0: as length
                    "cut": False,  # cut the texts of pairs that are longer; else they are an error
                    "documents": "stream",  # "packed", "padded"
                    "field": "text",  # of JSON Lines
                    "prompt_field": "",  # precedes the text; excluded from the loss
                    "template": "{}",  # of method lm on pairs: the prompt, with the source in {}
                },
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-3,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "momentum": 0.9,  # sgd only
                "weight_decay": 0.0,
                # (regex on the parameter's path, factor); first match wins, all must match
                "weight_decay_rules": ((r"(kernel|embedding)$", 1.0), (r".*", 0.0)),
                # also (regex, (first, last)): from the first block to the last of a scanned stack
                "learning_rate_rules": ((r".*", 1.0),),
                "freeze": (),  # regexes; a matching parameter is never updated
                "clip_norm": 1.0,  # global norm per network; 0 is off
                "weight_clip": 0.0,  # parameters stay within +- this (WGAN); 0 is off
                "max_skipped": 10,  # consecutive non-finite updates before the run stops
                # network -> keys of this section that differ for it
                "networks": {},
            },
            "schedule": {  # of the learning rate
                "name": "constant",  # "cosine", "linear", "inverse_sqrt", "ladder"
                "warmup": "",
                "final": 0.0,  # cosine, linear, ladder: fraction of the learning rate at the end
            },
            "ema": {
                "decay": (0.999,),  # one average per value; evaluations use the first
                # one average per relative standard deviation, below 0.288 of the run, with
                # weights t^gamma (Karras et al. 2024)
                "power": (),
                "warmup": True,  # of the averages in `decay`
                "networks": (),  # networks to average; empty: all trained ones
                # how often to keep the averages of `power` (at least two) to derive other lengths
                "snapshots": "",
            },
            # devices along each axis; -1: all remaining devices
            "mesh": {"data": -1, "fsdp": 1, "sequence": 1, "tensor": 1},
            "checkpoint": {
                "every": "",
                "minutes": 5.0,  # of wall time; 0 is off
                "keep": 2,
                "digests": True,  # of every array, stored with it and checked on reading
                "best": "",  # also keep the best by this eval metric; "": early_stop's
                "mode": "min",
                # a workdir, or a name in `stages`; new runs start from its newest checkpoint
                "init_from": "",
                "init_map": ((r"^(params|mutable)/(.*)$", r"\1/\2"),),
            },
            "evals": {
                "every": "10_percent",
                "start": False,  # also before the first step
                "split": "validation",  # in training; --mode=eval defaults to "test"
                "batch_size": 128,
                "limit": 0,  # examples per evaluation; 0 is all
                "samples": 64,  # in the grid
                # judges of the samples: "fidelity", "diversity", "overlap", "similarity",
                # "text_fidelity", "ngrams", "captions", or your own modules; their settings are in
                # the section of evals with their name
                "judges": (),
            },
            "early_stop": {"metric": "", "mode": "min", "patience": 5, "min_delta": 0.0},
            "log": {"every": "50_steps", "wandb": False, "wandb_project": "genjax"},
        }
    ).lock()


# Ranges of the keys of `base`; a family declares its ranges with its options.
Count = Annotated[int, Range(0, 2**31 - 1)]
Momentum = Annotated[float, Range(0, 1, below=True)]
RANGES: dict[str, Any] = {
    "seed": Annotated[int, Range(0, 2**63 - 1)],
    "batch_size": Size,
    "accumulation": Size,
    "steps_per_dispatch": Annotated[int, Range(1, 10_000)],
    "dataset.channels": Annotated[int, Range(0, 3)],
    "dataset.crop_padding": Annotated[int, Range(0, 2**14)],
    "dataset.image_size": tuple[Annotated[int, Range(1, 2**14)], ...],
    "dataset.max_pixels": Annotated[int, Range(1, 2**40)],
    "dataset.threads": Annotated[int, Range(0, 256)],
    "dataset.text.length": Annotated[int, Range(1, 2**20)],
    "dataset.text.source_length": Annotated[int, Range(0, 2**20)],
    "dataset.text.vocabulary_size": Annotated[int, Range(0, 2**22)],
    "lora.alpha": Positive,
    "optimizer.learning_rate": Weight,
    "optimizer.b1": Momentum,
    "optimizer.b2": Momentum,
    "optimizer.eps": Positive,
    "optimizer.momentum": Momentum,
    "optimizer.weight_decay": Weight,
    "optimizer.clip_norm": Weight,
    "optimizer.weight_clip": Weight,
    "optimizer.max_skipped": Annotated[int, Range(1, 2**31 - 1)],
    "schedule.final": Weight,
    "ema.decay": tuple[Annotated[float, Range(0, 1, above=True, below=True)], ...],
    "ema.power": tuple[Annotated[float, Range(0, 12**-0.5, above=True, below=True)], ...],
    "mesh.data": Annotated[int, Range(1, 2**20, off=-1)],
    "mesh.fsdp": Annotated[int, Range(1, 2**20, off=-1)],
    "mesh.sequence": Annotated[int, Range(1, 2**20, off=-1)],
    "mesh.tensor": Annotated[int, Range(1, 2**20, off=-1)],
    "checkpoint.minutes": Annotated[float, Range(0, 1e6)],
    "checkpoint.keep": Annotated[int, Range(1, 100_000)],
    "evals.batch_size": Size,
    "evals.limit": Count,
    "evals.samples": Annotated[int, Range(0, 10_000)],
    "evals.judges": tuple[str, ...],
    "ema.networks": tuple[str, ...],
    "optimizer.freeze": tuple[str, ...],
    "early_stop.patience": Annotated[int, Range(1, 2**31 - 1)],
    "early_stop.min_delta": Weight,
}
# Keys with rules (regex, value) -> the type of the value.
RULES: dict[str, Any] = {
    "adapters": Annotated[int, Range(0, 2**14)],
    "optimizer.weight_decay_rules": Weight,
    "optimizer.learning_rate_rules": Weight,
    "checkpoint.init_map": str,
}


def read_options(section: ConfigDict, name: str, options: type[T]) -> T:
    """Converts a family's section to its NamedTuple of options; absent keys get defaults.

    Lists become tuples.

    Raises:
      ConfigError: a key is not an option, or a value does not fit its annotation.
    """
    values = section.to_dict()
    for key in values:
        one_of(f"key of config.{name}", key, options._fields)
    check_options(options, values, name)
    return options(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def construct(cls: type[Built], section: ConfigDict, name: str, **given: Any) -> Built:
    """Makes `cls(**given, **section)`: the section holds the remaining arguments of `cls`.

    Raises:
      ConfigError: a key of config.`name` is not an argument or is in `given`, or a value does not
        fit its annotation.
    """
    known = [key for key in signature(cls.__init__).parameters if key not in {"self", *given}]
    for key in section:
        one_of(f"key of config.{name}", key, known)
    check_options(cls.__init__, section.to_dict(), name)
    return cls(**given, **section.to_dict())


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a config to dotted key -> value, in order."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _convert(key: str, text: Any, old: Any) -> Any:
    """Converts `text` to the type of `old`."""

    def fail(expected: str) -> ConfigError:
        return ConfigError(f"config.{key}={shown(text)}: expected {expected}, as in {old!r}.")

    if old is None or (isinstance(text, type(old)) and not isinstance(text, str)):
        return text
    if isinstance(old, str):
        if not isinstance(text, str):
            raise fail("a string")
        return at_home(text, f"config.{key}")
    value = text
    if isinstance(text, str):
        try:
            value = literal(text)
        except ValueError:
            value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(old, bool):
        if value not in (True, False):
            raise fail("true or false")
        return bool(value)
    if isinstance(old, int | float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise fail("a whole number" if isinstance(old, int) else "a number")
        if isinstance(old, int):
            if isinstance(value, float) and not value.is_integer():  # nor are inf and nan
                raise fail("a whole number")
            return int(value)
        try:
            value = float(value)
        except OverflowError:
            raise fail("a number that a float can hold") from None
        if math.isnan(value):
            raise fail("a number")
        return value
    if value == "":
        return ()
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    kinds = {type(v) for v in old}
    if len(kinds) == 1 and not kinds & {tuple, list}:
        return tuple(_convert(key, v, old[0]) for v in values)
    if kinds and any(isinstance(v, str) for v in values):
        raise fail("a tuple of tuples")
    return values


def override(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of `config` with dotted keys replaced; strings are parsed to the old type.

    `optimizer.networks.<network>.<key>` may be absent; its type is that of `optimizer.<key>`.
    `stages.<name>` may be absent too.

    Raises:
      ConfigError: a key does not exist, or a value has the wrong type.
    """
    config = config.copy_and_resolve_references()
    flat = flatten(config)
    for key, value in overrides.items():
        match = re.fullmatch(r"optimizer\.networks\.(\w+)\.(\w+)", key)
        if match and match[2] in PER_NETWORK and key not in flat:
            with config.unlocked():
                network_keys = config.optimizer.networks.get(match[1], {})
                with_default = {**network_keys, match[2]: config.optimizer[match[2]]}
                config.optimizer.networks[match[1]] = ConfigDict(with_default)
            flat = flatten(config)
        stage = re.fullmatch(r"stages\.(\w+)", key)
        if stage and isinstance(value, str) and key not in flat:
            with config.unlocked():
                config.stages[stage[1]] = ""
            flat = flatten(config)
        if key not in flat:
            if any(k.startswith(key + ".") for k in flat):
                keys = ", ".join(k for k in flat if k.startswith(key + "."))
                raise ConfigError(f"config.{key} is a section. Its keys: {keys}.")
            raise ConfigError(f"config.{key}: no such key. Nearest: {nearest(key, flat)}.")
        *path, leaf = key.split(".")
        section = config
        for name in path:
            section = section[name]
        section[leaf] = _convert(key, value, flat[key])
    return config


def read_module(file: str | Path) -> ModuleType:
    """Imports a config file, so that another can start from it: `read_module(...).get_config()`.

    Relative paths start at the working directory; use `Path(__file__).with_name` for a file next
    to the calling one.
    """
    file = Path(file)
    spec = importlib.util.spec_from_file_location(f"genjax_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shipped() -> Path:
    """The folder of genjax's own configs, in a checkout or an installed package."""
    inside = Path(__file__).with_name("configs")
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def located(location: str) -> str:
    """Converts the name of a config of genjax, such as `ddpm:tiny`, to `FILE.py[:preset]`.

    Any other location is returned unchanged.

    Raises:
      ConfigError: genjax has no such config.
    """
    name, mark, preset = location.partition(":")
    if not re.fullmatch(r"\w+", name):
        return location
    names = sorted(path.stem for path in shipped().glob("*.py"))
    if name not in names:
        raise ConfigError(
            f"--config={location}: genjax has no config {name!r}. Nearest: {nearest(name, names)}. "
            "To use your own config, give its file, such as my_config.py."
        )
    return f"{shipped() / name}.py{mark}{preset}"


class Experiment(NamedTuple):
    """An imported config file and its chosen preset."""

    location: str
    module: ModuleType
    preset: str
    values: Mapping[str, Any]  # of the preset: dotted key -> value


def read_experiment(location: str) -> Experiment:
    """Reads `path/to/file.py[:preset]`.

    Raises:
      ConfigError: there is no such file or preset.
    """
    path, _, preset = location.partition(":")
    file = Path(path)
    if not file.is_file():
        near = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        hint = f" Nearest: {nearest(path, near)}." if near else ""
        raise ConfigError(f"--config={location}: no file {path!r}.{hint}")
    module = read_module(file)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config={location}: {path} has no function get_config().")
    presets = {"": {}, **getattr(module, "PRESETS", {})}
    if preset not in presets:
        names = [name for name in presets if name]
        listed = ", ".join(by_likeness(preset, names)) or "none"
        raise ConfigError(f"--config={location}: no preset {preset!r}. Presets: {listed}.")
    return Experiment(location, module, preset, presets[preset])


def given(
    experiment: Experiment,
    overrides: Mapping[str, Any] | None = None,
    complete: Complete | None = None,
) -> ConfigDict:
    """The config from file, preset and `overrides`, before `resolve` fills in derived values.

    `complete(config, overrides)` adds sections, such as those of the judges, before the overrides.

    Raises:
      ConfigError: a key is unknown, or a value has the wrong type.
    """
    try:
        config = experiment.module.get_config()
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"--config={experiment.location}: {error}") from error
    homes = {k: v for k, v in flatten(config).items() if isinstance(v, str) and v[:1] == "~"}
    config = override(config, homes | dict(experiment.values))
    if complete:
        config = complete(config, overrides or {})
    return override(config, overrides or {})


def resolve(experiment: Experiment, config: ConfigDict) -> ConfigDict:
    """Returns a copy of `config`, completed by the experiment's own `resolve` and checked.

    Raises:
      ConfigError: a value is out of its range.
    """
    config = config.copy_and_resolve_references()
    if hasattr(experiment.module, "resolve"):
        config = experiment.module.resolve(config)
    validate(config)
    return config


def load(
    location: str,
    overrides: Mapping[str, Any] | None = None,
    complete: Complete | None = None,
) -> ConfigDict:
    """Loads `path/to/file.py[:preset]`, applies the preset, then `overrides`, and checks it.

    Raises:
      ConfigError: there is no such file, preset or key, or a value is out of its range.
    """
    experiment = read_experiment(location)
    return resolve(experiment, given(experiment, overrides, complete))


def validate(config: ConfigDict) -> None:
    """Raises ConfigError if a shared key is out of its range."""

    flat = flatten(config)

    def check(key: str, ok: bool, expected: str) -> None:
        require(ok, f"config.{key}", flat[key], expected)

    check("method", bool(config.method), "the name of a method, such as 'diffusion'")
    for key, value in flat.items():
        shared = re.sub(r"^optimizer\.networks\.\w+\.", "optimizer.", key)
        if shared in RANGES:
            check_value(f"config.{key}", value, RANGES[shared])
    for key, kind in RULES.items():
        for entry in flat[key]:
            pair = isinstance(entry, tuple | list) and len(entry) == 2
            expected = f"pairs of a regex and {'a replacement' if kind is str else 'a number'}"
            check(key, pair, expected)
            several = key == "optimizer.learning_rate_rules" and isinstance(entry[1], tuple | list)
            check(key, not several or len(entry[1]) == 2, "one factor for a regex, or two")
            expected_type = tuple[Positive, ...] if several else kind
            check_value(f"config.{key}, rule {entry[0]!r}", entry[1], expected_type)
            check_regex(f"config.{key}", *(entry if kind is str else entry[:1]))
    for regex in config.optimizer.freeze:
        check_regex("config.optimizer.freeze", regex)
    check(
        "batch_size",
        config.batch_size % config.accumulation == 0,
        f"a multiple of config.accumulation={config.accumulation}",
    )
    for network, changed in config.optimizer.networks.items():
        for key in changed:
            one_of(f"key of config.optimizer.networks.{network}", key, PER_NETWORK)
    check("dataset.name", len(config.dataset.name) < 200, "a name of fewer than 200 characters")
    check("dataset.text.tokenizer", bool(config.dataset.text.tokenizer), "a name or a path")
    documents = config.dataset.text.documents
    one_of("config.dataset.text.documents", documents, ("stream", "packed", "padded"))
    check("lora.weights", bool(config.adapters) or not config.lora.weights, "'' without adapters")
    one_of("config.lora.kind", config.lora.kind, ("lora", "dora"))
    one_of("config.precision", config.precision, ("float32", "bfloat16", "auto"))
    one_of("config.cpu_library", config.cpu_library, ("onednn", "xla"))
    one_of("config.checkpoint.mode", config.checkpoint.mode, ("min", "max"))
    one_of("config.early_stop.mode", config.early_stop.mode, ("min", "max"))
    check(
        "ema.snapshots",
        not config.ema.snapshots or len(set(config.ema.power)) > 1,
        "'', or at least two averages in config.ema.power, such as (0.05, 0.1), from which others "
        "are derived",
    )
    check("duration", bool(config.duration), "a duration such as '10_epochs'")
    stretches = ("duration", "schedule.warmup", "profile", "ema.snapshots")
    for key, value in flat.items():
        if value and (key in stretches or key.endswith(".every")):
            amount, unit = parse_duration(value, f"config.{key}")
            if key == "duration" and unit == "percent":
                raise ConfigError(f"config.duration={value!r}: a run is not a share of itself.")
            zero_allowed = key == "schedule.warmup" or (key == "duration" and config.get("weights"))
            check(key, amount > 0 or zero_allowed, "a positive duration")


def check_regex(name: str, regex: Any, replacement: str = "") -> None:
    """Raises ConfigError unless `regex` is valid and has the groups that `replacement` uses."""
    require(isinstance(regex, str), name, regex, "a regular expression")
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # about sets whose meaning may change in later Pythons
            re.compile(regex).sub(replacement, "")
    except (re.error, IndexError, OverflowError, RecursionError) as error:
        rule = regex if not replacement else f"{regex} -> {replacement}"
        raise ConfigError(
            f"{name}: {shown(rule)} is not a regular expression: {error}. To match characters "
            "such as ( [ * + ? literally, escape them with a backslash."
        ) from error


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON data."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(data: Mapping[str, Any]) -> ConfigDict:
    """The inverse of `to_json`; lists become tuples, as in configs."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: restore(v) for k, v in value.items()}
        return tuple(map(restore, value)) if isinstance(value, list) else value

    return ConfigDict(restore(dict(data)))


def filled(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """Fills in missing keys with defaults of `base()`; returns the config and these keys, sorted.

    Raises:
      ValueError: it has no method, so it is not a config.
    """
    if "method" not in config:
        raise ValueError("its config names no method")
    present = flatten(config)
    lacking = {k: v for k, v in sorted(flatten(base()).items()) if k not in present}
    values = config.to_dict()
    for key, value in lacking.items():
        *path, leaf = key.split(".")
        section = values
        for name in path:
            section = section.setdefault(name, {})
        section[leaf] = value
    return ConfigDict(values), list(lacking)


def differences(
    stored: ConfigDict, given: ConfigDict, defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """Lists, as `key: stored -> given`, changed keys that a resumed run may not change.

    Args:
      stored: the config that the run was started with.
      given: the config to resume with.
      defaults: dotted key -> default of a family's key, used if the key is absent. The defaults of
        `base()` are included already.
    """
    missing = "(absent)"
    all_defaults = _plain(base()) | _plain(ConfigDict(defaults or {}))
    old, new = _plain(stored), _plain(given)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, now = (flat.get(key, all_defaults.get(key, missing)) for flat in (old, new))
        if before != now and not re.fullmatch(FREE_ON_RESUME, key):
            lines.append(f"{key}: {old.get(key, missing)!r} -> {new.get(key, missing)!r}")
    return lines


def _plain(config: ConfigDict) -> dict[str, Any]:
    """Dotted key -> value, as read back from a file."""
    return flatten(from_json(to_json(config)))
