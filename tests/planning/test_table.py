"""Prices, units and advice of a plan."""

from pathlib import Path

import pytest

from genjax import config as configs
from genjax.planning.chips import parse
from genjax.planning.estimate import Estimate, Memory
from genjax.planning.flops import Flops
from genjax.planning.roofline import roofline
from genjax.planning.table import advice, cost, duration, gib, span, summary

CONFIGS = Path(__file__).parents[2] / "configs"
GIB = 2**30


def planned(peak=8 * GIB, compiled=True):
    figures = roofline(flops=2e14, model_flops=1e14, peak_flops=1e14, hbm_bytes=1e12, hbm_rate=1e12)
    memory = Memory(GIB, 2 * GIB, 0, 0, 0, peak - 3 * GIB, peak, 16 * GIB)
    mesh = {"data": 4, "fsdp": 4, "tensor": 1}
    rest = (figures if compiled else None, 1.0)
    return Estimate("train", mesh, 64, 0, memory, Flops(2e14), 1e12, (), (), *rest)


def test_a_price_is_chips_times_hours():
    # A million examples are 15,625 steps of 2 s: 8.68 hours of 16 chips at 1.20.
    price = cost(planned(), 2.0, parse("v5e:4x4"), 1.2)
    assert price == pytest.approx(15_625 * 2 / 3600 * 16 * 1.2)
    found = summary(planned(), parse("v5e:4x4"), price=1.2)
    assert found["cost_of_million_overlapped"] == pytest.approx(price)
    assert found["cost_of_million_serial"] == pytest.approx(1.5 * price)


def test_what_does_not_fit_says_by_how_much_and_what_to_change():
    config = configs.load(f"{CONFIGS / 'llama.py'}:7b")
    config.accumulation = 1
    too_large = planned(20 * GIB, compiled=False)
    assert not too_large.fits
    said = advice(config, too_large)
    assert "by 4.00 GiB a device" in said
    assert "--config.model.lm.remat=full" in said
    assert "--config.accumulation=2" in said
    assert summary(too_large, parse("v5e:4x4"))["mfu_serial"] is None


def test_units():
    assert (gib(3 * GIB), gib(5 * 2**20), gib(12)) == ("3.00 GiB", "5.00 MiB", "12 B")
    assert (duration(2.5), duration(0.0123), duration(4e-6)) == ("2.5 s", "12.3 ms", "4 us")
    assert (span(1.5, 20_000), span(3, 3)) == ("1.5 to 20,000", "3")
