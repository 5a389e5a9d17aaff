#!/usr/bin/env bash
# Train a reward model on this machine: scripts/reward_single_node.sh CONFIG [key=value…]
# Ray Train starts as many workers as the config says (workers=N). Started again, it goes on where it was.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,3p' "$0" >&2; exit 2; }
exec gpo reward train "$@"
