#!/usr/bin/env bash
# Checks genjax's numbers on one GPU and times its training steps beside compiled PyTorch's, in at
# most 8 minutes and without a network; leaves gpu.json. See benchmarks/gpu.py for what it does:
#   benchmarks/gpu.sh [--output=gpu.json] [--minutes=8] [--only=golden,race,same] [--tiny] ...
# PYTHON=/path/to/python has JAX with CUDA, and PyTorch if it is to be raced. WHEELS=FOLDER holds
# what else may be missing there: benchmarks/gpu_wheels.sh collects it beforehand.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
path=$(dirname "$here")

if [ -n "${WHEELS:-}" ]; then
  lacking=$("$python" "$here/gpu_lacking.py" "$WHEELS")
  if [ -n "$lacking" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    echo "$lacking" | xargs -d '\n' "$python" -m pip install --quiet --no-index --no-deps \
      --no-compile --disable-pip-version-check --target "$site"
    path=$path:$site
  fi
fi
PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} "$python" "$here/gpu.py" "$@"
