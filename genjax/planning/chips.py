"""The accelerators that a run can be planned for: what one chip can do, and how chips are joined.

Figures are the makers' peaks. A figure is of one device as JAX counts them, which is half a chip on
tpu7x. float32 is the rate of float32 operands at JAX's default precision: one pass of bfloat16 on
TPUs, TF32 on GPUs. Link and network figures are of one direction.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from genjax.checks import ConfigError, nearest

GB, GIB = 1e9, 2**30


class Chip(NamedTuple):
    """One kind of device.

    Attributes:
      name: as `--topology` has it.
      kind: "tpu" or "gpu".
      bfloat16: FLOP/s of products with bfloat16 operands.
      float32: the same with float32 operands.
      hbm_bytes_per_second: of its memory.
      hbm_bytes: capacity.
      link_bytes_per_second: of one TPU link in one direction, or of all NVLinks of a GPU.
      dimensions: of the torus that TPU links make; 0 for GPUs, which a switch joins.
      wraps: a side of the torus closes into a ring if it is a multiple of this.
      network_bytes_per_second: of one host to others, in one direction.
      per_host: devices of one host.
      per_chip: devices of one chip.
      called: values of `jax.Device.device_kind`, by which a device here is known. Other models of
        a GPU, such as those on PCIe, have other rates and are not known.
    """

    name: str
    kind: str
    bfloat16: float
    float32: float
    hbm_bytes_per_second: float
    hbm_bytes: int
    link_bytes_per_second: float
    dimensions: int
    wraps: int
    network_bytes_per_second: float
    per_host: int
    per_chip: int
    called: tuple[str, ...]


def _tpu(
    name: str,
    flops: float,
    hbm_gbps: float,
    hbm_gib: int,
    link_gbps: float,
    dimensions: int,
    wraps: int,
    network_gbits: float,
    per_host: int,
    called: tuple[str, ...],
    per_chip: int = 1,
) -> Chip:
    """A TPU whose figures are given for one chip, and the network's for one host."""
    return Chip(
        *(name, "tpu", flops / per_chip, flops / per_chip, hbm_gbps * GB / per_chip),
        *(hbm_gib * GIB // per_chip, link_gbps * GB / per_chip, dimensions, wraps),
        *(network_gbits * GB / 8, per_host * per_chip, per_chip, called),
    )


def _gpu(
    name: str,
    bfloat16: float,
    tf32: float,
    hbm_gbps: float,
    hbm_bytes: int,
    nvlink_gbps: float,
    network_gbits: float,
    *called: str,
) -> Chip:
    """A GPU of a host with eight, joined by NVSwitch; the network's figure is the host's."""
    return Chip(
        *(name, "gpu", bfloat16, tf32, hbm_gbps * GB, hbm_bytes, nvlink_gbps * GB, 0, 0),
        *(network_gbits * GB / 8, 8, 1, called),
    )


# TPUs: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x. Their "bidirectional ICI
# bandwidth per chip" is 2 directions x links x the figure here, rounded up; one way, 45 GB/s and
# 90 GB/s a link are what jax-ml.github.io/scaling-book/tpus has. v4 has no figure for the network:
# it is taken to be v5p's, 50 Gbit/s a chip.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", 2.75e14, 1200, 32, 45, 3, 4, 4 * 50, 4, ("TPU v4",)),
        _tpu("v5e", 1.97e14, 819, 16, 45, 2, 16, 2 * 100, 8, ("TPU v5 lite", "TPU v5e")),
        _tpu("v5p", 4.59e14, 2765, 95, 90, 3, 4, 4 * 50, 4, ("TPU v5", "TPU v5p")),
        _tpu("v6e", 9.18e14, 1638, 32, 90, 2, 16, 4 * 200, 8, ("TPU v6 lite", "TPU v6e")),
        _tpu("tpu7x", 2.307e15, 7380, 192, 90, 3, 4, 4 * 100, 4, ("TPU7x", "TPU v7x"), 2),
        # Dense peaks and NVLink of NVIDIA's datasheets of A100, H100 SXM, H200 and HGX B200; one
        # direction is half of what they call NVLink bandwidth. Memory sizes: what the driver
        # reports. Networks: DGX A100 (8 x 200 Gbit/s), DGX H100, H200 and B200 (8 x 400 Gbit/s).
        _gpu("a100", 3.12e14, 1.56e14, 2039, 85_100_068_864, 300, 8 * 200, "NVIDIA A100-SXM4-80GB"),
        _gpu(
            "h100", 9.89e14, 4.945e14, 3352, 84_942_979_072, 450, 8 * 400, "NVIDIA H100 80GB HBM3"
        ),
        _gpu("h200", 9.89e14, 4.945e14, 4800, 151_397_597_184, 450, 8 * 400, "NVIDIA H200"),
        _gpu("b200", 2.25e15, 1.125e15, 7672, 191_514_411_008, 900, 8 * 400, "NVIDIA B200"),
    )
}
EXAMPLES = "v5e:16x16, v5p:8x8x8 (chips along each side of the torus), h100:2x8 (hosts x GPUs)"


