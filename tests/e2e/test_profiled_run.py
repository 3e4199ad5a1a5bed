"""--config.profile from the command line: the trace, its table, and a run that is as without."""

import json
import time

import pytest
from command_line import metrics, reported_digest, timeless_metrics


def test_a_profiled_run_is_the_same_run_and_leaves_a_trace_and_a_table(finished_run, cli, tmp_path):
    folder, began = tmp_path / "run", time.time()
    _, err = cli.train(folder, "--config.profile=3_steps")
    first, passed = metrics(folder)[0], metrics(folder)[0]["time"] - began
    assert passed / 2 < first["train/seconds_to_first_step"] < passed
    assert "profile of steps 3 to 5" in err
    assert err.split("profile of")[1].splitlines()[0] in (folder / "log.txt").read_text()
    assert list((folder / "profile").rglob("*.xplane.pb"))
    assert timeless_metrics(folder) == timeless_metrics(finished_run)
    assert reported_digest(folder) == reported_digest(finished_run)
    assert json.loads((folder / "config.json").read_text())["config"]["profile"] == ""

    count = len(metrics(folder))
    own = "--config.evals.split=validation"
    fast = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}  # as a user has it
    profiled = (f"--workdir={folder}", "--mode=eval", own, "--config.profile=1_steps")
    out, err = cli.run(*profiled, environment=fast)
    assert "profile of the evaluation" in err
    assert "/convolution/" in err
    assert "eval/bits_per_dim" in out
    assert len(metrics(folder)) == count + 1  # still the run's own evaluation
    _, err = cli.run(f"--workdir={folder}", "--mode=sample", "--num=2", "--config.profile=1_steps")
    assert "profile of the sampling" in err


@pytest.mark.parametrize("given", ["100", "banana", "0_steps", "-1_steps"])
def test_what_is_no_duration_is_refused(given, cli, tmp_path):
    _, err = cli.train(tmp_path / "run", f"--config.profile={given}", code=1)
    assert err.startswith(f"error: config.profile='{given}'")
    assert len(err.splitlines()) == 1
