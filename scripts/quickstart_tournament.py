"""The quick start's checkpoints against each other, and the proof that a tournament is its pairwise evaluations.

Run after `make quickstart`: make tournament
Answers the quick start's held-out prompts with the start and every iteration, holds the tournament, evaluates every
pair by itself with a cache of its own, and compares the two.
"""

import argparse
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

CONFIG = Path("configs/quickstart.yaml")
JUDGE = "gpm:models/quickstart-gpm"
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def gpo(*words: str) -> None:
    """A verb that is printed before it runs; ends this program with its status when it fails."""
    print(f"\n$ {shlex.join(('gpo', *words))}", flush=True)
    finished = subprocess.run([sys.executable, "-m", "gpo", *words], env={**os.environ, **QUIET})
    if finished.returncode:
        sys.exit(finished.returncode)


def largest_difference(output: Path, files: list[str], system: str) -> float:
    """Between the tournament's win rates and those of `gpo eval` for every pair, computed anew."""
    table = json.loads((output / "tournament" / "tournament.json").read_text("utf-8"))["win_rate"]
    differences = []
    for i, j in itertools.combinations(range(len(files)), 2):
        folder = output / "pairs" / f"{j}-{i}"
        gpo("eval", "--outputs", files[j], "--baseline", files[i], "--judge", JUDGE, "--system", system,
            "--output", str(folder))  # fmt: skip
        alone = json.loads((folder / "metrics.json").read_text("utf-8"))["win_rate"]
        differences.append(abs(table[j][i] - alone))
    return max(differences)


def main() -> None:
    """All steps in order; ends with status 1 when the numbers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="run directory of the quick start")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart-tournament"))
    options = parser.parse_args()
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    checkpoints = sorted(options.run.glob("iterations/*/checkpoint"))
    if not checkpoints:
        parser.error(f"--run {options.run}: no iterations/*/checkpoint; `make quickstart` makes them")
    system, rollout = config["prompts"]["system"], config["rollout"]
    models = [config["policy"]["model"], *map(str, checkpoints)]
    names = ["start", *(f"iteration-{number}" for number in range(1, len(models)))]
    answers = options.output / "answers"
    gpo("generate", "--model", *models, "--name", *names, "--prompts", config["prompts"]["heldout"], "--system", system,
        "--max-tokens", str(rollout["max_tokens"]), "--top-k", str(rollout["top_k"]),
        # Answers of an earlier quick start are replaced; those of these very checkpoints stay.
        "--overwrite", "--output", str(answers))  # fmt: skip
    files = [str(answers / f"{name}.json") for name in names]
    gpo("tournament", "--outputs", *files, "--judge", JUDGE, "--system", system,
        "--output", str(options.output / "tournament"))  # fmt: skip
    shutil.rmtree(options.output / "pairs", ignore_errors=True)
    difference = largest_difference(options.output, files, system)
    print(f"\nlargest difference between the tournament and the pairwise evaluations: {difference:.1e}")
    sys.exit(0 if difference < 1e-9 else 1)


if __name__ == "__main__":
    main()
