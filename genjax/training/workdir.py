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
from genjax.files import create_exclusively, is_local, parse_json, remove_partial, write_atomic
from genjax.method import DataSpec, Field, defaults
from genjax.nn.precision import with_precision
from genjax.training import older

logger = logging.getLogger("genjax")

# What a start writes before the first step.
START = r"lock|log\.txt|config\.json|tokenizer.*\.json|metrics\.jsonl|tensorboard|checkpoints|ema"


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[Callable[[], None]]:
    """Makes `workdir` if need be, and holds its lock, which names this process.

    Of several processes of one run the first takes it for all. What killed processes have left
    half written is removed. So is the folder if it is new and the start is refused by a ConfigError
    before anything was begun in it.

    Yields:
      What is called once the run begins: from then on all that is there is kept, such as the log of
      a run that fails at its first step.

    Raises:
      ConfigError: another process holds it; the message names its pid.
    """
    new, begun = jax.process_index() == 0 and _make(workdir), threading.Event()
    try:
        with lock(workdir) as holder:
            if holder:
                advice = "Wait for it, stop it, or give another --workdir."
                if not is_local(workdir):
                    advice += f" If it was killed, delete {workdir / 'lock'}."
                raise ConfigError(f"{workdir} is in use by another run ({holder}). {advice}")
            if jax.process_index() == 0:
                remove_partial(workdir)
            try:
                yield begun.set
            except ConfigError:
                if new and not begun.is_set():
                    with contextlib.suppress(OSError):  # what is wrong with the start is raised
                        _forget(workdir)
                raise
    finally:
        if new:
            with contextlib.suppress(OSError):  # it is not empty
                Path(workdir).rmdir()


def _make(workdir: epath.Path) -> bool:
    """Makes a folder; whether there was none, on a disk of this machine."""
    there = workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    return not there and is_local(workdir)


def _forget(workdir: epath.Path) -> None:
    """Removes what a start has left that has come to no step, if that is all there is."""
    paths = list(Path(workdir).iterdir())
    begun = [path for path in paths if not re.fullmatch(START, path.name)]
    metrics = Path(workdir) / "metrics.jsonl"
    if begun or has_checkpoint(workdir) or (metrics.exists() and metrics.stat().st_size):
        return
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def lock(workdir: epath.Path) -> Iterator[str]:
    """Takes the file `workdir/lock` without waiting: gives "", or who holds it if another does.

    The system frees it if the process dies. In object storage it is an object that is there as long
    as it is held, and stays if the process is killed. Only the first process of a run asks for it;
    the others are always told "".
    """
    own = f"pid {os.getpid()} on {socket.gethostname()}"
    if jax.process_index():
        yield ""
        return
    if not is_local(workdir):
        now = time.strftime("%Y-%m-%d %H:%M:%S%z")
        with _object_lock(workdir / "lock", f"{own} since {now}") as holder:
            yield holder
        return
    file, holder = _take(Path(workdir) / "lock")
    with file:
        if holder:
            yield holder
            return
        file.truncate(0)
        file.write(f"{own}\n".encode())
        try:
            yield ""
        finally:
            file.truncate(0)  # so that the next one to fail does not read who held it before


def _take(path: Path) -> tuple[BinaryIO, str]:
    """The file of a lock, which is made if need be, and "" if it is taken, or who holds it."""
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
        file.close()  # it was removed by a start that failed at this moment


def _holder(file: BinaryIO) -> str:
    """Who holds a lock; it may have been taken this moment, and have no name in it yet."""
    for _ in range(20):
        file.seek(0)
        text = file.read(200).decode(errors="replace").strip()
        if text:
            return re.sub(r"[^ -~]+", "?", text.splitlines()[0])
        time.sleep(0.05)
    return "unknown"


@contextlib.contextmanager
def _object_lock(path: epath.Path, own: str) -> Iterator[str]:
    if not create_exclusively(path, own.encode()):
        text = path.read_bytes()[:200].decode(errors="replace") if path.exists() else ""
        yield text.strip() or "unknown"
        return
    try:
        yield ""
    finally:
        if (
            path.exists() and path.read_bytes() == own.encode()
        ):  # and not one that came after its removal
            path.unlink()


# ---- what the data look like ---------------------------------------------------------------------


def tokenizers_of(spec: DataSpec) -> dict[str, str]:
    """Field -> the JSON of its tokenizer, of the texts among the fields."""
    facts = {name: field.facts.get("tokenizer") for name, field in spec.fields.items()}
    return {name: own.to_json() for name, own in facts.items() if own is not None}


def tokenizer_file(spec: DataSpec, field: str) -> str:
    """The file in a workdir that has the tokenizer of a field."""
    return "tokenizer.json" if field == spec.target else f"tokenizer_{field}.json"


