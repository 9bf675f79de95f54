#!/usr/bin/env bash
# The three stages of the paper on one machine with several GPUs.
#   MODEL  folder of a language model or Video-Panda    DATA_ROOT  as in the official README    TEACHER  LanguageBind
#   CHAT_TEMPLATE  vicuna, or a Jinja file, if the tokenizer of MODEL has none
set -euo pipefail
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
out=${OUT:-out}
start=$MODEL

for stage in prealign pretrain finetune; do
    data=valley_.json
    [ "$stage" = finetune ] && data=videochatgpt_tune_.json
    torchrun --standalone --nproc_per_node="$gpus" -m videopanda train "$stage" --config "${CONFIG:-paper}" \
        --model "$start" --output "$out/$stage" \
        --set data="$DATA_ROOT/train/train_json/$data" --set manifest="$out/manifest.jsonl" \
        ${CHAT_TEMPLATE:+--chat-template "$CHAT_TEMPLATE"} --set teacher="$TEACHER" --set strategy=zero2 --set num_workers=8
    start=$out/$stage
    CHAT_TEMPLATE=  # a trained model has its own
done
