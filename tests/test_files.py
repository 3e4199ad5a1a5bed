"""Paths as people write them, disks that are full, and what killed processes leave."""

import errno
import os
import time

import pytest
from etils import epath

from genjax import checks, compilation, files
from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import packages
from genjax.flags import parse


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return str(tmp_path / "home")


def test_a_tilde_is_the_home_in_every_flag_and_key_that_takes_a_path(home, tmp_path):
    argv = [f"--{name}=~/a b" for name in ("config", "workdir", "output", "samples", "references")]
    flags, _ = parse([*argv[:2], "--mode=sample", "--conditions=~"], ["sample"])
    assert (flags.config, flags.workdir, flags.conditions) == (f"{home}/a b", f"{home}/a b", home)
    flags, _ = parse([argv[0], *argv[3:], "--mode=eval"], ["eval"])
    assert (flags.samples, flags.references) == (f"{home}/a b",) * 2
    assert str(files.place("~/x", "--workdir")) == f"{home}/x"
    keys = {"dataset.path": "~/data", "checkpoint.init_from": "~", "stages.first": "~/run"}
    config = configs.override(configs.base(), keys)
    assert config.dataset.path == f"{home}/data"
    assert config.checkpoint.init_from == home
    assert config.stages.first == f"{home}/run"
    experiment = tmp_path / "own.py"
    experiment.write_text(
        "from genjax import config as base\n"
        "def get_config():\n"
        "    config = base.base()\n"
        "    config.method, config.dataset.path = 'diffusion', '~/pictures'\n"
        "    return config\n"
    )
    assert configs.load(str(experiment)).dataset.path == f"{home}/pictures"


@pytest.mark.parametrize("text", ["a/~/b", "~ish text", "~=", "", "./~", "x~"])
def test_other_texts_keep_their_tilde(home, text):
    assert files.at_home(text, "--workdir") == text


def test_the_home_of_nobody_is_an_error():
    with pytest.raises(ConfigError, match=r"--workdir=~nosuchuser/x: the home folder ~nosuchuser"):
        files.place("~nosuchuser/x", "--workdir")


def test_what_killed_processes_have_left_is_removed(tmp_path):
    (tmp_path / "samples").mkdir()
    left = [tmp_path / ".config.json.123.partial", tmp_path / "samples" / ".a.png.9.partial"]
    kept = [tmp_path / "x.partial.png", tmp_path / "metrics.jsonl"]
    for path in (*left, *kept):
        path.write_text("")
        os.utime(path, (time.time() - 2 * files.OLD,) * 2)
    young = tmp_path / "samples" / ".b.png.9.partial"  # another command may be writing it
    young.write_text("")
    files.remove_partial(epath.Path(tmp_path))
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in (*kept, young))


def test_a_folder_that_many_files_are_written_to_is_listed_once(tmp_path, monkeypatch):
    listed, plain = [], files.Path.glob
    monkeypatch.setattr(files.Path, "glob", lambda self, p: listed.append(self) or plain(self, p))
    for index in range(5):
        files.write_atomic(tmp_path / f"{index}.png", b"")
    assert listed == [tmp_path]


def test_an_old_partial_file_goes_when_the_file_is_written(tmp_path):
    old, young, other = (tmp_path / f".{name}.partial" for name in ("a[1].1", "a[1].2", "b.1"))
    for path in (old, young, other):
        path.write_text("")
    for path in (old, other):
        os.utime(path, (time.time() - 2 * files.OLD,) * 2)
    files.write_atomic(tmp_path / "a[1]", b"new")
    assert (tmp_path / "a[1]").read_bytes() == b"new"
    assert not old.exists()
    assert young.exists()
    assert other.exists()


def test_a_full_disk_is_named_and_other_errors_are_not_taken_for_one(tmp_path):
    folders = {"--workdir": tmp_path / "run", "GENJAX_DATA": tmp_path / "cache"}

    def said(number, path):
        return files.trouble(OSError(number, os.strerror(number), str(path)), folders)

    full = said(errno.ENOSPC, tmp_path / "cache" / "a" / "b")
    assert full.startswith(f" The disk of {tmp_path / 'cache'} (GENJAX_DATA) is full, ")
    assert "another GENJAX_DATA" in full
    assert "--workdir" not in full
    assert "another --workdir" in said(errno.EDQUOT, tmp_path / "run" / "metrics.jsonl")
    assert "cannot be written" in said(errno.EACCES, tmp_path / "run" / "lock")
    assert "is full" not in said(errno.EROFS, tmp_path / "run")
    assert "another --workdir or GENJAX_DATA" in said(errno.ENOSPC, "/elsewhere")
    assert said(errno.ECONNRESET, tmp_path / "run") == ""
    assert files.trouble(OSError("of no number"), folders) == ""


def test_a_log_takes_names_in_any_encoding(tmp_path):
    log = files.Growing(tmp_path / "log.txt")
    log.write("caf\udce9\n")
    log.close()
    assert (tmp_path / "log.txt").read_text() == "caf\\udce9\n"


def test_a_user_without_a_name_or_a_home(monkeypatch):
    """As a number that a container runs by, of which its list of users knows nothing."""

    def unknown(user):
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("GENJAX_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"no home folder.*Set .*GENJAX_DATA"):
        packages.cache_root()
    monkeypatch.setenv("GENJAX_DATA", "/somewhere")
    assert str(packages.cache_root()) == "/somewhere"
    with pytest.raises(ConfigError, match="the home folder ~ is unknown"):
        files.place("~/x", "--workdir")
    assert not compilation._has_name(54321)


def test_what_a_message_shows_of_a_value_or_an_error_is_cut():
    with pytest.raises(
        ValueError, match=r"the JSON is \[0, 0, .*\.\.\. \(30,000 characters\), not"
    ):
        files.parse_json(b"[" + b"0, " * 9_999 + b"0]")
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert files.shown(deep) == "a list that is too long to print"
    assert checks.first_line(RuntimeError()) == "RuntimeError"
    assert checks.first_line(RuntimeError("\n a\nb")) == "a"
    assert checks.first_line(RuntimeError("a" * 500)) == "a" * 300
