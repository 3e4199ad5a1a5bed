#!/usr/bin/env bash
# Starts a JobSet, or says what is still to be filled in: launch/jobset.sh launch/jobset_tpu.yaml
# More arguments go to kubectl: launch/jobset.sh launch/jobset_gpu.yaml --namespace=research
set -euo pipefail
file=${1:?error: expected a file: launch/jobset.sh launch/jobset_tpu.yaml}
if open=$(grep -n '<[A-Z_][A-Z_]*>' "$file"); then
  printf 'error: fill in %s before it is started:\n%s\n' "$file" "$open" >&2
  exit 1
fi
exec kubectl apply --filename="$file" "${@:2}"
