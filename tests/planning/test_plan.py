"""--mode=plan from end to end, on the devices here."""

import json
from pathlib import Path

import pytest

from genjax import main
from genjax.planning.programs import too_large

CONFIGS = Path(__file__).parents[2] / "configs"
KEYS = {
    *("fits", "hbm_peak_bytes", "hbm_capacity_bytes", "flops", "model_flops", "collective_bytes"),
    *("seconds_compute", "seconds_hbm", "seconds_ici", "mfu_overlapped", "mfu_serial"),
    *("bound_by", "compile_seconds"),
}


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    """An empty cache: a plan needs no data."""
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)


# The tiny preset, smaller still: a program that compiles in seconds.
SMALL = (
    f"--config={CONFIGS / 'ddpm.py'}:tiny",
    "--config.batch_size=8",
    "--config.model.denoiser.channels=8",
    "--config.model.denoiser.multipliers=(1,)",
    "--config.model.denoiser.attention=()",
)


def plan(capsys, *arguments, code=0):
    assert main.main([*arguments, "--mode=plan"]) == code
    out, err = capsys.readouterr()
    return (json.loads(out.splitlines()[-1]), out) if not code else err


def test_a_step_is_planned_and_measured(capsys):
    found, text = plan(capsys, *SMALL)
    assert found.keys() >= KEYS
    assert found["fits"]
    assert found["mesh"] == {"data": 8, "fsdp": 1, "sequence": 1, "tensor": 1}
    assert 0 < found["model_flops"] <= found["flops"]
    assert found["seconds_measured"] > 0
    assert found["hbm_peak_bytes"] > 0
    # Data parallelism: one all-reduce of the gradients, and of a few metrics.
    assert found["collective_bytes"] == pytest.approx(found["least_collective_bytes"], rel=0.05)
    assert "all-reduce" in text
    assert not (Path.cwd() / "runs").exists()


def test_a_sampler_is_planned_with_its_options(capsys):
    sampler = (*SMALL, "--what=sample", "--num=8")
    few, _ = plan(capsys, *sampler, "--steps=2")
    more, _ = plan(capsys, *sampler, "--steps=4")
    assert (few["what"], few["examples"]) == ("sample", 8)
    assert more["flops"] == pytest.approx(2 * few["flops"], rel=0.02)


def test_text_is_planned_without_any(capsys):
    found, text = plan(
        capsys,
        f"--config={CONFIGS / 'llama.py'}:7b",
        *("--config.dataset.text.length=16", "--config.batch_size=16", "--config.accumulation=2"),
        *("--config.model.lm.width=32", "--config.model.lm.hidden=64", "--config.model.lm.depth=2"),
        *("--config.model.lm.heads=2", "--config.model.lm.kv_heads=1"),
        *("--config.dataset.text.vocabulary_size=512", "--config.model.lm.remat=full"),
    )
    assert found["tokens"] == 16 * 16
    assert found["flops"] > 1.1 * found["model_flops"]  # recomputed
    assert "16 examples in 2 microbatches, 256 tokens" in text


def test_a_search_ranks_what_it_compiles(capsys):
    found, text = plan(capsys, *SMALL, "--search=1")
    assert found.keys() >= KEYS
    assert "best: --config.mesh.data=" in text
    assert {"mesh.data", "mesh.fsdp", "accumulation"} <= found.keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology=v9:4x4"], "no chip 'v9' is known"),
        (["--topology=v5e:4"], "expected 2 numbers"),
        (["--slices=2"], "--slices goes with --topology"),
        (["--config.mesh.fsdp=3"], "does not fit 8 devices"),
        (["--config.batch_size=2"], "is not divisible by the 8 devices"),
        (["--price=-1"], "--price=-1"),
        (["--what=sample", "--search"], "--search=8"),
    ],
)
def test_bad_input_is_one_error(capsys, arguments, said):
    error = plan(capsys, *SMALL, *arguments, code=1)
    assert said in error
    assert error.count("error:") == 1


def test_flags_of_a_plan_belong_to_it(capsys):
    assert main.main([SMALL[0], "--topology=v5e:4x4"]) == 1
    assert "--topology belongs to --mode=plan" in capsys.readouterr().err


def test_a_compiler_says_how_much_is_missing():
    # What libtpu 0.0.42 says of llama 7B on v5e:16x16, and of larger arguments.
    assert too_large(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (87.65G) exceeds available HBM (15.75G)."
    ) == (int(87.65 * 2**30), int(15.75 * 2**30))
    assert too_large(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 22.94G of 15.75G hbm. Exceeded hbm capacity by 7.19G."
    ) == (int(22.94 * 2**30), int(15.75 * 2**30))
    assert too_large("INTERNAL: something else") is None