def spec_to_json(spec: DataSpec) -> dict[str, Any]:
    """A spec as plain data; a tokenizer is named by its file and its sha256."""
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
      ConfigError: one is missing or damaged, or it is another one.
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
        raise ConfigError(f"{path} is missing: put the run's tokenizer back from a copy.")
    text = path.read_text(encoding="utf-8")
    if hashlib.sha256(text.encode()).hexdigest() != sha256:
        raise ConfigError(
            f"{path} is not the tokenizer that the run was trained with: its tokens mean something "
            "else. Put the run's own back from a copy."
        )
    return tokenizers.from_json(text)


def with_own_tokenizer(dataset: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """`config.dataset` with the run's copy of its tokenizer where the file it names has gone."""
    name, own = dataset.text.tokenizer, workdir / "tokenizer.json"
    if name in ("", *tokenizers.NAMES) or Path(name).exists() or not own.exists():
        return dataset
    dataset = dataset.copy_and_resolve_references()
    if not is_local(own):
        raise ConfigError(
            f"config.dataset.text.tokenizer={name!r} is not there. Copy {own} to a local file, and "
            "name that."
        )
    dataset.text.tokenizer = str(own)
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
    """`config` with the precision that its run began with, if it says "auto"."""
    stored = read_config(workdir) if config.precision == "auto" else None
    return config if stored is None else with_precision(config, stored.precision)


def read_spec(workdir: epath.Path) -> DataSpec | None:
    """What the data of the run in `workdir` look like; None if there is no run."""
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
    """Lets modules be imported that lie in a folder, such as a config's; None does nothing."""
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))


def read_digest(workdir: epath.Path) -> str:
    """The digest of the data that the run in `workdir` was trained on; "" if it was not kept."""
    return parse_json((workdir / "config.json").read_bytes()).get("digest", "")


def read_length(workdir: epath.Path) -> int:
    """Steps of the run in `workdir` when it began; 0 if its `config.json` does not say."""
    return parse_json((workdir / "config.json").read_bytes()).get("length", 0)


def _read(workdir: epath.Path) -> tuple[ConfigDict, DataSpec] | None:
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        content = older.current(parse_json(path.read_bytes()))
        config, lacking = configs.filled(configs.from_json(content["config"]))
        spec = spec_from_json(content["data"], workdir)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged or of another version ({error}). Put it back from a copy, or "
            "delete it and give --config."
        ) from error
    if lacking:
        _tell_filled(str(path), ", ".join(lacking))
    return config, spec


@functools.cache  # a command reads the file more than once
def _tell_filled(path: str, keys: str) -> None:
    logger.info("%s is older than the keys %s: they have their defaults", path, keys)


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
    """Writes `config.json`: the config, what the data look like, the command and the time.

    Beside it come the tokenizers of texts. `length` is the number of steps that the run began with;
    `digest` is of the data, for runs that are to be a stage of others; `source` is the folder of
    the config, where modules of one's own may lie; `content` has a digest of each split, which is
    compared when the run is resumed.
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
    """Copies what says how the run in `source` is built: its config, tokenizers, stages.

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
    """Whether there is anything in `workdir` to go on with."""
    folder = workdir / "checkpoints"
    return folder.exists() and any(path.name.isdigit() for path in folder.iterdir())


def changes(stored: DataSpec, spec: DataSpec) -> list[str]:
    """A line for each thing that data had and now have not, or have otherwise.

    What they have gained since, such as the names of classes, is no change, nor are the moments of
    codes, whose last digits depend on the device that made them.
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
    """Compares what the data look like with what they were when the run was started.

    `content` gives the digest of each split, which is compared too. A run that is older than these
    digests is compared by its looks alone.

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
        + "\nPut them back, give another --workdir, or --allow_config_change to go on."
    )


def check_same_config(
    workdir: epath.Path,
    config: ConfigDict,
    allow_change: bool,
    complete: configs.Complete | None = None,
) -> None:
    """Compares `config` with the stored one, if the run has a checkpoint.

    A key that one of them lacks counts as its default; `complete` gives the stored one the settings
    of its judges.

    Raises:
      ConfigError: they differ in more than run length, devices and cadence, and `allow_change` is
        false; lists the keys.
    """
    stored = read_config(workdir)
    if stored is None or allow_change or not has_checkpoint(workdir):
        return
    stored = complete(stored, {}) if complete else stored
    if changed := configs.differences(stored, config, defaults(config)):
        lines = "\n".join(f"  config.{line}" for line in changed)
        raise ConfigError(
            f"{workdir} holds a run with another config (stored -> given):\n{lines}\n"
            "Give another --workdir for a new run, or --allow_config_change to go on with this one."
        )
