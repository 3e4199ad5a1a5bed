"""Computes on a CPU what benchmarks/gpu.sh holds a GPU's numbers against, and writes `gpu.npz`.

    python tests/golden/make_gpu.py [OUTPUT.npz]

In float32 by XLA, without oneDNN. See benchmarks/gpu_checks.py for what is compared.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
HERE = pathlib.Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2] / "benchmarks"))

import gpu_checks  # noqa: E402  (after the path)
import gpu_sizes  # noqa: E402
import numpy as np  # noqa: E402


def main() -> None:
    """Writes the numbers of all networks."""
    arrays = {}
    for network in gpu_sizes.NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            found = gpu_checks.numbers(network, "highest", folder)
        kept = {name: value for name, value in found.items() if name != "resumed"}
        arrays |= {f"{network}/{name}": value for name, value in kept.items()}
    target = sys.argv[1] if len(sys.argv) > 1 else HERE.with_name("gpu.npz")
    np.savez_compressed(target, **arrays)


if __name__ == "__main__":
    main()
