#!/usr/bin/env bash
# Runs N processes of genjax on the CPUs of this machine, joined over loopback:
#   launch/local_processes.sh 2 -- --config=configs/ddpm.py:tiny --workdir=runs/two
# Each line of output begins with the process that wrote it. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 go
# to all processes. If one ends with an error, the others have GENJAX_GRACE seconds (60) to say
# why they end too, and are killed then. The exit code is that of the first that failed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

count=${1:-}
if ! [[ $count =~ ^[1-9][0-9]{0,2}$ ]] || [ "${2:-}" != -- ] || [ $# -lt 3 ]; then
  echo "error: expected launch/local_processes.sh N -- ARGUMENTS OF GENJAX, N from 1 to 999;" \
    "got: $*" >&2
  exit 1
fi
shift 2
bash "$root/launch/setup.sh" "text,cpu${GENJAX_EXTRAS:+,$GENJAX_EXTRAS}"
python=$root/.venv/bin/python

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export GENJAX_COORDINATOR=127.0.0.1:$port GENJAX_PROCESS_COUNT=$count
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

prefixed() { # a process's lines, to the end even if a signal goes to the whole group
  trap '' INT TERM HUP
  exec sed -u "s/^/[$1] /"
}

set -m # each process in a group of its own: this script alone passes signals on
pids=()
for name in INT TERM HUP USR1; do
  # shellcheck disable=SC2064  # the name of now
  trap "kill -s $name -- \"\${pids[@]}\" 2>/dev/null || true" "$name"
done
for ((index = 0; index < count; index++)); do
  GENJAX_PROCESS_INDEX=$index "$python" -m genjax.main "$@" \
    > >(prefixed "$index") 2> >(prefixed "$index" >&2) &
  pids+=($!)
done

code=0 watch=''
while ((${#pids[@]})); do
  wait -n "${pids[@]}" 2>/dev/null || true # until one ends, or a signal was passed on
  left=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      left+=("$pid")
      continue
    fi
    status=0
    wait "$pid" || status=$?
    ((code)) || code=$status
  done
  pids=("${left[@]}")
  if ((code && ${#pids[@]})) && [ -z "$watch" ]; then
    (sleep "${GENJAX_GRACE:-60}" && kill -s KILL "${pids[@]}" 2>/dev/null) &
    watch=$!
    disown "$watch" # bash would report its end
  fi
done
[ -z "$watch" ] || kill -- "-$watch" 2>/dev/null || true
wait
exit "$code"
