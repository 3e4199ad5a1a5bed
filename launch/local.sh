#!/usr/bin/env bash
# Sets genjax up on first use, then runs it: launch/local.sh --config=configs/ddpm.py
# Installs the extras `text` and `cpu`; GENJAX_EXTRAS=cuda (or tpu, svg, wandb, gcs, s3, or several with commas) those too.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/launch/setup.sh" "text,cpu${GENJAX_EXTRAS:+,$GENJAX_EXTRAS}"
exec "$root/.venv/bin/python" -m genjax.main "$@"
