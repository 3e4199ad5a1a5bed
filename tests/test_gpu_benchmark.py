"""benchmarks/gpu.sh: a dry run on the CPU, and what its report makes of made-up results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from genjax.planning.flops import count

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_checks  # noqa: E402
import gpu_lacking  # noqa: E402
import gpu_runs  # noqa: E402
import gpu_sizes  # noqa: E402
from gpu_parts import record  # noqa: E402


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """Its exit code, its report, and what it printed."""
    target = tmp_path_factory.mktemp("gpu") / "gpu.json"
    arguments = ("--tiny", "--networks=dcgan", "--seconds=0.1", "--minutes=30")
    arguments += ("--torch_python=/bin/false",)
    done = subprocess.run(
        [BENCHMARKS / "gpu.sh", f"--output={target}", *arguments],
        env=os.environ
        | {
            "PYTHON": sys.executable,
            "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1"),
        },
        capture_output=True,
        text=True,
    )
    assert target.exists(), done.stderr
    return done.returncode, json.loads(target.read_text()), done.stdout


def test_a_dry_run_on_a_cpu_checks_measures_and_says_what_it_left_out(dry_run):
    code, report, printed = dry_run
    parts = report["parts"]
    assert code == 0, report["failed"]
    assert report["tiny"]
    assert parts["environment"]["result"]["platform"] == "cpu"
    assert parts["warm/dcgan"]["status"] == "ok"
    checked = parts["golden/dcgan/highest"]["result"]
    assert all(checked["gaps"][name] <= most for name, most in checked["tolerances"].items())
    assert checked["gaps"]["loss"] < 1e-5  # the golden values are a CPU's
    results = report["networks"]["dcgan"]
    assert 0 < results["genjax"]["lowest"] <= results["genjax"]["milliseconds"]
    assert results["genjax"]["first_step_seconds"] > 0
    assert results["mfu"]["model_flops"] > 0
    assert results["mfu"]["mfu"] is None  # no CPU's peak is known
    assert 0 < results["plan"]["milliseconds_overlapped"] <= results["plan"]["milliseconds_serial"]
    assert parts["torch/dcgan"]["status"] == "left out"
    assert "/bin/false has no PyTorch" in parts["torch/dcgan"]["error"]
    assert results["times_torch"] is None
    assert report["goals"]["dcgan ahead of torch"] is None
    assert "goal: dcgan ahead of torch: not measured" in printed
    assert all(part["seconds"] >= 0 for part in parts.values())


def test_flops_are_those_of_the_layers(dry_run):
    """DCGAN by hand: both players' passes, each product of a layer once forward and twice back."""
    results = dry_run[1]["networks"]["dcgan"]["mfu"]
    batch, channels, colors, taps = 4, 8, 3, 16
    # Side 16: convolutions to 8 x 8 x 8 and 4 x 4 x 16; a transposed one has as many products.
    first, second = 64 * taps * colors * channels, 16 * taps * channels * 2 * channels
    stem, head = 100 * 256, 256
    # The discriminator is told real and made images: forward, by its parameters, and by what goes
    # in but at the first layer. The generator makes them once without a gradient; once with one,
    # through the discriminator's inputs alone.
    generator, discriminator = stem + second + first, first + second + head
    judged = 2 * (3 * discriminator - first) + generator
    generated = (3 * generator - stem) + 2 * discriminator
    assert results["model_flops"] == pytest.approx(2 * batch * (judged + generated), rel=0.01)


@pytest.mark.parametrize(
    ("network", "flops"), [("dit", 17_664_646_840_320), ("dcgan", 317_936_631_808)]
)
def test_flops_of_the_raced_networks_are_those_that_torch_counts(network, flops):
    """By torch.utils.flop_counter, of benchmarks/gpu_torch.py's step (its part torch_flops)."""
    run = gpu_runs.assembled(network, gpu_sizes.RACED[network], "bfloat16")
    with jax.set_mesh(run.mesh):
        counted = count(run.step.trace(run.state, run.batch).jaxpr)
    assert counted.model == pytest.approx(flops, rel=1e-4)
    assert not counted.uncounted


