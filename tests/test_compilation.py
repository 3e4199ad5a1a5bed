"""The cache of compiled programs: bounded, shared by processes, and no hindrance to a run."""

import logging
import os
import subprocess
import sys

import filelock
import jax
import pytest

from genjax import compilation

PROGRAM = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from genjax import compilation
compilation.SHORTEST = 0.0
compilation.LARGEST = int(sys.argv[2])
compilation.keep(Path(sys.argv[1]))
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("/cache_hits")))
for size in range(1, int(sys.argv[3]) + 1):
    jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.ones((size, size)))
print(sum(hits))
"""
BIG = 2**30


def start(folder, largest=BIG, programs=6):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    arguments = ["-c", PROGRAM, str(folder), str(largest), str(programs)]
    return subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", *arguments],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hits(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "cache" not in err
    return int(out)


def programs(folder):
    return {path.name: path.stat().st_size for path in folder.glob("*-cache")}


def test_processes_that_start_together_share_a_folder(tmp_path):
    for process in [start(tmp_path) for _ in range(3)]:
        hits(process)
    kept = programs(tmp_path)
    assert len(kept) >= 6
    assert hits(start(tmp_path)) == len(kept)
    assert programs(tmp_path) == kept


def test_the_folder_stays_below_its_size(tmp_path):
    hits(start(tmp_path))
    whole = sum(programs(tmp_path).values())
    hits(start(tmp_path, whole * 2 // 3, programs=9))
    assert 0 < sum(programs(tmp_path).values()) <= whole * 2 // 3


def test_what_a_killed_process_left_is_removed(tmp_path):
    hits(start(tmp_path))
    kept = programs(tmp_path)
    torn = next(iter(kept))
    (tmp_path / torn).write_bytes(b"torn")
    (tmp_path / torn.replace("-cache", "-atime")).unlink()
    (tmp_path / "other-cache").write_bytes(b"of an older version, without a time")
    assert hits(start(tmp_path)) == len(kept) - 1
    assert programs(tmp_path).keys() == kept.keys()
    assert (tmp_path / torn).read_bytes() != b"torn"


@pytest.fixture
def settings(monkeypatch):
    """The settings of jax that are made."""
    made = {}
    monkeypatch.setattr(jax.config, "update", made.__setitem__)
    for name in [name for name in os.environ if name.startswith("JAX_")]:
        monkeypatch.delenv(name)
    return made


def test_a_folder_that_cannot_be_written_is_told_of_and_no_more(settings, tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, logger="genjax"):
        compilation.keep(tmp_path / "file" / "programs")
    assert settings == {}
    assert len(caplog.records) == 1
    assert "are not kept" in caplog.text


def test_a_lock_that_is_never_free_is_told_of_and_no_more(settings, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(compilation, "WAIT", 0.1)
    with filelock.FileLock(tmp_path / ".lockfile", is_singleton=False):
        compilation.keep(tmp_path)
    assert settings == {}
    assert "are not kept" in caplog.text


def test_the_environment_goes_before(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    compilation.keep(tmp_path / "programs")
    assert settings == {"jax_persistent_cache_min_compile_time_secs": compilation.SHORTEST}
    assert not (tmp_path / "programs").exists()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "1000")
    compilation.keep(tmp_path / "programs")
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "programs")
    assert "jax_compilation_cache_max_size" not in settings
