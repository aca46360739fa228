#!/usr/bin/env bash
# Results at paper scale from one GPU, most wanted first, in slices that go on where one ended.
#
#   PEREGRINE_DATA=FOLDER bash benchmarks/gpu_campaign.sh OUT [SECONDS]
#
# FOLDER has the binary CIFAR-10 and CIFAR-100. OUT gets bundles of metrics, each below 16 MB, which
# `python -m peregrine adopt --scale gpu` takes over, those of Table 1 and of sizes `--scale paper` too:
# they are the same runs. SECONDS (540) is for all of one call, preparing included; results/ has to stay
# between calls. It ends with 75 while seeds are left, with 1 where a step failed, with 0 at the end.
# JOBS (4) seeds share the GPU. No Snakemake: torch, numpy, scipy, scikit-learn, pydantic, PyYAML,
# safetensors, tqdm and typer are needed.
set -euo pipefail
out=$(realpath -m "${1:?usage: gpu_campaign.sh OUT [SECONDS]}")
cd "$(dirname "$0")/.."
seconds=${2:-540}
jobs=${JOBS:-4}
device=${DEVICE:-auto}
python=${PYTHON:-python3}
export PYTHONPATH="$PWD/src"
# ResNet-8 leaves most of a GPU idle: several trainings share it.
export PEREGRINE_JOBS_PER_GPU=${PEREGRINE_JOBS_PER_GPU:-$jobs}
mkdir -p "$out"

for data in cifar10 cifar100; do
  test -e "results/data/$data.json" || "$python" -m peregrine prepare "$data"
done

table_1="untrained falcon-c16384 falcon-released-c16384 barlow-twins swav self-classifier gedi"
sizes="falcon-c16 falcon-c256 falcon-c4096 falcon-released-c4096"
two_branch="untrained infonce infonce-predictor infonce-basic-nn infonce-basic-mask infonce-parallel-nn
  infonce-parallel-mask byol byol-parallel-nn byol-parallel-mask"

left=0
# NAME SEEDS ROW...: one stage in what remains of the call.
stage() {
  local name=$1 seeds=$2 code=0
  shift 2
  local remaining=$((seconds - SECONDS))
  if [ "$remaining" -lt 30 ]; then left=75; return; fi
  echo "== $name: seeds $seeds, $remaining s left"
  # shellcheck disable=SC2086 # seeds are words
  "$python" benchmarks/campaign.py "$@" --scale gpu --seeds $seeds --jobs "$jobs" --device "$device" \
    --seconds "$((remaining - 25))" --bundle "$out/$name.tar.xz" || code=$?
  [ "$code" = 0 ] || [ "$code" = 75 ] || [ "$code" = 1 ] || exit "$code"
  [ "$code" = 0 ] || left=$code
}
of() { local each; for each in $2; do echo "$1/$each$3"; done; }

# shellcheck disable=SC2046 # rows are words
for seeds in 0 "1 2"; do
  stage "table-1-seeds-${seeds// /-}" "$seeds" $(of falcon "$table_1" "") $(of falcon "$table_1" -cifar100)
  stage "sizes-seeds-${seeds// /-}" "$seeds" $(of falcon "$sizes" "") $(of falcon "$sizes" -cifar100)
  stage "two-branch-seeds-${seeds// /-}" "$seeds" $(of feature_augmentation "$two_branch" "")
done
exit "$left"
