#!/usr/bin/env bash
# A run on SLURM that outlives its job's time:
#
#   sbatch configs/launch/slurm.sh pretrain --config tats_vit_base data.train=LIST name=my_run
#
# Two minutes before the time is up SLURM tells this script, which tells the run, which finishes its
# step and saves. Then the job goes back into the queue, and the same command goes on where it was.
# A job that fails by itself is not put back. Nodes, GPUs and times are yours to change.
#SBATCH --job-name=tats
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
export MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 40000))}"

# One task is one process of the run, on the GPU of its number on the node.
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec "${PYTHON:-python}" -m tats_fast "$@"' run "$@" &
run=$!

asked=""
trap 'asked=yes; kill -TERM $run' USR1      # the time is nearly up
trap 'kill -TERM $run' TERM                 # preempted or cancelled: SLURM decides what follows
while kill -0 $run 2>/dev/null; do
    wait $run  # a signal ends it before the run does
done
wait $run
code=$?

# 143: stopped by SIGTERM with the state saved.
if [[ -n $asked && $code -eq 143 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit $code
