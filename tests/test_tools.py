"""The tools that launch/test.sh runs say the same, whatever a run left in the working directory."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_runs_folder_does_not_change_what_the_linter_says(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    for folder in ("runs/ddpm_tiny", "racing", "jax"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "log.txt").write_text("a run")
    (tmp_path / "runs" / "ddpm_tiny" / "code.py").write_text("import  os")
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
