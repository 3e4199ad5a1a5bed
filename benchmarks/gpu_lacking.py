"""Prints which wheels of a folder this interpreter lacks; needs nothing but Python.

  python benchmarks/gpu_lacking.py FOLDER

A package that is installed is left as it is, unless it is older than genjax needs it.
"""

import importlib.metadata
import re
import sys
from pathlib import Path

LEAST = {"flax": "0.12", "optax": "0.2.8", "orbax-checkpoint": "0.12"}  # as in setup.py


def numbers(version):
    return [int(part) for part in re.findall(r"\d+", version)]


def name_of(wheel):
    return re.sub(r"[-_.]+", "-", wheel.name.partition("-")[0]).lower()


def lacks(name):
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return True
    return numbers(version) < numbers(LEAST.get(name, "0"))


def main():
    folder = Path(sys.argv[1])
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        sys.exit(f"error: no wheels in {folder}: collect them with benchmarks/gpu_wheels.sh FOLDER")
    print("\n".join(str(wheel) for wheel in wheels if lacks(name_of(wheel))))


if __name__ == "__main__":
    main()
