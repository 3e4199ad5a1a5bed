"""The roofline against arithmetic by hand."""

import pytest

from genjax.planning.roofline import roofline


def test_roofline_by_hand():
    chip = {"peak_flops": 200e12, "hbm_rate": 800e9, "ici_rate": 90e9, "dcn_rate": 6e9}
    work = {"flops": 40e12, "model_flops": 30e12, "hbm_bytes": 80e9}
    roof = roofline(**work, ici_bytes=18e9, dcn_bytes=0.3e9, **chip)
    assert roof[:4] == pytest.approx((0.2, 0.1, 0.2, 0.05))
    assert roof.seconds_overlapped == pytest.approx(0.2)
    assert roof.seconds_serial == pytest.approx(0.55)
    assert roof.mfu_overlapped == pytest.approx(0.15 / 0.2)
    assert roof.mfu_serial == pytest.approx(0.15 / 0.55)
    assert roofline(**work, ici_bytes=0, **chip).bound_by == "compute"
    assert roofline(**work, ici_bytes=27e9, **chip).bound_by == "ici"
    assert roofline(**work, dcn_bytes=6e9, **chip).bound_by == "dcn"
    assert roofline(**work | {"hbm_bytes": 800e9}, **chip).bound_by == "hbm"


def test_a_rate_that_is_missing_is_an_error():
    work = {"flops": 1e12, "model_flops": 1e12, "hbm_bytes": 1e9}
    with pytest.raises(ValueError, match="ici: 5 at a rate of 0"):
        roofline(**work, ici_bytes=5, peak_flops=1e14, hbm_rate=1e12)
    with pytest.raises(ValueError, match="without FLOPs"):
        roofline(flops=0, model_flops=0, hbm_bytes=0, peak_flops=1e14, hbm_rate=1e12)
