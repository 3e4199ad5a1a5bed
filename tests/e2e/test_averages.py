"""Averages of the weights: kept in a run, put together after it, and guides."""

import chex
import jax
import numpy as np
import pytest
from command_line import DDPM, FAST, ROOT, metrics

from genjax.interop import safetensors
from genjax.main import main
from genjax.training import ema, snapshots
from genjax.training.assemble import assemble
from genjax.training.checkpoint import Checkpoints
from genjax.training.workdir import read_config

KEPT = ["--config.ema.power=(0.05,0.1)", "--config.ema.snapshots=4_steps"]
TRAIN = [f"--config={DDPM}:tiny", *FAST, *KEPT, "--config.model.denoiser.channels=16"]
TRAIN += ["--config.mesh.data=1", "--config.mesh.fsdp=8", "--config.evals.samples=0"]
TRAIN += ["--config.evals.every=4_steps"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run whose parameters are sharded."""
    folder = tmp_path_factory.mktemp("averages") / "run"
    assert main([*TRAIN, f"--workdir={folder}"]) == 0
    return folder


def kept_in(folder, like):
    kept = Checkpoints(folder, name=snapshots.FOLDER)
    return {step: kept.restore(like, step) for step in kept.steps()}


def at(folder, whole, step):
    return Checkpoints(folder).restore(whole.state, step)


def test_a_sum_of_snapshots_is_sharded_as_the_parameters_and_is_that_sum(run):
    whole = assemble(read_config(run))
    state = at(run, whole, 12)
    found = snapshots.parameters(whole, run, state, "0.08", "--ema")
    before = kept_in(run, snapshots.of(whole.config, whole.state))
    sources = [(d, step) for step in before for d in (0.05, 0.1)]
    factors, _ = ema.coefficients(*zip(*sources, strict=True), 0.08, 12)
    trees = [before[step][f"power_{d}"]["denoiser"] for d, step in sources]
    expected = sum_of(trees, factors)
    chex.assert_trees_all_close(found["denoiser"], expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(
        *({k: v.sharding for k, v in flat(t).items()} for t in (found, whole.state.params))
    )
    assert any(not leaf.sharding.is_fully_replicated for leaf in flat(found).values())
    early = snapshots.parameters(whole, run, at(run, whole, 8), "0.08", "--ema")
    sources = [(d, step) for d, step in sources if step <= 8]
    factors, _ = ema.coefficients(*zip(*sources, strict=True), 0.08, 8)
    chex.assert_trees_all_close(
        early["denoiser"], sum_of(trees[: len(sources)], factors), rtol=1e-5, atol=1e-6
    )


def flat(tree):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def sum_of(trees, factors):
    return jax.tree.map(
        lambda *leaves: sum(f * np.asarray(x) for f, x in zip(factors, leaves, strict=True)), *trees
    )


def samples_of(folder, *arguments):
    before = set(folder.glob("generated/*.npz"))
    assert main([f"--workdir={folder}", "--mode=sample", "--num=8", *arguments]) == 0
    (file,) = set(folder.glob("generated/*.npz")) - before
    return np.load(file)["samples"]


def test_samples_and_evaluations_use_the_average_that_is_named(run, capsys):
    lines = len(metrics(run))
    found = [samples_of(run, *given) for given in (["--ema=0.08"], ["--ema=0.1"])]
    assert (found[0] != found[1]).any()
    split = "--config.evals.split=validation"
    assert main([f"--workdir={run}", "--mode=eval", split, "--ema=0.08"]) == 0
    bits = float(capsys.readouterr().out.partition("eval/bits_per_dim ")[2].split()[0])
    (own,) = [
        m["eval/bits_per_dim"]
        for m in metrics(run)
        if m.get("step") == 12 and "eval/bits_per_dim" in m
    ]
    assert 0 < abs(bits / own - 1) < 0.5
    assert len(metrics(run)) == lines  # they are not the run's own evaluations


def test_a_language_model_is_exported_by_the_average_that_is_named(tmp_path, capsys):
    folder = tmp_path / "run"
    tiny = [f"--config={ROOT / 'configs' / 'gpt_char.py'}:tiny", "--config.duration=20_steps"]
    tiny += ["--config.evals.every=", "--config.evals.limit=16", "--config.evals.samples=0"]
    tiny += [
        "--config.schedule.warmup=",
        "--config.evals.judges=",
        "--config.steps_per_dispatch=5",
        *KEPT,
    ]
    assert main([*tiny, f"--workdir={folder}", "--config.ema.snapshots=4_steps"]) == 0
    assert Checkpoints(folder, name=snapshots.FOLDER).steps() == [4, 8, 12, 16, 20]
    found = {}
    for name in ("0.05", "0.08", "0.1"):
        output = tmp_path / name
        export = ["--mode=export", f"--ema={name}", f"--output={output}"]
        assert main([f"--workdir={folder}", *export]) == 0
        found[name] = np.concatenate(
            [np.ravel(x) for _, x in sorted(safetensors.read(output / "model.safetensors").items())]
        )
    short, middle, long = found.values()
    apart = np.linalg.norm(short - long)
    assert 0 < np.linalg.norm(middle - long) < apart  # between them
    assert 0 < np.linalg.norm(middle - short) < apart
    capsys.readouterr()
    assert main([f"--workdir={folder}", "--mode=sample", "--guide_checkpoint=8"]) == 1
    assert "--guide_checkpoint=8: method 'lm' cannot be guided" in capsys.readouterr().err


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """A family whose samples are those of the guide."""
    folder = tmp_path_factory.mktemp("guided")
    family = ROOT / "tests" / "families" / "guided_mean.py"
    few = [f"--config={family}", "--config.evals.samples=0"]
    assert main([*few, *KEPT, f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


def test_guides_are_other_averages_and_other_checkpoints(guided):
    whole = assemble(read_config(guided))

    def expected(step, average):
        state = at(guided, whole, step)
        image = snapshots.parameters(whole, guided, state, average, "")["mean"]["image"]
        return np.asarray(image)[3]

    for given, step, average in [
        (["--guide_ema=0.08"], 100, "0.08"),
        (["--guide_checkpoint=50", "--guide_ema=none", "--ema=0.1"], 50, "none"),
        (["--guide_checkpoint=50", "--ema=0.07"], 50, "0.07"),
    ]:
        drawn = samples_of(guided, "--label=3", *given)
        wanted = np.clip(np.round((expected(step, average) + 1) * 127.5), 0, 255)
        np.testing.assert_allclose(drawn[0], wanted, atol=1, err_msg=str(given))
    assert np.abs(expected(100, "none") - expected(50, "none")).max() > 0.05


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--ema=0.9"], ["--ema=0.9", "0.999, power_0.05, power_0.1", "config.ema.decay=(0.9,)"]),
        (["--guide_checkpoint=8"], ["guidance=1 is none", "give --mode=sample --guidance=2"]),
        (["--mode=inspect", "--ema=0.1"], ["--ema belongs to --mode=sample"]),
        (["--mode=export", "--guide_ema=0.1"], ["--guide_ema belongs to --mode=sample"]),
        (["--mode=eval", "--samples=test", "--ema=0.1"], ["leave out --ema"]),
    ],
)
def test_what_cannot_be_is_refused(run, capsys, arguments, expected):
    assert main([f"--workdir={run}", "--mode=sample", *arguments]) == 1
    said = capsys.readouterr().err
    for part in expected:
        assert part in said


def test_a_guide_of_no_checkpoint_is_refused(guided, capsys):
    for given, part in [("7", "no checkpoint of step 7"), ("first", "--guide_checkpoint='first'")]:
        flags = ["--mode=sample", f"--guide_checkpoint={given}"]
        assert main([f"--workdir={guided}", *flags]) == 1
        assert part in capsys.readouterr().err
