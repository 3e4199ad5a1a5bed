#!/usr/bin/env bash
# Makes .venv if it is missing and installs genjax with the extras given, at the versions that
# constraints.txt names; does nothing if that was done before.
#   launch/setup.sh [extra,extra]      PYTHON=python3.12 chooses the interpreter
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extras=${1:-}
python=${PYTHON:-python3}
venv=$root/.venv

if [ ! -x "$venv/bin/python" ]; then
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $python is $("$python" --version 2>&1); genjax needs Python 3.11 or newer." \
      "Name one with PYTHON=/path/to/python3.11" >&2
    exit 1
  fi
  "$python" -m venv "$venv" || { rm -rf "$venv"; exit 1; }
fi

stamp=$venv/genjax-$(cat "$root/setup.py" "$root/launch/constraints.txt" <(echo "$extras") |
  "$venv/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])')
if [ ! -e "$stamp" ]; then
  echo "installing genjax into $venv ..." >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/launch/constraints.txt" --editable "$root${extras:+[$extras]}" >&2
  # What the tiny presets and the tests train on, so that they need no network later.
  "$venv/bin/python" - <<'PYTHON' >&2
from genjax import config
from genjax.data import catalogue

dataset = config.base().dataset
dataset.name = "digits"
catalogue.load(dataset)
PYTHON
  touch "$stamp"
fi
