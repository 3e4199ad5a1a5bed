"""Early stopping, from a written history."""

import json

import pytest

from genjax import config as configs
from genjax.training.early_stop import exhausted


def stops(tmp_path, values, **options):
    config = configs.base()
    config.early_stop.update({"metric": "eval/loss", "patience": 2} | options)
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 10 * i, "time": 0.0, "eval/loss": v} for i, v in enumerate(values)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return exhausted(config, path)


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([3.0, 2.0, 1.0], {}, False),
        ([3.0, 2.0, 2.5], {}, False),
        ([3.0, 2.0, 2.5, 2.0], {}, True),  # equal is no improvement
        ([3.0, 2.0, 2.5, 1.9], {}, False),
        ([3.0, 2.0, 2.5, 1.95], {"min_delta": 0.1}, True),
        ([1.0, 2.0, 1.5, 1.5], {"mode": "max"}, True),
        ([1.0, 2.0, 1.5, 2.5], {"mode": "max"}, False),
        ([2.0, None, None], {}, True),
        ([3.0, 3.0, 3.0], {"metric": ""}, False),
    ],
)
def test_patience_counts_evaluations_without_improvement(tmp_path, values, options, expected):
    assert stops(tmp_path, values, **options) is expected


def test_nothing_evaluated_yet_is_no_reason_to_stop(tmp_path):
    assert stops(tmp_path, [1.0], metric="eval/other") is False
