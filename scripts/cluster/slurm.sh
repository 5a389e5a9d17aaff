#!/usr/bin/env bash
# A run on Slurm: one Ray node a host, the run on the first. After a time limit or a requeue it goes on by itself.
#   sbatch --nodes=4 --gres=gpu:8 scripts/cluster/slurm.sh my.yaml /shared/runs/my cluster.samplers=16 train.workers=32
#SBATCH --job-name=gpo
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail

config=${1:?usage: sbatch slurm.sh CONFIG RUN_DIR [key=value…]}
run_dir=${2:?usage: sbatch slurm.sh CONFIG RUN_DIR [key=value…]}
shift 2

# Everyone on the network may reach the head, so only those with this job's token may use it.
umask 077
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

port=$((10000 + SLURM_JOB_ID % 20000))
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_host=$(head -n 1 <<<"$hosts")
# Debian gives a host's own name an address of loopback, where no other node finds it.
address=$(srun --nodes=1 --ntasks=1 -w "$head_host" sh -c 'hostname --ip-address; hostname -I' |
    awk '!found {for (i = 1; i <= NF && !found; i++) if ($i !~ /^127\.|:/) found = $i} END {print found}')
cpus=${SLURM_CPUS_ON_NODE:-$(nproc)}

srun --nodes=1 --ntasks=1 -w "$head_host" --overlap \
    ray start --head --block --node-ip-address="$address" --port="$port" --num-cpus="$cpus" &
ray_jobs=$!
# Whoever joins before the head listens is turned away.
for _ in $(seq 150); do
    if (: <"/dev/tcp/$address/$port") 2>/dev/null; then break; fi
    kill -0 "$ray_jobs" 2>/dev/null || { echo "slurm.sh: ray start --head ended on $head_host" >&2; exit 1; }
    sleep 2
done
for host in $(tail -n +2 <<<"$hosts"); do
    srun --nodes=1 --ntasks=1 -w "$host" --overlap ray start --block --address="$address:$port" --num-cpus="$cpus" &
    ray_jobs="$ray_jobs $!"
done

# The preflight of the run itself waits for the nodes, and says which devices are still missing.
srun --nodes=1 --ntasks=1 -w "$head_host" --overlap \
    gpo run "$config" "cluster.address=$address:$port" cluster.placement_seconds=600 "$@" --run-dir "$run_dir" &
run=$!
trap 'kill -TERM "$run"' TERM
status=0
wait "$run" || status=$?
# A signal ends the first wait; the run then needs a moment to leave its directory in order.
if kill -0 "$run" 2>/dev/null; then wait "$run" || status=$?; fi

kill $ray_jobs 2>/dev/null || true
if [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
