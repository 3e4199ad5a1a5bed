#!/usr/bin/env bash
# Sets genjax up with its extra test, then ruff and pytest; arguments go to pytest:
#   launch/test.sh -k checkpoint
# Without arguments it runs a quarter of the tests of whole runs, another for another commit
# (tests/parts.py). GENJAX_TEST_PART=all runs all, GENJAX_TEST_PART=2/4 the second quarter.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/launch/setup.sh" test
cd "$root"
if [ $# -eq 0 ] && commit=$(git rev-parse --short=6 HEAD 2> /dev/null); then
  export GENJAX_TEST_PART="${GENJAX_TEST_PART:-$((0x$commit % 4 + 1))/4}"
  echo "GENJAX_TEST_PART=$GENJAX_TEST_PART"
fi
.venv/bin/ruff format --check --quiet .
.venv/bin/ruff check --quiet .
exec .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "$@"
