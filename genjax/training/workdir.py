"""The folder of a run: its lock, and the config it was started with."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.config import ConfigError
from genjax.method import DataSpec
from genjax.training.pictures import write_atomic


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds `workdir/lock`, which names this process; freed by the system if the process dies.

    Of several processes of one run the first takes it for all.

    Raises:
      ConfigError: another process holds it; the message names its pid.
    """
    if jax.process_index():
        yield
        return
    path = workdir / "lock"
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            file.seek(0)
            raise ConfigError(
                f"{workdir} is in use by another run ({file.read().strip()}). Wait for it, stop "
                "it, or give another --workdir."
            ) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def read_config(workdir: Path) -> ConfigDict | None:
    """The config that the run in `workdir` was started with; None if there is no run.

    Raises:
      ConfigError: the file is damaged.
    """
    stored = _read(workdir)
    return None if stored is None else stored[0]


def read_spec(workdir: Path) -> DataSpec | None:
    """What the data of the run in `workdir` look like; None if there is no run."""
    stored = _read(workdir)
    return None if stored is None else stored[1]


def read_digest(workdir: Path, name: str = "digest") -> str:
    """The digest of the data that the run in `workdir` was trained on; "" if it was not kept.

    With "tokenizer" for a `name`, that of its tokenizer.
    """
    return json.loads((workdir / "config.json").read_text()).get(name, "")


def _read(workdir: Path) -> tuple[ConfigDict, DataSpec] | None:
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        config = configs.from_json(content["config"])
        if missing := configs.flatten(configs.base()).keys() - configs.flatten(config).keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing)[:5])}")
        features = {
            name: jax.ShapeDtypeStruct(tuple(shape), dtype)
            for name, (shape, dtype) in content["data"].pop("features").items()
        }
        return config, DataSpec(features=features, **content["data"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged or of another version ({error}). Put it back from a copy, or "
            "delete it and give --config."
        ) from error


def write_config(
    workdir: Path,
    config: ConfigDict,
    spec: DataSpec,
    command: Sequence[str],
    digest: str = "",
    tokenizer: str = "",
) -> None:
    """Writes `config.json`: the config, what the data look like, the command and the time.

    `digest` is of the data, for runs that a second stage may be trained on; `tokenizer` of that of
    text.
    """
    features = {name: (s.shape, str(s.dtype)) for name, s in spec.features.items()}
    content = {
        "config": configs.to_json(config),
        "data": spec._replace(features=features)._asdict(),
        "digest": digest,
        "tokenizer": tokenizer,
        "command": list(command),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_atomic(workdir / "config.json", (json.dumps(content, indent=2) + "\n").encode())


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is anything in `workdir` to go on with."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def check_same_data(workdir: Path, spec: DataSpec, allow_change: bool) -> None:
    """Compares what the data look like with what they were when the run was started.

    Raises:
      ConfigError: they differ, the run has a checkpoint, and `allow_change` is false.
    """
    stored = read_spec(workdir)
    if stored in (None, spec) or allow_change or not has_checkpoint(workdir):
        return
    pairs = zip(spec._fields, stored, spec, strict=True)
    lines = "\n".join(f"  {name}: {old} -> {new}" for name, old, new in pairs if old != new)
    raise ConfigError(
        f"the data are not what they were when the run in {workdir} was started (then -> now):\n"
        f"{lines}\nPut them back, give another --workdir, or --allow_config_change to go on."
    )


def check_same_config(workdir: Path, config: ConfigDict, allow_change: bool) -> None:
    """Compares `config` with the stored one, if the run has a checkpoint.

    Raises:
      ConfigError: they differ in more than run length and cadence, and `allow_change` is false;
        lists the keys.
    """
    stored = read_config(workdir)
    if stored is None or allow_change or not has_checkpoint(workdir):
        return
    if changed := configs.differences(stored, config):
        lines = "\n".join(f"  config.{line}" for line in changed)
        raise ConfigError(
            f"{workdir} holds a run with another config (stored -> given):\n{lines}\n"
            "Give another --workdir for a new run, or --allow_config_change to go on with this one."
        )
