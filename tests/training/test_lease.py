"""The lease of a lock in object storage, on files."""

import subprocess
import sys
import time

import pytest
from etils import epath

from genjax.training import lease


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lease, "LEASE", 0.4)
    monkeypatch.setattr(lease, "BEAT", 0.1)


def test_a_takeover_that_died_half_way_is_taken_over_too(tmp_path):
    lock = epath.Path(tmp_path / "lock")
    lock.write_bytes(b"the dead one\n3\n")
    mark = f"lock.{lease.hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    (tmp_path / mark).write_bytes(b"died in the takeover\n0\n")
    with lease.object_lock(lock, "me", wait=True) as holder:
        assert holder == ""
        assert lock.read_bytes().startswith(b"me\n")
    assert not list(tmp_path.iterdir())


def test_errors_of_a_store_do_not_end_the_heartbeat(tmp_path, monkeypatch):
    lock, failing = epath.Path(tmp_path / "lock"), []
    read = lease._read

    def flaky(path):
        if len(failing) < 2:
            failing.append(path)
            raise RuntimeError("503")
        return read(path)

    with lease.object_lock(lock, "me", wait=False) as holder:
        assert holder == ""
        monkeypatch.setattr(lease, "_read", flaky)
        before = lock.read_bytes()
        time.sleep(1)
        assert len(failing) == 2
        assert lock.read_bytes() != before


def test_a_process_whose_lock_has_gone_ends(tmp_path):
    code = f"""
import time
from etils import epath
from genjax.training import lease
lease.BEAT = 0.1
with lease.object_lock(epath.Path({str(tmp_path / "lock")!r}), "me", wait=False):
    epath.Path({str(tmp_path / "lock")!r}).unlink()
    time.sleep(20)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == lease.LOST
    assert "and it has been removed. This process ends" in ended.stderr
