#!/usr/bin/env bash
# Sets genjax up with its extra test, then ruff and pytest; arguments go to pytest:
#   launch/test.sh -k checkpoint
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/launch/setup.sh" test
cd "$root"
.venv/bin/ruff format --check --quiet .
.venv/bin/ruff check --quiet .
exec .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "$@"
