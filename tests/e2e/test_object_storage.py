"""A run whose folder is in object storage: a store of files without network, orbax on the same."""

import contextlib
import json
import os
import subprocess
import sys
import threading

import fsspec
import pytest
from command_line import DDPM, FAST, ROOT, steps_logged
from etils import epath
from store import install

from genjax import files, main
from genjax.config import ConfigError
from genjax.training import workdir
from genjax.training.metrics import JsonlWriter, read_metrics


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder of the bucket gs://bucket."""
    root = tmp_path / "store"
    (root / "bucket").mkdir(parents=True)
    install(root, monkeypatch.setattr)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return root / "bucket"


RUN = "--workdir=gs://bucket/run"
OWN = ["--mode=eval", "--config.evals.split=validation"]


def train(*arguments):
    return main.main([f"--config={DDPM}:tiny", *FAST, RUN, *arguments])


def test_a_run_is_trained_resumed_evaluated_and_sampled_there(store, tmp_path, capsys):
    kept = ["--config.ema.power=(0.05,0.1)", "--config.ema.snapshots=4_steps"]
    assert train(*kept) == 0
    folder = store / "run"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "checkpoints",
        "config.json",
        "ema",
        "log.txt",
        "metrics.jsonl",
        "report.html",
        "samples",
    }
    assert "step_00000012.png" in os.listdir(folder / "samples")
    assert "<figure" in (folder / "report.html").read_text()
    assert "step 12/12" in (folder / "log.txt").read_text()
    assert train(*kept, "--config.duration=14_steps") == 0
    assert steps_logged(folder) == list(range(1, 15))
    assert {path.name for path in (folder / "ema").iterdir()} == {"4", "8", "12"}
    assert "resuming at step 12" in (folder / "log.txt").read_text()
    assert (folder / "log.txt").read_text().count("step 12/12, loss") == 1
    count = len((folder / "metrics.jsonl").read_text().splitlines())
    assert main.main([RUN, *OWN]) == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == count + 1
    assert main.main([RUN, "--mode=sample", "--num=2", "--ema=0.08"]) == 0
    assert "step_00000014_seed_0_ema_0.08.npz" in os.listdir(folder / "generated")
    assert main.main([RUN, "--mode=export"]) == 1
    assert "expected a local folder" in capsys.readouterr().err
    assert list((tmp_path / "here").iterdir()) == []  # such as a folder gs:/bucket


@contextlib.contextmanager
def alive(path):
    """Another process, which holds a lock."""
    over = threading.Event()

    def beat():
        count = 0
        while not over.wait(0.05):
            count += 1
            path.write_text(f"pid 1 on elsewhere\n{count}\n")

    path.write_text("pid 1 on elsewhere\n0\n")  # before anybody looks
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_the_lock_of_a_live_run_is_left_alone_and_that_of_a_dead_one_taken_over(store, capsys):
    assert train("--config.duration=4_steps") == 0
    lock = store / "run" / "lock"
    assert not lock.exists()
    before = (store / "run" / "metrics.jsonl").read_bytes()
    with alive(lock):
        assert train("--config.duration=5_steps") == 1
        assert "in use by another run (pid 1 on elsewhere)" in capsys.readouterr().err
        assert main.main([RUN, *OWN]) == 0
        assert "the run is live (pid 1 on elsewhere)" in capsys.readouterr().err
    assert (store / "run" / "metrics.jsonl").read_bytes() == before
    assert lock.exists()
    assert train("--config.duration=5_steps") == 0
    assert "its holder is gone" in capsys.readouterr().err
    assert steps_logged(store / "run") == [1, 2, 3, 4, 5]
    assert not list((store / "run").glob("lock*"))


def test_a_process_whose_lock_was_taken_over_ends(store):
    hold = """
import sys, time, store
from etils import epath
from genjax.training import lease
store.install(sys.argv[1])
with lease.object_lock(epath.Path("gs://bucket/lock"), "this one", False):
    print(flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", hold, store.parent]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/e2e'}"}
    process = subprocess.Popen(command, env=environment, **pipes)
    process.stdout.readline()
    (store / "lock").write_text("another")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "and another has taken over the run" in err
    assert (store / "lock").read_text() == "another"


def test_one_of_two_holds_the_lock_and_frees_only_its_own(store):
    folder = epath.Path("gs://bucket")
    with workdir.lock(folder) as first, workdir.lock(folder) as second:
        assert first == ""
        assert second.startswith(f"pid {os.getpid()} on ")
    assert not (store / "lock").exists()
    with workdir.lock(folder):
        (store / "lock").write_text("another's")
    assert (store / "lock").read_text() == "another's"


def test_metrics_are_uploaded_now_and_then_and_an_evaluations_at_once(store, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    path = epath.Path("gs://bucket/metrics.jsonl")
    writer = JsonlWriter(path, 0)

    def there():
        return list(read_metrics(path).get("train/loss", {}))

    writer.scalars(1, {"train/loss": 1.0})
    assert there() == []
    now[0] = files.PAUSE
    writer.scalars(2, {"train/loss": 1.0})
    assert there() == [1, 2]
    writer.scalars(3, {"train/loss": 1.0})
    assert there() == [1, 2]
    writer.scalars(3, {"eval/loss": 1.0})
    assert there() == [1, 2, 3]
    writer.scalars(4, {"train/loss": 1.0})
    writer.close()
    assert there() == [1, 2, 3, 4]
    resumed = JsonlWriter(path, 2)
    resumed.scalars(3, {"train/loss": 5.0})
    resumed.close()
    assert read_metrics(path)["train/loss"] == {1: 1.0, 2: 1.0, 3: 5.0}
    assert all(map(json.loads, (store / "metrics.jsonl").read_text().splitlines()))


@pytest.mark.parametrize(
    "given", ["foo://bucket/run", "gs:/bucket/run", "gs:///run", "memory://run"]
)
def test_storage_that_is_not_known_is_one_error_before_anything_is_written(
    given, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main.main([f"--config={DDPM}:tiny", f"--workdir={given}"]) == 1
    error = f"error: --workdir={given}: expected a local folder, gs://BUCKET/FOLDER or s3://"
    assert error in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_storage_whose_package_is_missing_names_it(monkeypatch):
    def missing(scheme):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ConfigError, match=r"install gcsfs.*GENJAX_EXTRAS=gcs launch/"):
        files.place("gs://bucket/run", "--workdir")
    assert files.place("runs/a", "--workdir") == epath.Path("runs/a")
