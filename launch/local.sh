#!/usr/bin/env bash
# Sets genjax up on first use, then runs it: launch/local.sh --config=configs/ddpm.py
# GENJAX_EXTRAS=cuda (or tpu, wandb, or several with commas) installs those too.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/launch/setup.sh" "${GENJAX_EXTRAS:-}"
exec "$root/.venv/bin/python" -m genjax.main "$@"
