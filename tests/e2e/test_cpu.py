"""Who computes on a CPU, in which precision, and what a run says and keeps of it."""

import json

from command_line import reported_digest

from genjax.nn.cpu import onednn

BY = "convolutions and matrix products use"


def precision_of(workdir):
    return json.loads((workdir / "config.json").read_text())["config"]["precision"]


def report_says(workdir):
    return (workdir / "report.html").read_text()


def test_a_run_says_that_onednn_computes_and_begins_in_the_fastest_type(library, cli, tmp_path):
    _, err = cli.train(tmp_path / "run", "--config.precision=auto")
    assert f"{BY} oneDNN {library.version}" in err
    assert f"oneDNN {library.version}" in report_says(tmp_path / "run")
    assert f"{BY} oneDNN {library.version}" in (tmp_path / "run" / "log.txt").read_text()
    with onednn.used(library):
        fast = "bfloat16" if onednn.multiplies("bfloat16") else "float32"
    assert precision_of(tmp_path / "run") == fast
    # "auto" is the run's own precision from then on, whoever computes
    again = ("--config.precision=auto", "--config.cpu_library=xla", "--config.duration=15_steps")
    _, err = cli.train(tmp_path / "run", *again)
    assert f"{BY} XLA: config.cpu_library" in err
    assert precision_of(tmp_path / "run") == fast
    assert "finished at step 15" in err
    other = "float32" if fast == "bfloat16" else "bfloat16"
    _, err = cli.train(tmp_path / "run", f"--config.precision={other}", code=1)
    assert f"config.precision: '{fast}' -> '{other}'" in err


def test_where_onednn_cannot_be_had_xla_computes_and_the_run_says_why(cli, tmp_path):
    options = {"environment": {"CXX": "/bin/false"}}
    _, err = cli.train(tmp_path / "run", "--config.precision=auto", **options)
    why = "the compiler /bin/false failed"
    (line,) = (line for line in err.splitlines() if BY in line)
    assert line.startswith(f"{BY} XLA: ")
    assert why in line
    assert why in report_says(tmp_path / "run")
    assert reported_digest(tmp_path / "run")
