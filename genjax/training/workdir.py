"""The folder of a run: its lock, and the config it was started with."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import tokenizers
from genjax.files import is_local, parse_json, remove_partial, write_atomic
from genjax.method import DataSpec, Field, defaults
from genjax.nn.precision import with_precision
from genjax.training import lease, older

logger = logging.getLogger("genjax")

# Files that a start writes before the first step.
START = r"lock|log\.txt|config\.json|tokenizer.*\.json|metrics\.jsonl|tensorboard|checkpoints|ema"


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[Callable[[], None]]:
    """Makes `workdir` if needed, and holds its lock, which names this process.

    If a run has several processes, the first takes the lock for all. Files that killed processes
    left half written are removed. So is the folder if it is new and a ConfigError is raised before
    the run begins.

    Yields:
      A function to call when the run begins: from then on everything in the folder is kept, such
      as the log of a run that fails at its first step.

    Raises:
      ConfigError: another process holds the lock; the message names its pid.
    """
    new, begun = jax.process_index() == 0 and _make(workdir), threading.Event()
    try:
        with lock(workdir, wait=True) as holder:
            if holder:
                advice = "Wait for it, stop it, or give another --workdir."
                raise ConfigError(f"{workdir} is in use by another run ({holder}). {advice}")
            if jax.process_index() == 0:
                remove_partial(workdir)
            try:
                yield begun.set
            except ConfigError:
                if new and not begun.is_set():
                    with contextlib.suppress(OSError):  # the ConfigError is raised instead
                        _forget(workdir)
                raise
    finally:
        if new:
            with contextlib.suppress(OSError):  # it is not empty
                Path(workdir).rmdir()


def _make(workdir: epath.Path) -> bool:
    """Makes a folder if needed; returns whether it is new and on a local disk."""
    existed = workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    return not existed and is_local(workdir)


def _forget(workdir: epath.Path) -> None:
    """Empties the folder of a start that made no step, if nothing else is in it."""
    paths = list(Path(workdir).iterdir())
    begun = [path for path in paths if not re.fullmatch(START, path.name)]
    metrics = Path(workdir) / "metrics.jsonl"
    if begun or has_checkpoint(workdir) or (metrics.exists() and metrics.stat().st_size):
        return
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def lock(workdir: epath.Path, wait: bool = False) -> Iterator[str]:
    """Takes the lock `workdir/lock`: yields "", or the holder if it is taken.

    The system frees the lock if the process dies. In object storage it is an object, which stays if
    the process is killed: with `wait` it is watched, and taken over if its holder does not live
    (`lease`). Only the first process of a run takes it; the others always get "".
    """
    owner = f"pid {os.getpid()} on {socket.gethostname()}"
    if jax.process_index():
        yield ""
        return
    if not is_local(workdir):
        now = time.strftime("%Y-%m-%d %H:%M:%S%z")
        with lease.object_lock(workdir / "lock", f"{owner} since {now}", wait) as holder:
            yield holder
        return
    file, holder = _take(Path(workdir) / "lock")
    with file:
        if holder:
            yield holder
            return
        file.truncate(0)
        file.write(f"{owner}\n".encode())
        try:
            yield ""
        finally:
            file.truncate(0)  # so that nobody reads the name of a past holder


def _take(path: Path) -> tuple[BinaryIO, str]:
    """Opens and locks a file; returns it with "", or with the holder if it is already locked."""
    while True:
        file = open(path, "a+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return file, _holder(file)
            file.close()
            raise
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file, ""
        file.close()  # a start that just failed has removed it


def _holder(file: BinaryIO) -> str:
    """Returns the holder of a lock; if it was just taken, waits for the name in it."""
    for _ in range(20):
        file.seek(0)
        text = file.read(200).decode(errors="replace").strip()
        if text:
            return re.sub(r"[^ -~]+", "?", text.splitlines()[0])
        time.sleep(0.05)
    return "unknown"


# ---- what the data look like ---------------------------------------------------------------------


def tokenizers_of(spec: DataSpec) -> dict[str, str]:
    """Field -> the JSON of its tokenizer, for the fields that are texts."""
    facts = {name: field.facts.get("tokenizer") for name, field in spec.fields.items()}
    return {name: tokenizer.to_json() for name, tokenizer in facts.items() if tokenizer is not None}


def tokenizer_file(spec: DataSpec, field: str) -> str:
    """Returns the name of the file in a workdir with the tokenizer of a field."""
    return "tokenizer.json" if field == spec.target else f"tokenizer_{field}.json"


def spec_to_json(spec: DataSpec) -> dict[str, Any]:
    """Returns a spec as plain data; a tokenizer is given by its file and its sha256."""
    texts, fields = tokenizers_of(spec), {}
    for name, field in spec.fields.items():
        facts = {key: value for key, value in field.facts.items() if key != "tokenizer"}
        if name in texts:
            sha256 = hashlib.sha256(texts[name].encode()).hexdigest()
            facts["tokenizer"] = {"file": tokenizer_file(spec, name), "sha256": sha256}
        dtype = str(np.dtype(field.dtype))
        fields[name] = {"kind": field.kind, "shape": field.shape, "dtype": dtype, "facts": facts}
    content = {"name": spec.name, "fields": fields, "target": spec.target, "sizes": spec.sizes}
    return json.loads(json.dumps(content))


def spec_from_json(content: Mapping[str, Any], workdir: epath.Path) -> DataSpec:
    """The inverse of `spec_to_json`; tokenizers are read from `workdir`.

    Raises:
      ConfigError: a tokenizer is missing or damaged, or is another one.
    """
    fields = {}
    for name, stored in content["fields"].items():
        facts = {k: tuple(v) if isinstance(v, list) else v for k, v in stored["facts"].items()}
        if "tokenizer" in facts:
            facts["tokenizer"] = _read_tokenizer(workdir, **facts["tokenizer"])
        dtype = np.dtype(stored["dtype"])
        fields[name] = Field(stored["kind"], tuple(stored["shape"]), dtype, facts)
    return DataSpec(content["name"], fields, content["target"], content["sizes"])


def _read_tokenizer(workdir: epath.Path, file: str, sha256: str) -> tokenizers.Tokenizer:
    path = workdir / file
    if not path.is_file():
        raise ConfigError(f"{path} is missing: restore the run's tokenizer from a copy.")
    text = path.read_text(encoding="utf-8")
    if hashlib.sha256(text.encode()).hexdigest() != sha256:
        raise ConfigError(
            f"{path} is not the tokenizer that the run was trained with: its tokens mean something "
            "else. Restore the run's own from a copy."
        )
    return tokenizers.from_json(text)


def with_own_tokenizer(dataset: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Returns `config.dataset` with the run's tokenizer if the file that it names is missing."""
    name, own_copy = dataset.text.tokenizer, workdir / "tokenizer.json"
    if name in ("", *tokenizers.NAMES) or Path(name).exists() or not own_copy.exists():
        return dataset
    dataset = dataset.copy_and_resolve_references()
    if not is_local(own_copy):
        raise ConfigError(
            f"config.dataset.text.tokenizer={name!r} does not exist. Copy {own_copy} to a local "
            "file, and give that."
        )
    dataset.text.tokenizer = str(own_copy)
    return dataset