class Topology(NamedTuple):
    """Chips that are joined.

    Attributes:
      chip: their kind.
      shape: chips along each side of one slice's torus; of GPUs (hosts, GPUs a host).
      slices: how many such slices the network joins; of GPUs 1.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As `--topology` has it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Chips of all slices: what is paid for."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Devices of all slices."""
        return self.chips * self.chip.per_chip

    @property
    def island(self) -> int:
        """Devices that reach each other without the network: of a slice, or of a GPU's host."""
        if self.chip.kind == "gpu":
            return self.shape[1]
        return math.prod(self.shape) * self.chip.per_chip

    def inside(self, group: int) -> float:
        """Bytes/s that a device can send to others of a group of devices inside an island.

        A collective over a torus goes along all sides that its group fills, on both links of a
        side that is a ring. A side that is none carries everything over one link: that to the end
        of the line. The largest sides are counted first, as few as hold the group.
        """
        chip = self.chip
        if chip.kind == "gpu":
            return chip.link_bytes_per_second
        links, held = 0, chip.per_chip
        for side in sorted(self.shape, reverse=True):
            if side > 1 and (held < group or not links):
                links += 2 if side % chip.wraps == 0 else 1
                held *= side
        return max(links, 1) * chip.link_bytes_per_second

    def across(self, group: int, islands: int) -> float:
        """Bytes/s that a device can send to others of a group that spans several islands.

        What a ring sends from one island to the next leaves it once, so all members of the group in
        an island share their part of its network: all of it if they are all of its devices.
        """
        of_device = self.chip.network_bytes_per_second / min(self.chip.per_host, self.island)
        return max(1, group // islands) * of_device


def parse(text: str, slices: int = 1) -> Topology:
    """`"v5e:16x16"`, `"h100:2x8"` as a topology.

    Raises:
      ConfigError: an unknown chip, or a shape that it cannot have.
    """
    name, _, sides = text.lower().partition(":")
    if name not in CHIPS:
        raise ConfigError(
            f"--topology={text}: no chip {name!r} is known. Nearest: {nearest(name, CHIPS)}. Known "
            f"are {', '.join(CHIPS)}, as in {EXAMPLES}."
        )
    chip, shape = CHIPS[name], tuple(map(int, re.findall(r"\d+", sides)))
    count = chip.dimensions or 2
    whole = bool(re.fullmatch(r"\d{1,5}(x\d{1,5})*", sides)) and all(shape)
    if not whole or len(shape) != count:
        raise ConfigError(
            f"--topology={text}: expected {count} numbers joined by x after {name}:, as in "
            f"{EXAMPLES}."
        )
    if chip.kind == "gpu" and shape[1] > chip.per_host:
        raise ConfigError(
            f"--topology={text}: {shape[1]} GPUs a host. Expected at most {chip.per_host}: give "
            f"hosts x GPUs, such as {name}:2x8."
        )
    if slices < 1 or (slices > 1 and chip.kind == "gpu"):
        raise ConfigError(
            f"--slices={slices}: expected 1 or more, of TPUs. Of GPUs give more hosts: "
            "--topology=h100:4x8."
        )
    return Topology(chip, shape, slices)


def of_device(kind: str) -> Chip | None:
    """The chip that JAX calls `kind` (`jax.Device.device_kind`); None of one that is not known."""
    return next((chip for chip in CHIPS.values() if kind in chip.called), None)
