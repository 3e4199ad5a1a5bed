"""A run from the command line: what it leaves, and the other modes on it."""

import fcntl
import hashlib
import json
import re
import shutil

import jax
import numpy as np
import pytest
from command_line import ROOT, metrics, reported_digest, steps_logged
from PIL import Image
from scipy.io import savemat

from genjax.training.assemble import assemble
from genjax.training.checkpoint import Checkpoints
from genjax.training.workdir import read_config


def test_a_run_leaves_all_that_the_readme_names(finished_run):
    stored = json.loads((finished_run / "config.json").read_text())
    assert stored["config"]["method"] == "diffusion"
    assert steps_logged(finished_run) == list(range(1, 13))
    lines = metrics(finished_run)
    assert all({"step", "time"} <= line.keys() for line in lines)
    names = {name for line in lines for name in line} - {"step", "time"}
    assert all(name.startswith(("train/", "eval/")) for name in names)
    assert {"train/loss", "train/grad_norm", "train/skipped", "eval/bits_per_dim"} <= names
    evaluated = [line["step"] for line in lines if "eval/bits_per_dim" in line]
    assert evaluated == [6, 12]
    assert [line["step"] for line in lines if "train/seconds_to_first_step" in line] == [1]
    assert sorted(p.name for p in (finished_run / "samples").iterdir()) == [
        "step_00000006.png",
        "step_00000012.png",
    ]
    assert Image.open(finished_run / "samples" / "step_00000012.png").size == (18, 18)
    assert list((finished_run / "tensorboard").iterdir())
    assert sorted(p.name for p in (finished_run / "checkpoints").iterdir()) == ["12", "6"]
    assert "step 12/12" in (finished_run / "log.txt").read_text()
    page = (finished_run / "report.html").read_text()
    assert "eval/bits_per_dim".replace("/", "/<wbr>") in page or "eval/bits_per_dim" in page


def test_inspect_prints_every_array_and_the_digest_of_them_all(finished_run, cli):
    out, _ = cli.run(f"--workdir={finished_run}", "--mode=inspect")
    rows = re.findall(r"^(\S+) .*? ([0-9a-f]{64})$", out, re.MULTILINE)
    rows = [(path, value) for path, value in rows if path != "sha256"]
    run = assemble(read_config(finished_run), devices=jax.devices()[:1])
    assert len(rows) == len(jax.tree.leaves(run.state))
    lines = "".join(f"{path} {value}\n" for path, value in sorted(rows))
    last = out.strip().splitlines()[-1]
    assert last == f"sha256 {hashlib.sha256(lines.encode()).hexdigest()}"
    assert last == f"sha256 {reported_digest(finished_run)}"
    state = Checkpoints(finished_run).restore(run.state)
    kernel = np.asarray(state.params["denoiser"]["stem"]["kernel"])
    expected = hashlib.sha256(f"float32{kernel.shape}".encode() + kernel.tobytes()).hexdigest()
    assert dict(rows)["params/denoiser/stem/kernel"] == expected
    assert "step 12 of 12" in out


def test_sample_writes_a_grid_and_the_arrays_and_the_seed_decides(finished_run, cli):
    arguments = (f"--workdir={finished_run}", "--mode=sample", "--num=3", "--steps=4")
    cli.run(*arguments, "--seed=1", "--sampler=ddpm")
    cli.run(*arguments, "--seed=2", "--sampler=ddpm")
    folder = finished_run / "generated"
    names = [f"step_00000012_seed_{s}_sampler_ddpm_steps_4" for s in (1, 2)]
    first, second = (np.load(folder / f"{name}.npz")["samples"] for name in names)
    assert first.shape == (3, 8, 8, 1)
    assert first.dtype == np.uint8
    assert not np.array_equal(first, second)
    picture = np.asarray(Image.open(folder / f"{names[0]}.png"))
    np.testing.assert_array_equal(picture[:8, :8, 0], first[0, :, :, 0])
    before = first.copy()
    cli.run(*arguments, "--seed=1", "--sampler=ddpm")
    np.testing.assert_array_equal(np.load(folder / f"{names[0]}.npz")["samples"], before)