class Script:
    """A process of one part that goes as its name says."""

    def __init__(self, tmp_path):
        self.path = tmp_path / "script.py"
        good = json.dumps(record("a", "ok", 0.0, {"milliseconds": 1.0}))
        self.path.write_text(
            f"import sys, time\nprint({good!r}, flush=True)\n"
            "if sys.argv[1] == 'hangs': time.sleep(60)\n"
            "raise SystemExit('something is wrong')\n"
        )

    def run(self, how, seconds=30, needed=True):
        child = gpu.Child(("a", "b", "c"), (str(self.path), how), seconds, needed=needed)
        return gpu.run(child, sys.executable, seconds, dict(os.environ))


@pytest.mark.parametrize(
    ("how", "seconds", "reason"),
    [("fails", 30, "something is wrong"), ("hangs", 2, "stopped after 2 s")],
)
def test_a_process_that_fails_or_hangs_is_reported_and_its_first_parts_count(
    how, seconds, reason, tmp_path
):
    records = Script(tmp_path).run(how, seconds)
    assert [records[name]["status"] for name in "abc"] == ["ok", "failed", "left out"]
    assert reason in records["b"]["error"]
    assert "b came before" in records["c"]["error"]


def test_a_process_that_only_saves_time_may_fail(tmp_path):
    records = Script(tmp_path).run("fails", needed=False)
    assert [records[name]["status"] for name in "abc"] == ["ok", "left out", "left out"]
    assert "something is wrong" in records["b"]["error"]


def test_a_network_is_set_against_torch_and_its_plan():
    parts = {
        f"{side}/gpt2": record(f"{side}/gpt2", "ok", 1.0, result)
        for side, result in {
            "genjax": {"milliseconds": 80.0},
            "torch": {"milliseconds": 100.0},
            "mfu": {"mfu": 0.5, "model_flops": 10.0},
            "torch_flops": {"flops": 11.0},
            "plan": {"overlapped_to_measured": 0.7},
        }.items()
    }
    results = gpu.compared(parts, ["gpt2", "dit"])
    assert list(results) == ["gpt2"]
    assert results["gpt2"]["times_torch"] == pytest.approx(1.25)
    assert results["gpt2"]["torch_mfu"] == pytest.approx(0.4)
    assert results["gpt2"]["mfu_by_torch_flops"] == pytest.approx(0.55)
    assert list(gpu.goals(results).values()) == [True, True, False]
    assert "1.25" in gpu.table(results)


def test_a_wrong_gradient_sample_or_resumed_run_is_a_gap():
    golden = gpu_checks.golden_of("dcgan")
    ours = dict(golden) | {"resumed": golden["training"]}
    assert max(gpu_checks.gaps(ours, golden).values()) == 0
    gradient = dict(ours) | {"products": -golden["products"]}
    assert gpu_checks.gaps(gradient, golden)["gradient"] > 0.3
    sample = dict(ours) | {"samples": 255 - golden["samples"]}
    assert gpu_checks.gaps(sample, golden)["samples"] > 0.05
    resumed = dict(ours) | {"resumed": np.roll(golden["training"], 1, 0)}
    assert gpu_checks.gaps(resumed, golden)["resumed"] > 0.03


def test_only_wheels_that_are_missing_or_too_old_are_installed(monkeypatch):
    assert not gpu_lacking.lacks("flax")
    assert gpu_lacking.lacks("no-such-package")
    monkeypatch.setitem(gpu_lacking.LEAST, "flax", "999")
    assert gpu_lacking.lacks("flax")
    assert gpu_lacking.name_of(Path("ml_collections-1.1.0-py3-none-any.whl")) == "ml-collections"
