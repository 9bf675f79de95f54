#!/usr/bin/env bash
# Fine-tune the bundled model on a few clips, on one CPU, in minutes.
set -euo pipefail
out=${1:-out/laptop}

videopanda scenes make "$out/scenes" --num 100
videopanda data check "$out/scenes/annotations.json" --manifest "$out/manifest.jsonl"
videopanda train finetune --config custom --model "${MODEL:-nano}" --output "$out/run" \
    --set data="$out/scenes/annotations.json" --set manifest="$out/manifest.jsonl" \
    --set max_steps=20
