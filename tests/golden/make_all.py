"""Remakes every golden file and says what moved.

    /path/to/parity/bin/python tests/golden/make_all.py

Runs each `make_X.py` of this folder as `make_X.py OUTPUT.npz`, compares what it wrote with `X.npz`
array by array, prints what moved and by how much, and only then replaces the file. The
interpreter must have the `[parity]` extra. A script that fails leaves its old file alone and makes
this one exit with 1, after the others have run.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

LIMIT = 300 * 1024  # bytes, so that the repository stays light


def describe(name: str, old: np.ndarray, new: np.ndarray) -> str | None:
    """One line on how the array `name` moved, or None if it did not."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return f"{name}: was {old.dtype}{list(old.shape)}, is {new.dtype}{list(new.shape)}"
    if old.tobytes() == new.tobytes():
        return None
    if not np.issubdtype(new.dtype, np.number):
        return f"{name}: was {old.tolist()!r}, is {new.tolist()!r}"
    old, new = old.astype(np.float64), new.astype(np.float64)
    gap = np.abs(new - old)
    return (
        f"{name}: {np.count_nonzero(gap > 0)} of {gap.size} values, by at most {gap.max():.3g} "
        f"(largest value {np.abs(old).max():.3g})"
    )


def compare(old: pathlib.Path, new: pathlib.Path) -> list[str]:
    """What differs between two golden files, one line for each array."""
    if not old.exists():
        return [f"new file with {len(np.load(new).files)} arrays"]
    before, after = np.load(old), np.load(new)
    lines = [f"{name}: gone" for name in before.files if name not in after.files]
    for name in after.files:
        if name not in before.files:
            lines.append(f"{name}: new")
        elif line := describe(name, before[name], after[name]):
            lines.append(line)
    return lines


def remake(script: pathlib.Path, scratch: pathlib.Path) -> bool:
    """Runs one script, reports and replaces its file. Returns whether it went well."""
    target = script.with_name(script.stem.removeprefix("make_") + ".npz")
    output = scratch / target.name
    code = subprocess.run([sys.executable, str(script), str(output)], check=False).returncode
    if code or not output.exists() or output.stat().st_size > LIMIT:
        size = output.stat().st_size if output.exists() else None
        print(f"{target.name}: KEPT. exit code {code}, wrote {size} bytes of at most {LIMIT}.")
        return False
    lines = compare(target, output)
    print(f"{target.name}: " + (f"{len(lines)} moved" if lines else "nothing moved"))
    for line in lines:
        print(f"  {line}")
    staged = target.with_suffix(".npz.new")
    shutil.copyfile(output, staged)
    os.replace(staged, target)
    return True


def main() -> int:
    """Remakes all of them; the exit code says whether every one succeeded."""
    here = pathlib.Path(__file__).resolve()
    scripts = sorted(path for path in here.parent.glob("make_*.py") if path != here)
    with tempfile.TemporaryDirectory() as scratch:
        return 0 if all([remake(script, pathlib.Path(scratch)) for script in scripts]) else 1


if __name__ == "__main__":
    sys.exit(main())