def test_eval_looks_at_the_test_split_or_repeats_the_evaluation_of_training(finished_run, cli):
    def found(*arguments):
        out, _ = cli.run(f"--workdir={finished_run}", "--mode=eval", *arguments)
        return float(re.search(r"eval/bits_per_dim (\S+)", out)[1])

    trained = [line for line in metrics(finished_run) if "eval/bits_per_dim" in line][1]
    count = len(metrics(finished_run))
    values = {split: found(f"--config.evals.split={split}") for split in ("train", "test")}
    assert found("--checkpoint=6") != found() == values["test"]
    lines = metrics(finished_run)[count:]  # none of an older checkpoint
    names = [name for line in lines for name in line if name.endswith("/bits_per_dim")]
    assert names == [f"eval/{split}/bits_per_dim" for split in ("train", "test", "test")]
    own = found("--config.evals.split=validation")
    np.testing.assert_allclose(own, trained["eval/bits_per_dim"], rtol=1e-5)
    assert len({own, *values.values()}) == 3
    *_, last = metrics(finished_run)
    assert last["eval/bits_per_dim"] == pytest.approx(own)


def test_a_live_run_is_evaluated_and_its_files_are_left_alone(finished_run, cli, tmp_path):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    own = (f"--workdir={folder}", "--mode=eval", "--config.evals.split=validation")
    with open(folder / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        out, err = cli.run(*own)
    assert "eval/bits_per_dim" in out
    assert "the run is live" in err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    out, err = cli.run(*own)
    assert "live" not in err
    assert (folder / "metrics.jsonl").read_bytes() != before[folder / "metrics.jsonl"]


def test_a_run_of_four_devices_is_used_and_resumed_on_one(cli, tmp_path):
    mesh = {"data": 1, "fsdp": 2, "sequence": 1, "tensor": 2}
    given = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    folder = tmp_path / "run"
    _, err = cli.train(folder, *given, devices=4)
    assert "does not fit" not in err
    digest = reported_digest(folder)
    whole = f"--workdir={folder}"
    for mode in (("inspect",), ("train", "--config.duration=13_steps")):
        out, err = cli.run(whole, f"--mode={mode[0]}", *mode[1:])
        was = "the run's mesh data=1, fsdp=2, sequence=1, tensor=2"
        now = "using data=-1, fsdp=1, sequence=1, tensor=1"
        assert f"{was} does not fit the devices here (1): {now}" in err, mode
        if mode[0] == "inspect":
            assert f"sha256 {digest}\n" in out
    assert steps_logged(folder) == list(range(1, 14))
    assert dict(read_config(folder).mesh) == mesh  # on four devices it is what it was
    _, err = cli.run(whole, "--config.mesh.fsdp=2", code=1)
    assert "does not fit 1 devices" in err


def test_resuming_a_finished_run_ends_at_once_and_a_longer_one_goes_on(cli, tmp_path):
    cli.train(tmp_path / "run")
    digest = reported_digest(tmp_path / "run")
    cli.train(tmp_path / "run")
    assert steps_logged(tmp_path / "run") == list(range(1, 13))
    assert reported_digest(tmp_path / "run") == digest
    cli.train(tmp_path / "run", "--config.duration=14_steps")
    assert steps_logged(tmp_path / "run") == list(range(1, 15))


def test_fine_tuning_starts_from_another_runs_parameters(finished_run, cli, tmp_path):
    _, err = cli.train(
        tmp_path / "run",
        f"--config.checkpoint.init_from={finished_run}",
        "--config.checkpoint.init_map=(('^params/(.*)$', r'ema/0.999/\\1'),)",
        "--config.duration=3_steps",
        "--config.optimizer.learning_rate=1e-30",
    )
    config = read_config(tmp_path / "run")
    run = assemble(config, devices=jax.devices()[:1])
    source = Checkpoints(finished_run).restore(run.state)
    tuned = Checkpoints(tmp_path / "run").restore(run.state)
    for a, b in zip(
        jax.tree.leaves(tuned.params), jax.tree.leaves(source.ema["0.999"]), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert f"arrays from {finished_run}" in err


def test_early_stopping_ends_a_run_and_keeps_its_best(cli, tmp_path):
    cli.train(
        tmp_path / "run",
        "--config.evals.every=1_steps",
        "--config.evals.split=validation",
        "--config.early_stop.metric=eval/bits_per_dim_prior",  # does not depend on the model
        "--config.early_stop.patience=3",
        "--config.checkpoint.best=eval/bits_per_dim",
        "--config.checkpoint.keep=1",
    )
    assert steps_logged(tmp_path / "run")[-1] == 4
    values = {
        m["step"]: m["eval/bits_per_dim"]
        for m in metrics(tmp_path / "run")
        if "eval/bits_per_dim" in m
    }
    best = min(values, key=values.get)
    assert Checkpoints(tmp_path / "run").steps() == sorted({best, 4})
    _, err = cli.run(f"--workdir={tmp_path / 'run'}")  # started again: still stopped
    assert "nothing to do" in err
    assert steps_logged(tmp_path / "run")[-1] == 4
    out, _ = cli.run(f"--workdir={tmp_path / 'run'}", "--mode=inspect", "--checkpoint=best")
    assert f"step {best} of 12" in out
    judged = ("--mode=eval", "--checkpoint=best", "--config.evals.split=test")
    _, err = cli.run(f"--workdir={tmp_path / 'run'}", *judged)
    assert "biases its test results" not in err  # the best was chosen on the validation split
    chosen = ("--config.evals.split=test", "--config.checkpoint.best=eval/bits_per_dim")
    _, err = cli.train(tmp_path / "test", *chosen, "--config.duration=3_steps")
    assert "biases its test results" in err


def test_a_diverging_run_stops_with_one_clear_error(cli, tmp_path):
    _, err = cli.train(
        tmp_path / "run",
        "--config.optimizer.name=sgd",
        "--config.optimizer.clip_norm=0",
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.max_skipped=3",
        "--config.schedule.warmup=",
        code=1,
    )
    assert "error: 3 steps in a row" in err
    assert "Traceback" not in err
    assert metrics(tmp_path / "run")[-1]["train/skipped"] == 1.0


def chorales(path):
    """Writes piano rolls in which a key stays on for a while."""
    rng = np.random.default_rng(0)

    def tune():
        return np.repeat(rng.random((12, 88)) < 0.05, 4, axis=0).astype(np.uint8)

    tunes = {"traindata": 64, "validdata": 16, "testdata": 16}
    cells = {name: np.empty((1, count), object) for name, count in tunes.items()}
    for cell in cells.values():
        cell[0] = [tune() for _ in cell[0]]
    savemat(path, cells)


# What other tests of whole runs do not train. tests/test_configs.py steps every config.
# One of images, a game, one of texts, one of rolls, one with a stage. The notebooks train others.
TRAINED = ("classifier", "dcgan", "gpt_char", "tcn_music", "vqvae_prior")


@pytest.mark.parametrize("name", TRAINED)
def test_tiny_presets_train_as_they_stand(name, cli, tmp_path):
    given = []
    if name == "tcn_music":  # whose data are a download
        chorales(tmp_path / "chorales.mat")
        given = [
            "--config.dataset.name=rolls",
            f"--config.dataset.path={tmp_path / 'chorales.mat'}",
        ]
    path = ROOT / "configs" / f"{name}.py"
    cli.run(f"--config={path}:tiny", *given, f"--workdir={tmp_path / 'run'}")
    lines = [line for line in metrics(tmp_path / "run") if "train/skipped" in line]
    assert not any(line["train/skipped"] for line in lines)
    if name == "dcgan":  # losses need not fall, but its samples differ as the data do
        spread = [lines[i]["train/generator/fake_std"] for i in (0, -1)]
        assert spread[1] > 0.3 * lines[-1]["train/generator/real_std"], spread
    else:
        # A likelihood falls to no less than the data's entropy, and the first line is already the
        # mean of many steps.
        losses = [line["train/loss"] for line in lines]
        assert losses[-1] < 0.9 * losses[0]
    assert reported_digest(tmp_path / "run")
