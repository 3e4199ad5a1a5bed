"""Every kind of wrong input: one short error that says what to do, and nothing saved is lost."""

import errno
import fcntl
import json
import resource
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import DDPM, FAST
from PIL import Image

from genjax.evals import features
from genjax.main import main
from genjax.training.checkpoint import Checkpoints

TINY = f"--config={DDPM}:tiny"


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs the command line in this process and returns its error, which must be a short one."""

    def run(*arguments):
        if not any(str(a).startswith("--workdir") for a in arguments):
            arguments = (*arguments, f"--workdir={tmp_path / 'run'}")
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert code == 1, captured
        message = captured.err[captured.err.index("error: ") :]
        assert "Traceback" not in captured.err
        assert len(message.splitlines()) <= 20
        assert len(message) < 2000
        return message

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.optimizer.learningrate=1"], ["learningrate", "optimizer.learning_rate"]),
        (["--config.model.denoiser.chanels=1"], ["denoiser.chanels", "denoiser.channels"]),
        (["--config.model.denoiser.channels=131072"], ["does not fit into memory", "GiB"]),
        (["--config.batch_size=lots"], ["config.batch_size='lots'", "a whole number"]),
        (["--config.diffusion.sampler=dimm"], ["sampler", "dimm", "ddim"]),
        (["--config.diffusion.path=cosin"], ["cosin", "linear, cosine"]),
        (["--config.method=difusion"], ["difusion", "Nearest: diffusion"]),
        (["--config.method=ddpm"], ["ddpm", "diffusion"]),  # as it was called once
        (["--config.optimizer.name=adamm"], ["adamm", "adam"]),
        (["--config.batch_size=12"], ["12 is not divisible by the 8 devices", "multiple of 8"]),
        (["--config.mesh.fsdp=3"], ["'fsdp': 3", "8 devices"]),
        (["--config.dataset.name=digitz"], ["digitz", "digits"]),
        (["--config.model.denoiser.multipliers=(1,2,2,2,2)"], ["8 x 8", "multiple of 16"]),
        (["--config.evals.split=tets"], ["tets", "test"]),
        (["--config.early_stop.metric=eval/loss"], ["eval/loss", "eval/bits_per_dim"]),
        (["--config.checkpoint.best=eval/loss"], ["eval/loss", "eval/bits_per_dim"]),
        (["--config.model.denoiser.attention=(16,)"], ["16", "[8, 4]"]),
        (["--config.model.denoiser.heads=3"], ["heads=3", "[16, 32]"]),
        (
            ["--config.model.denoiser.multipliers=a"],
            ["model.denoiser.multipliers", "a whole number"],
        ),
        (["--config.ema.networks=('encoder',)"], ["encoder", "denoiser"]),
        (["--config.optimizer.freeze=('^nothing',)"], ["freeze", "^nothing"]),
        (["--checkpont=5"], ["--checkpont", "--checkpoint"]),
        (["--seed=5"], ["--config.seed"]),
        (["--config.seed=-1"], ["config.seed=-1", "at least 0 and at most"]),
        (["--config.seed=99999999999999999999"], ["config.seed=9999", "at least 0 and at most"]),
    ],
)
def test_wrong_values(refused, arguments, expected):
    message = refused(TINY, *arguments)
    for part in expected:
        assert part in message


def test_wrong_presets_files_and_modes(refused, tmp_path, capsys):
    assert "tiny" in refused(f"--config={DDPM}:tinny")
    assert "ddpm.py" in refused(f"--config={DDPM.replace('ddpm.py', 'dpm.py')}")
    assert "--config" in refused("--mode=eval")
    for mode in ("eval", "sample", "inspect"):
        assert "holds no run" in refused(f"--workdir={tmp_path / 'nothing'}", f"--mode={mode}")
        message = refused(TINY, f"--workdir={tmp_path / 'nothing'}", f"--mode={mode}")
        assert "holds no run (no config.json). Train one first" in message
    with pytest.raises(SystemExit) as exit:
        main([TINY, "--mode=trian"])
    assert exit.value.code == 2
    assert "'trian'" in capsys.readouterr().err


def folder_of(path, sizes):
    for i, size in enumerate(sizes):
        path.mkdir(exist_ok=True)
        Image.fromarray(np.full((*size, 3), i, np.uint8)).save(path / f"{i}.png")
    return path


def test_pictures_of_the_wrong_shape(refused, tmp_path):
    folder = folder_of(tmp_path / "mine", [(8, 8)] * 10 + [(8, 12)])
    given = ["--config.dataset.name=folder", f"--config.dataset.path={folder}"]
    message = refused(TINY, *given)
    assert "10.png" in message
    assert "dataset.image_size" in message
    folder = folder_of(tmp_path / "flat", [(8, 12)] * 10)
    given = ["--config.dataset.name=folder", f"--config.dataset.path={folder}"]
    assert "8 x 12" in refused(TINY, *given)


def test_a_missing_folder_and_a_corrupt_picture(refused, tmp_path):
    given = ["--config.dataset.name=folder", f"--config.dataset.path={tmp_path / 'none'}"]
    assert str(tmp_path / "none") in refused(TINY, *given)
    folder = folder_of(tmp_path / "mine", [(8, 8)] * 10)
    (folder / "3.png").write_bytes(b"not a picture")
    given = ["--config.dataset.name=folder", f"--config.dataset.path={folder}"]
    assert "3.png" in refused(TINY, *given)


@pytest.fixture
def run_copy(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def test_another_config_is_refused_with_the_keys_and_nothing_is_lost(refused, run_copy):
    before = (run_copy / "config.json").read_bytes()
    message = refused(
        TINY,
        *FAST,
        f"--workdir={run_copy}",
        "--config.model.denoiser.channels=16",
        "--config.seed=3",
    )
    assert "config.model.denoiser.channels: 8 -> 16" in message
    assert "config.seed: 0 -> 3" in message
    assert "--allow_config_change" in message
    message = refused(
        TINY,
        *FAST,
        f"--workdir={run_copy}",
        "--config.model.denoiser.channels=16",
        "--allow_config_change",
    )
    assert "is of another model" in message
    assert "saved" in message
    assert (run_copy / "config.json").read_bytes() == before
    assert Checkpoints(run_copy).steps() == [6, 12]


def test_a_damaged_config_of_a_run(refused, run_copy):
    (run_copy / "config.json").write_text('{"config": {"method": ')
    assert "is damaged" in refused(f"--workdir={run_copy}", "--mode=inspect")
    (run_copy / "config.json").write_text('{"config": {"method": "diffusion"}, "data": {}}')
    assert "'dataset'" in refused(f"--workdir={run_copy}", "--mode=inspect")
    (run_copy / "config.json").write_text('{"config": {"seed": 1}, "data": {}}')
    assert "damaged" in refused(f"--workdir={run_copy}", "--mode=inspect")
    assert "is damaged" in refused(TINY, *FAST, f"--workdir={run_copy}")


def test_sampling_options_that_do_not_exist(refused, finished_run):
    at = f"--workdir={finished_run}"
    assert "euler, ddim" in refused(at, "--mode=sample", "--sampler=dimm")
    assert "steps" in refused(at, "--mode=sample", "--steps=11")
    assert "whole number" in refused(at, "--mode=sample", "--steps=2.5")
    assert "number" in refused(at, "--mode=sample", "--guidance=high")
    assert "--num=0" in refused(at, "--mode=sample", "--num=0")
    assert "class_conditional" in refused(at, "--mode=sample", "--guidance=3")
    assert "no such condition" in refused(at, "--mode=sample", "--label=3")
    assert "Nearest: steps" in refused(at, "--mode=sample", "--stepz=3")
    assert "[6, 12]" in refused(at, "--mode=sample", "--checkpoint=7")
    for given in ("last", "9" * 5000, "²", "-1"):
        assert "a step or 'best'" in refused(at, "--mode=sample", f"--checkpoint={given}")
    assert "no best checkpoint" in refused(at, "--mode=sample", "--checkpoint=best")


def test_samples_of_the_wrong_type_are_refused_before_a_judge_is_trained(
    refused, tmp_path, monkeypatch
):
    def build(*given, **options):
        raise AssertionError("a judge was made")

    monkeypatch.setattr(features, "build", build)
    judged = [TINY, "--mode=eval", "--config.evals.judges=fidelity"]
    for name, samples, expected in (
        ("float", np.zeros((20, 8, 8, 1), np.float32), "float32[20, 8, 8, 1]: expected uint8[N"),
        ("large", np.zeros((20, 9, 9, 1), np.uint8), "uint8[20, 9, 9, 1]: expected uint8[N, 8, 8"),
        ("few", np.zeros((2, 8, 8, 1), np.uint8), "2 images to evaluate"),
    ):
        np.savez(tmp_path / f"{name}.npz", samples=samples)
        assert expected in refused(*judged, f"--samples={tmp_path / name}.npz")


def test_a_second_run_at_once_is_refused_with_the_pid(refused, run_copy):
    with open(run_copy / "lock", "w") as lock:
        lock.write("pid 4242 on elsewhere\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = refused(TINY, *FAST, f"--workdir={run_copy}")
    assert "pid 4242" in message


def test_an_error_before_the_first_checkpoint_can_be_mended(cli, tmp_path):
    _, err = cli.train(tmp_path / "run", "--config.dataset.validation=", code=1)
    assert "config.evals.split='validation'" in err
    assert "dataset.validation='5_percent'" in err
    assert "evals.split to an existing split, such as 'test'" in err
    cli.train(tmp_path / "run", "--config.dataset.validation=10_percent")


def test_data_that_changed_under_a_run_are_refused(refused, run_copy):
    stored = json.loads((run_copy / "config.json").read_text())
    stored["data"]["sizes"]["train"] -= 1
    (run_copy / "config.json").write_text(json.dumps(stored))
    message = refused(TINY, *FAST, f"--workdir={run_copy}", "--config.duration=20_steps")
    assert "sizes" in message
    assert "--allow_config_change" in message


def test_data_that_cannot_be_had_name_every_route(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm there
    message = refused(TINY, "--config.dataset.name=mnist10k")
    assert "mnist10k" in message
    assert "npm" in message


def test_a_read_only_disk(refused, monkeypatch):
    def read_only(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.replace", read_only)
    message = refused(TINY, *FAST)
    assert "cannot be written: check its permissions, or set another --workdir" in message
    assert "is full" not in message


def test_a_workdir_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(TINY, *FAST, f"--workdir={tmp_path / 'file' / 'run'}")
    assert "--workdir" in message


def test_a_full_disk(refused, run_copy, monkeypatch):
    usage = SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    message = refused(TINY, *FAST, f"--workdir={run_copy}", "--config.duration=16_steps")
    assert "1,000 are free" in message
    assert f"The disk of {run_copy} (--workdir) is full, 1,000 bytes are free there" in message
    assert "Complete checkpoints are kept" in message
    assert Checkpoints(run_copy).steps() == [6, 12]


def test_a_disk_that_fills_during_a_save_keeps_what_was_saved(cli, run_copy):
    """No file may grow over 40 KB, as if the room had gone in the middle of a checkpoint."""

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    _, err = cli.train(
        run_copy,
        "--config.duration=16_steps",
        code=1,
        preexec_fn=full,
        environment={"JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    message = err[err.index("error: ") :]
    assert f"The disk of {run_copy} (--workdir) is full" in message.splitlines()[0]
    assert Checkpoints(run_copy).latest() == 12
    cli.train(run_copy, "--config.duration=16_steps")
    assert Checkpoints(run_copy).latest() == 16
