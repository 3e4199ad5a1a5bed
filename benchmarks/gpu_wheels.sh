#!/usr/bin/env bash
# Collects the wheels that benchmarks/gpu.sh may need on a machine without a network, for Python 3.12
# on x86-64 Linux (glibc 2.28), at the versions of launch/constraints.txt. JAX, NumPy and PyTorch are
# not among them: the machine has them.
#   benchmarks/gpu_wheels.sh FOLDER
# Carry the folder there beside the repository, and name it: WHEELS=FOLDER benchmarks/gpu.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
most=60 # MiB

if [ $# -ne 1 ]; then
  echo "usage: benchmarks/gpu_wheels.sh FOLDER" >&2
  exit 2
fi
# What genjax imports to train, sample and checkpoint without data, and what these packages need.
names=(
  absl-py aiofiles attrs chex cloudpickle etils filelock flax fsspec googleapis-common-protos
  humanize importlib_resources jaxtyping markdown-it-py mdurl ml_collections msgpack optax
  orbax-checkpoint pillow prometheus_client protobuf psutil Pygments PyYAML rich simplejson
  tensorstore toolz tqdm treescope typing_extensions uvloop wadler_lindig zipp
)
wanted=()
for name in "${names[@]}"; do
  pin=$(grep -i "^$name==" "$here/../launch/constraints.txt" | grep -v 'python_version < "3.12"')
  wanted+=("${pin%% *}")
done
mkdir -p "$1"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest "$1" "${wanted[@]}"
size=$(du --bytes --summarize "$1" | cut -f1)
count=$(find "$1" -name '*.whl' | wc -l)
echo "$count wheels, $((size >> 20)) MiB in $1"
if [ "$((size >> 20))" -ge "$most" ]; then
  echo "error: expected less than $most MiB: remove what the machine has from $1" >&2
  exit 1
fi
echo "Carry the repository and $1, then: WHEELS=$1 benchmarks/gpu.sh --output=gpu.json"
