#!/bin/bash
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
# One process a GPU; ninety seconds before the time is over SLURM sends USR1 to each: the step under way is finished, the state saved,
# and the exit code is 128 + 10. The job then queues itself again, and --resume goes on to the same result.
#   sbatch docs/slurm.sh finetune --recipe timm.yaml
set -u
nodes=${SLURM_JOB_NODELIST:-}
MASTER_ADDR=$(scontrol show hostnames "$nodes" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + ${SLURM_JOB_ID:-0} % 20000)) OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# What torchrun would set; without it between, signals come straight to the processes.
srun bash -c 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE \
    exec mergekit3d "$@" --resume' mergekit3d "$@"
status=$?
if [ "$status" -eq 138 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
