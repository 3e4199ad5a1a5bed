"""A roofline: the least time that a chip needs for what a program computes, moves and sends.

Williams, Waterman & Patterson 2009, with the networks between chips as two more roofs.
"""

from __future__ import annotations

from typing import NamedTuple


class Roofline(NamedTuple):
    """The least time of a step.

    Attributes:
      seconds_compute: of its products.
      seconds_hbm: of its memory's traffic.
      seconds_ici: of what a chip sends inside its slice or node.
      seconds_dcn: of what it sends outside.
      seconds_overlapped: if all four go on at the same time: the longest.
      seconds_serial: if they wait for each other: the sum.
      mfu_overlapped: the model's FLOPs over what the chip can do in `seconds_overlapped`.
      mfu_serial: the same in `seconds_serial`.
      bound_by: which of the four takes longest: "compute", "hbm", "ici" or "dcn".
    """

    seconds_compute: float
    seconds_hbm: float
    seconds_ici: float
    seconds_dcn: float
    seconds_overlapped: float
    seconds_serial: float
    mfu_overlapped: float
    mfu_serial: float
    bound_by: str


def roofline(
    *,
    flops: float,
    model_flops: float,
    peak_flops: float,
    hbm_bytes: float,
    hbm_rate: float,
    ici_bytes: float = 0.0,
    ici_rate: float = 0.0,
    dcn_bytes: float = 0.0,
    dcn_rate: float = 0.0,
) -> Roofline:
    """The roofline of one step on one chip.

    Args:
      flops: that the chip executes.
      model_flops: its share of the model's own FLOPs, without recomputation.
      peak_flops: what it can do in a second.
      hbm_bytes: that it reads and writes in its memory.
      hbm_rate: the most of those in a second.
      ici_bytes: that it sends to chips of its slice or node.
      ici_rate: the most of those in a second, over all of its links that are used at once.
      dcn_bytes: that it sends to chips elsewhere.
      dcn_rate: the most of those in a second.

    Raises:
      ValueError: there is work whose rate is not above 0, or no work at all.
    """
    parts = {
        "compute": (flops, peak_flops),
        "hbm": (hbm_bytes, hbm_rate),
        "ici": (ici_bytes, ici_rate),
        "dcn": (dcn_bytes, dcn_rate),
    }
    seconds = {}
    for name, (amount, rate) in parts.items():
        if amount and not rate > 0:
            raise ValueError(f"{name}: {amount:g} at a rate of {rate}: expected a rate above 0")
        seconds[name] = amount / rate if amount else 0.0
    overlapped, serial = max(seconds.values()), sum(seconds.values())
    if not overlapped > 0:
        raise ValueError(f"a step without FLOPs or bytes: {parts}: expected some of either")
    ideal = model_flops / peak_flops
    return Roofline(
        *seconds.values(),
        seconds_overlapped=overlapped,
        seconds_serial=serial,
        mfu_overlapped=ideal / overlapped,
        mfu_serial=ideal / serial,
        bound_by=max(seconds, key=seconds.get),
    )
