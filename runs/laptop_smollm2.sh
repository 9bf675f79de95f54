#!/usr/bin/env bash
# A real language model, SmolLM2-135M-Instruct, learns to see Scenes, on two CPU cores. Repeat the command to resume.
#
#     bash runs/laptop_smollm2.sh out/smollm2 [FOLDER OF SMOLLM2]
#
# 1. Visual tokens are matched with the words of what they show; the language model does not run.
# 2. Captions and questions, the language model frozen.
# 3. The same, all parts trained.
set -euo pipefail
out=${1:-out/smollm2}
backbone=${2:-HuggingFaceTB/SmolLM2-135M-Instruct}
scenes=(--config nano --set dtype=bfloat16 --set compile=false --set num_workers=0)
# Rows of one clip with about 15 questions, most of them rephrased.
questions=(--set max_length=850 --set batch_size=4 --set adam_beta2=0.98 --set scenes_wordings=0.7
    --set scenes_outside=0.04 --set align_weight=0.1 --set validation=8 --set save_steps=40)

[ -d "$out/fresh" ] || videopanda init --backbone "$backbone" --preset nano "$out/fresh"
videopanda train prealign "${scenes[@]}" --model "$out/fresh" --output "$out/words" \
    --set batch_size=16 --set max_steps=400 --set vision_lr=1.5e-3 --set validation=0
videopanda train pretrain "${scenes[@]}" "${questions[@]}" --model "$out/words" --output "$out/frozen" \
    --set max_steps=80 --set vision_lr=1e-3 --set language_model_lr=0 --set scenes_ramp=0.5
videopanda train finetune "${scenes[@]}" "${questions[@]}" --model "$out/frozen" --output "$out/full" \
    --set max_steps=80 --set vision_lr=5e-4 --set language_model_lr=2e-4
python benchmarks/smollm2.py --backbone "$backbone" --model "$out/full" --frozen "$out/frozen" --output "$out/smollm2.json"
