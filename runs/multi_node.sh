#!/usr/bin/env bash
# One stage on several machines: run this on each of them, with the same HOST (name of the first) and NODES.
#   runs/multi_node.sh pretrain out/prealign out/pretrain --set data=... --set teacher=...
set -euo pipefail
stage=$1 model=$2 output=$3
shift 3

torchrun --nnodes="$NODES" --nproc_per_node="${GPUS:-gpu}" --rdzv_backend=c10d --rdzv_endpoint="$HOST:29500" \
    -m videopanda train "$stage" --config "${CONFIG:-paper}" --model "$model" --output "$output" "$@"
