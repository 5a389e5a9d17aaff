"""The quick start from nothing to an aligned model: `make quickstart` runs this after set-up.

Each step is a command that is printed before it runs and can be typed by hand; finished steps are not done again.
Arguments are handed to `gpo run`, for example `preference.train_on=oracle --run-dir runs/upper-bound`.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from reward.checkpoint_files import METRICS_FILE

MODELS = Path("models")
CONFIG = "configs/quickstart.yaml"
REWARD = "configs/quickstart_reward.yaml"
PREFERENCES, GPM, BT = (MODELS / f"quickstart-{name}" for name in ("preferences", "gpm", "bt"))
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Everything is local, and each step draws its own progress line."""


def step(*command: str) -> None:
    """Run a command in its own process; ends this program with its status when it fails."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    words = {"python": [sys.executable], "gpo": [sys.executable, "-m", "gpo"]}[command[0]]
    process = subprocess.Popen([*words, *command[1:]], env={**os.environ, **QUIET})
    while process.returncode is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            continue  # Ctrl-C reached the step as well, which says itself how to go on.
    if process.returncode:
        sys.exit(process.returncode)


def trained(model: Path) -> bool:
    """Whether a reward model is there and no older than the pairs that it learns from."""
    metrics = model / METRICS_FILE
    return metrics.is_file() and metrics.stat().st_mtime >= (PREFERENCES / "cycles.json").stat().st_mtime


def compared(folder: Path) -> dict[str, Any]:
    """What GPM and its Bradley-Terry twin under `folder` learned from the same pairs.

    `gpm` and `bt`: metrics; `pairs`: held-out pairs; `difference`: GPM minus twin, with the paired interval.
    """
    from gpo.evaluation.winrate import accuracy_difference_ci

    gpm, bt = (json.loads((folder / model / METRICS_FILE).read_text()) for model in (GPM, BT))
    groups = [entry["group"] for entry in gpm["heldout_correct"]]
    correct = [[entry["correct"] for entry in model["heldout_correct"]] for model in (gpm, bt)]
    return {"gpm": gpm, "bt": bt, "pairs": len(groups), "difference": accuracy_difference_ci(*correct, groups)}


def reward_table() -> str:
    """GPM against its twin, for people."""
    found = compared(Path())
    low, high = found["difference"].ci95
    rows = [f"{'reward model':<14}{'held-out pairs':>16}{'cyclic triples, in sample':>28}"]
    rows += [
        f"{name:<14}{found[model]['heldout']['accuracy']:>16.1%}{found[model]['train']['cyclic_accuracy']:>28.1%}"
        for name, model in (("GPM", "gpm"), ("Bradley-Terry", "bt"))
    ]
    rows.append(
        f"GPM minus Bradley-Terry on {found['pairs']} held-out pairs: {found['difference'].difference:+.1%} "
        f"[{low:+.1%}, {high:+.1%}]; no scalar reward can exceed 66.7% on cyclic triples"
    )
    return "\n".join(rows)


def main() -> None:
    """All steps in order."""
    started = time.monotonic()
    step("python", "scripts/smollm2.py", str(MODELS / "smollm2-135m-instruct"))
    step("python", "scripts/quickstart_preferences.py", CONFIG, str(PREFERENCES))
    if not trained(GPM):
        step("gpo", "reward", "train", REWARD)
    if not trained(BT):
        bt = ("head=bt", "value_head_dim=1", "gated=false", f"output={BT}")
        step("gpo", "reward", "train", REWARD, *bt)
    step("gpo", "run", CONFIG, *sys.argv[1:])
    print(f"\n{reward_table()}")
    print(f"\nquick start: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
