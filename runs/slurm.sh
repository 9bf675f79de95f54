#!/usr/bin/env bash
# The three stages as three chained jobs. Ten minutes before a job's time limit, every process gets SIGUSR1: the run saves
# a checkpoint and exits with 75, and the job is requeued and resumes.
#   MODEL=... DATA_ROOT=... TEACHER=... OUT=... runs/slurm.sh
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@600
set -euo pipefail

if [ -z "${SLURM_JOB_ID:-}" ]; then # on the login node: submit
    start=$MODEL after=
    mkdir -p "$OUT"
    for stage in prealign pretrain finetune; do
        after=$(STAGE=$stage START=$start sbatch --parsable ${after:+--dependency=afterok:$after} \
            --job-name="videopanda-$stage" --output="$OUT/$stage.log" --export=ALL "$0")
        echo "$stage: job $after"
        start=$OUT/$stage
    done
    exit
fi

data=valley_.json
[ "$STAGE" = finetune ] && data=videochatgpt_tune_.json
export MASTER_ADDR MASTER_PORT=29500 WORLD_SIZE=$SLURM_NTASKS
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST") # the first; `| head` would break the pipe

code=0
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec videopanda train "$@"' - "$STAGE" \
    --config "${CONFIG:-paper}" --model "$START" --output "$OUT/$STAGE" \
    --set data="$DATA_ROOT/train/train_json/$data" --set manifest="$OUT/manifest.jsonl" \
    --set teacher="$TEACHER" --set strategy="${STRATEGY:-zero2}" --set num_workers=6 || code=$?

[ "$code" = 75 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
