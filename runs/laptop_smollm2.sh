#!/usr/bin/env bash
# A pretrained language model, SmolLM2-135M-Instruct, learns to see Scenes on two CPU cores. Repeat the command to resume.
#
#     bash runs/laptop_smollm2.sh out/smollm2 [FOLDER OF SMOLLM2]
#
# The vision part is nano's, with a new projector (`--model nano`; without it, everything is new).
# 1. Visual tokens are matched with the words of what they show; the language model does not run.
# 2. Captions and questions, with the language model frozen.
# 3. The same, with LoRA on the language model.
set -euo pipefail
out=${1:-out/smollm2}
backbone=${2:-HuggingFaceTB/SmolLM2-135M-Instruct}
scenes=(--config nano --set compile=false --set num_workers=0 --set adam_beta2=0.98)
# Rows of one clip with about 13 questions, most of them rephrased.
questions=(--set max_length=520 --set batch_size=4 --set scenes_wordings=0.6 --set scenes_outside=0.04
    --set align_weight=0.1 --set validation=8 --set save_steps=40 --set seed=7)

[ -d "$out/fresh" ] || videopanda init --backbone "$backbone" --model nano "$out/fresh"
videopanda train prealign "${scenes[@]}" --model "$out/fresh" --output "$out/words" \
    --set batch_size=16 --set max_steps=240 --set vision_lr=2e-3 --set lr.stab=0 --set validation=0
videopanda train pretrain "${scenes[@]}" "${questions[@]}" --model "$out/words" --output "$out/frozen" \
    --set max_steps=120 --set vision_lr=1e-3 --set lr.stab=1e-4 --set language_model_lr=0
videopanda train finetune "${scenes[@]}" "${questions[@]}" --model "$out/frozen" --output "$out/lora" \
    --set max_steps=140 --set vision_lr=3e-4 --set lr.stab=7e-5 --set lora_rank=64 --set language_model_lr=6e-4
python benchmarks/smollm2.py --backbone "$backbone" --model "$out/lora" --frozen "$out/frozen" --output "$out/smollm2.json"
