"""What XLA has to know of a GPU to compile for it without having one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from jax._src.cudnn import fused_attention_stablehlo

from genjax.planning.chips import Chip


class Facts(NamedTuple):
    """What a driver says of a GPU: the figures that XLA's own `target_config/specs` have.

    Attributes:
      called: the driver's name of it.
      capability: major and minor number.
      extension: of the architecture, in XLA's words.
      cores: streaming multiprocessors.
      lanes: float32 units of each.
      clock_ghz: the highest.
      cache: bytes of the second level.
      shared: bytes of shared memory of a core; a block can have 1,024 less.
    """

    called: str
    capability: tuple[int, int]
    extension: str
    cores: int
    lanes: int
    clock_ghz: float
    cache: int
    shared: int


_HOPPER = ((9, 0), "ACCELERATED_FEATURES", 132, 128, 1.98, 52_428_800, 233_472)
FACTS = {
    "a100": Facts("NVIDIA A100-SXM4-80GB", (8, 0), "NONE", 108, 64, 1.41, 41_943_040, 167_936),
    "h100": Facts("NVIDIA H100 80GB HBM3", *_HOPPER),
    "h200": Facts("NVIDIA H200 141GB HBM3e", *_HOPPER),
    "b200": Facts(
        *("NVIDIA B200", (10, 0), "ACCELERATED_FEATURES"),
        *(148, 128, 1.965, 132_644_864, 233_472),
    ),
}
CUDNN = (9, 10, 0)  # the version that programs are compiled for


def target_config(chip: Chip) -> str:
    """`chip` as XLA's GpuTargetConfigProto, in text."""
    facts = FACTS[chip.name]
    major, minor = facts.capability
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": facts.shared,
        "threads_per_core_limit": 2048,
        "core_count": facts.cores,
        "fpus_per_core": facts.lanes,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": int(chip.hbm_bytes_per_second),
        "l2_cache_size": facts.cache,
        "clock_rate_ghz": facts.clock_ghz,
        "device_memory_size": chip.hbm_bytes,
        "shared_memory_per_block_optin": facts.shared - 1024,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    lines = "\n".join(f"  {name}: {value}" for name, value in fields.items())
    capability = f"major: {major} minor: {minor} feature_extension: {facts.extension}"
    cudnn = "major: {} minor: {} patch: {}".format(*CUDNN)
    return (
        f"gpu_device_info {{\n{lines}\n  cuda_compute_capability {{ {capability} }}\n}}\n"
        f'platform_name: "CUDA"\ndnn_version_info {{ {cudnn} }}\n'
        f'device_description_str: "{facts.called}"\n'
    )


@contextlib.contextmanager
def cudnn() -> Iterator[None]:
    """Lowers programs that call cuDNN also where it is not installed: as if it were `CUDNN`.

    JAX asks the library for its version when it lowers attention, although only a device runs it.
    """
    try:
        fused_attention_stablehlo.check_cudnn_version()
    except RuntimeError:
        major, minor, patch = CUDNN
        version = 10_000 * major + 100 * minor + patch  # as cuDNN counts since version 9
        asked = fused_attention_stablehlo.check_cudnn_version
        fused_attention_stablehlo.check_cudnn_version = lambda: version
        try:
            yield
        finally:
            fused_attention_stablehlo.check_cudnn_version = asked
    else:
        yield
