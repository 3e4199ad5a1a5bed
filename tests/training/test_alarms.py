"""Alarms, from a written history; and that the log and the report have them."""

import json
import re
from pathlib import Path

import pytest

from genjax import config as configs
from genjax import main, method
from genjax.data.sources import image_fields
from genjax.training.alarms import ringing
from genjax.training.report import write_report

ALARM = method.Alarm("eval/perplexity", 5.0, 2, "raise the dead.")


def history(tmp_path, values):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 10 * i, "time": 0.0, "eval/perplexity": v} for i, v in enumerate(values)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("values", "rings"),
    [
        ([], False),
        ([4.0], False),
        ([4.0, 4.9], True),
        ([4.0, 5.0], False),
        ([4.0, 4.0, 6.0], False),
        ([6.0, 4.0, 4.0], True),
        ([4.0, None], False),
    ],
)
def test_an_alarm_rings_after_so_many_evaluations_below_its_bound(tmp_path, values, rings):
    said = ringing([ALARM], history(tmp_path, values))
    assert len(said) == rings
    for text in said:
        assert text == ("eval/perplexity has been below 5 for 2 evaluations: raise the dead.")


def test_no_alarm_for_a_metric_that_is_not_there(tmp_path):
    assert ringing([ALARM._replace(metric="eval/other")], history(tmp_path, [1.0, 1.0])) == []


def test_the_report_shows_warnings(tmp_path):
    page = write_report(tmp_path, digest=None, environment={}, warnings=["x < y"]).read_text()
    assert '<div class="card warning">x &lt; y</div>' in page


def test_a_collapsed_codebook_is_warned_of(tmp_path, capsys):
    """A codebook of 64 random codes, none restarted: few are the nearest of any vector."""
    config = Path(__file__).parent.parent.parent / "configs" / "vqvae.py"
    values = {
        "duration": "4_steps", "evals.every": "1_steps", "evals.samples": 0, "vqvae.codes": 64,
        "model.encoder.channels": 8, "model.decoder.channels": 8, "vqvae.kmeans": 0,
        "vqvae.restart_below": 0.0, "vqvae.decay": 0.01, "vqvae.collapse_below": 0.9,
        "vqvae.collapse_after": 2,
    }  # fmt: skip
    given = [f"--config={config}:tiny", *(f"--config.{k}={v}" for k, v in values.items())]
    assert main.main([*given, f"--workdir={tmp_path / 'run'}"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "has been below" in line]
    assert len(said) == 3  # after the second evaluation, the third and the fourth
    assert "eval/lowest_code_perplexity has been below 57.7 for 2 evaluations: few" in said[0]
    assert "vqvae.restart_below" in said[0]
    assert "few of the 64 codes" in (tmp_path / "run" / "report.html").read_text()


def test_a_gan_watches_its_diversity_on_any_features():
    config = configs.load(str(Path(__file__).parents[2] / "configs" / "dcgan.py"))
    fields = image_fields((28, 28, 1), 0)
    built = method.build(config, method.DataSpec("x", fields, "image", {}))
    (alarm,) = built.alarms
    assert re.fullmatch(alarm.metric, "eval/diversity_classifier")
    assert not re.fullmatch(alarm.metric, "eval/fd_classifier")


def test_each_metric_that_a_regex_matches_is_watched(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": s, "eval/a_x": 0.0, "eval/a_y": 1.0, "eval/a_z": 0.0} for s in (1, 2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = ringing([method.Alarm(r"eval/a_\w", 0.5, 2, "advice")], path)
    assert [text.split()[0] for text in found] == ["eval/a_x", "eval/a_z"]
