#!/usr/bin/env bash
#SBATCH --job-name=gpo-reward
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
# Train a reward model under Slurm: sbatch scripts/reward_slurm.sh CONFIG [key=value…]
# One torchrun a node; a requeued job goes on from the last whole step checkpoint (set save_steps).
set -euo pipefail
[ $# -ge 1 ] || { sed -n '9,10p' "$0" >&2; exit 2; }
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RDZV="$head:29500" NNODES="$SLURM_JOB_NUM_NODES" RDZV_ID="$SLURM_JOB_ID" NPROC="${SLURM_GPUS_ON_NODE:-8}"
exec srun --kill-on-bad-exit=0 bash "${SLURM_SUBMIT_DIR:-.}/scripts/reward_torchrun.sh" "$@"
