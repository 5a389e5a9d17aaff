#!/usr/bin/env bash
# Train a reward model without Ray: NPROC=8 scripts/reward_torchrun.sh CONFIG [key=value…]
# Several machines: run it on each with the same RDZV=HOST:29500 and NNODES=N. A worker that dies is started again with
# the others and goes on from the last whole step checkpoint (set save_steps).
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
# What is wrong with the config or the data is told here, once: torchrun would start it again and again.
python -m gpo.rewards.workers --check "$@"
where=(--standalone)
[ -z "${RDZV:-}" ] || where=(--nnodes "${NNODES:-1}" --rdzv-backend c10d --rdzv-endpoint "$RDZV" --rdzv-id "${RDZV_ID:-reward}")
exec torchrun "${where[@]}" --nproc-per-node "${NPROC:-1}" --max-restarts 3 -m gpo.rewards.workers "$@"