# ---- the config ----------------------------------------------------------------------------------


def read_config(workdir: epath.Path) -> ConfigDict | None:
    """The config that the run in `workdir` was started with; None if there is no run.

    Raises:
      ConfigError: the file is damaged.
    """
    stored = _read(workdir)
    return None if stored is None else stored[0]


def with_own_precision(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Returns `config` with the precision that its run began with, if it says "auto"."""
    stored = read_config(workdir) if config.precision == "auto" else None
    return config if stored is None else with_precision(config, stored.precision)


def read_spec(workdir: epath.Path) -> DataSpec | None:
    """Returns the description of the data of the run in `workdir`; None if there is no run."""
    stored = _read(workdir)
    return None if stored is None else stored[1]


def read_source(workdir: epath.Path) -> Path | None:
    """The folder of the config that the run in `workdir` was started with; None if unknown."""
    path = workdir / "config.json"
    try:
        source = parse_json(path.read_bytes()).get("source") if path.is_file() else None
    except ValueError:  # `read_config` says what is wrong with it
        return None
    return Path(source) if source else None


def import_from(folder: Path | None) -> None:
    """Lets modules in a folder, such as a config's, be imported; None does nothing."""
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))


def read_digest(workdir: epath.Path) -> str:
    """Returns the digest of the data of the run in `workdir`; "" if it was not stored."""
    return parse_json((workdir / "config.json").read_bytes()).get("digest", "")


def read_length(workdir: epath.Path) -> int:
    """Returns the steps of the run in `workdir` when it began; 0 if `config.json` has none."""
    return parse_json((workdir / "config.json").read_bytes()).get("length", 0)


def _read(workdir: epath.Path) -> tuple[ConfigDict, DataSpec] | None:
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        content = older.current(parse_json(path.read_bytes()))
        config, missing_keys = configs.filled(configs.from_json(content["config"]))
        spec = spec_from_json(content["data"], workdir)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged or of another version ({error}). Restore it from a copy, or "
            "delete it and give --config."
        ) from error
    if missing_keys:
        _log_filled(str(path), ", ".join(missing_keys))
    return config, spec


