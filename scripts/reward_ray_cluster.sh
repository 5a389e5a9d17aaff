#!/usr/bin/env bash
# Train a reward model on a Ray cluster that runs: RAY_ADDRESS=HOST:6379 scripts/reward_ray_cluster.sh CONFIG [key=value…]
# Start the cluster before: `ray start --head --port=6379` on one machine, `ray start --address=HOST:6379` on the others.
# Config, data and output must lie on a file system that all machines share. workers=N is over the whole cluster.
set -euo pipefail
[ $# -ge 1 ] && [ -n "${RAY_ADDRESS:-}" ] || { sed -n '2,4p' "$0" >&2; exit 2; }
address="$RAY_ADDRESS"
unset RAY_ADDRESS
exec gpo reward train "$@" "cluster.address=$address"