@functools.cache  # a command reads the file more than once
def _log_filled(path: str, keys: str) -> None:
    logger.info("%s is older than the keys %s: they get their defaults", path, keys)


def write_config(
    workdir: epath.Path,
    config: ConfigDict,
    spec: DataSpec,
    command: Sequence[str],
    length: int,
    digest: str = "",
    source: Path | None = None,
    content: Mapping[str, str] | None = None,
) -> None:
    """Writes `config.json`: the config, the description of the data, the command and the time.

    The tokenizers of texts are written next to it. `length` is the number of steps that the run
    began with; `digest` is of the data, for runs that become a stage of others; `source` is the
    folder of the config, which may have the user's own modules; `content` has a digest of each
    split, which is compared when the run is resumed.
    """
    for name, text in tokenizers_of(spec).items():
        write_atomic(workdir / tokenizer_file(spec, name), text.encode())
    content = {
        "config": configs.to_json(config),
        "data": spec_to_json(spec),
        "length": length,
        "digest": digest,
        "content": dict(content or {}),
        "source": str(source or read_source(workdir) or ""),
        "command": list(command),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_atomic(workdir / "config.json", (json.dumps(content, indent=2) + "\n").encode())


def copy_description(source: epath.Path, target: epath.Path) -> None:
    """Copies the description of the run in `source`: its config, tokenizers and stages.

    Raises:
      ConfigError: there is no run in `source`.
    """
    if not (source / "config.json").is_file():
        raise ConfigError(f"{source} holds no run (no config.json).")
    names = sorted(path.name for path in source.iterdir())
    for name in ("config.json", *(n for n in names if re.fullmatch(r"tokenizer.*\.json", n))):
        write_atomic(target / name, (source / name).read_bytes())
    stages = source / "stages"
    for stage in sorted(stages.iterdir()) if stages.exists() else ():
        copy_description(stage, target / "stages" / stage.name)


def has_checkpoint(workdir: epath.Path) -> bool:
    """Whether `workdir` has a checkpoint to resume from."""
    folder = workdir / "checkpoints"
    return folder.exists() and any(path.name.isdigit() for path in folder.iterdir())


def changes(stored: DataSpec, spec: DataSpec) -> list[str]:
    """Returns a line for each property of the data that is now missing or different.

    New properties, such as the names of classes, are no change, nor are the moments of codes, whose
    last digits depend on the device that computed them.
    """
    then, now = configs.flatten(spec_to_json(stored)), configs.flatten(spec_to_json(spec))
    return [
        f"  {name}: {old} -> {now.get(name, 'absent')}"
        for name, old in then.items()
        if old != now.get(name) and not re.search(r"\.facts\.(mean|std)$", name)
    ]


def check_same_data(
    workdir: epath.Path,
    spec: DataSpec,
    allow_change: bool,
    content: Callable[[], Mapping[str, str]] | None = None,
) -> None:
    """Compares the description of the data with that from the start of the run.

    `content` returns the digest of each split, which is compared too. For a run that is older than
    these digests, only the description is compared.

    Raises:
      ConfigError: they differ, the run has a checkpoint, and `allow_change` is false.
    """
    stored = read_spec(workdir)
    if stored is None or allow_change or not has_checkpoint(workdir):
        return
    lines = changes(stored, spec)
    if content and not lines:
        then, now = parse_json((workdir / "config.json").read_bytes()).get("content", {}), content()
        lines = [
            f"  the content of {split}: sha256 {digest[:12]} -> {now.get(split, 'absent')[:12]}"
            for split, digest in then.items()
            if digest != now.get(split)
        ]
    if not lines:
        return
    raise ConfigError(
        f"the data are not what they were when the run in {workdir} was started (then -> now):\n"
        + "\n".join(lines)
        + "\nRestore them, give another --workdir, or give --allow_config_change to continue."
    )


def check_same_config(
    workdir: epath.Path,
    config: ConfigDict,
    allow_change: bool,
    complete: configs.Complete | None = None,
) -> None:
    """Compares `config` with the stored one, if the run has a checkpoint.

    A key that one of them lacks counts as its default; `complete` adds the settings of its judges
    to the stored one.

    Raises:
      ConfigError: they differ in more than run length, devices and cadence, and `allow_change` is
        false. The message lists the keys.
    """
    stored = read_config(workdir)
    if stored is None or allow_change or not has_checkpoint(workdir):
        return
    stored = complete(stored, {}) if complete else stored
    if changed := configs.differences(stored, config, defaults(config)):
        lines = "\n".join(f"  config.{line}" for line in changed)
        raise ConfigError(
            f"{workdir} holds a run with another config (stored -> given):\n{lines}\n"
            "Give another --workdir for a new run, or --allow_config_change to continue this one."
        )
