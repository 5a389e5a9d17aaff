"""The plan against runs: memory of every kind of process, and the time of an iteration from rates measured just before.

Run: python -m tests.proof.plan --output runs/proof-plan.json     (make proof-plan)

Two runs of one iteration with SmolLM2-135M as policy and as the backbone of a GPM: the first gives the rates, the
second, twice as large, is planned from them and then made. Memory is looked at all the time (private memory and the
share of what is shared) and each kind's peak is held against its line of the plan; what a process of the plan reached
between two looks is added from the kernel's own record. Beyond a fifth the status is 1.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.frame import Claim, at_most, write_report
from gpo.config import RunConfig
from gpo.modelfiles import with_compute_dtype
from gpo.planning.memory import GIB
from gpo.planning.plan import make_plan
from gpo.planning.rates import iteration_time, measured_rates
from gpo.settings import read_settings
from tests.e2e.tiny_run import REPOSITORY, command, environment, journal
from tests.proof.by_command import mib_of

MOST_OFF = 0.2
SECONDS_BETWEEN_LOOKS = 1.0
KINDS = {"LoggedSampler": "samplers", "ShardScorer": "scorers", "RayTrainWorker": "learner", "ForwardActor": "forward"}
"""Word in a process's title -> line of the plan."""


def make_workplace(folder: Path, model: Path) -> Path:
    """A GPM with a new head on the model, and a config; returns its path."""
    from transformers import AutoTokenizer

    from reward import GeneralPreferenceModel
    from reward.settings import RewardSettings

    gpm = GeneralPreferenceModel.from_backbone(model, RewardSettings.published(4, True), seed=3)
    gpm.save_pretrained(folder / "gpm", AutoTokenizer.from_pretrained(model))
    config = {
        "name": "plan",
        "iterations": 1,
        "policy": {"model": str(model)},
        "prompts": {
            "train": str(REPOSITORY / "configs/data/quickstart_train.jsonl"),
            "heldout": str(REPOSITORY / "configs/data/quickstart_heldout.jsonl"),
            "heldout_count": 8,
            "per_iteration": 16,
        },
        "rollout": {"samples": 4, "max_tokens": 64, "top_k": 50, "shard_prompts": 8},
        "preference": {"sources": {"gpm": f"gpm:{folder / 'gpm'}"}, "train_on": "gpm"},
        "target": {"beta": 1.0},
        "train": {"batch_prompts": 4, "batch_tokens": 1024},
        "evaluation": {"samples": 2, "kl_prompts": 4},
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def memory_of(root: psutil.Process) -> tuple[dict[str, float], dict[str, float]]:
    """Kind -> GiB now, and at the most so far, of a process and all below it.

    Of driver and Ray, many processes whose peaks lie apart, both are what they hold now.
    """
    now: dict[str, float] = defaultdict(float)
    most: dict[str, float] = defaultdict(float)
    for process in [root, *root.children(recursive=True)]:
        try:
            title = " ".join(process.cmdline())
            kind = next((kind for word, kind in KINDS.items() if word in title), "driver and Ray")
            held = process.memory_full_info()
        except psutil.Error:
            continue
        above = mib_of("VmHWM", process.pid) * 2**20 - held.rss if kind in KINDS.values() else 0
        now[kind] += held.pss / GIB
        most[kind] += (held.pss + max(above, 0)) / GIB
    return now, most


def watched_run(config: Path, out: Path, *overrides: str) -> dict[str, float]:
    """Run to the end; returns each kind's peak, and `together`, the peak of all at one moment."""
    process = subprocess.Popen(command(config, out, *overrides), env=environment(), cwd=config.parent)
    peaks: dict[str, float] = defaultdict(float)
    while process.poll() is None:
        try:
            now, most = memory_of(psutil.Process(process.pid))
        except psutil.NoSuchProcess:
            break
        for kind, gib in {**most, "together": sum(now.values())}.items():
            peaks[kind] = max(peaks[kind], gib)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.wait() != 0:
        sys.exit(f"the run ended with {process.returncode}")
    return {kind: round(gib, 2) for kind, gib in peaks.items()}


def iteration_seconds(out: Path) -> dict[str, float]:
    """Of the four stages of iteration 1."""
    lines = [line for line in journal(out) if line["event"] == "stage" and line["iteration"] == 1]
    return {line["stage"]: line["seconds"] for line in lines if line["stage"] != "baseline"}


def compare(folder: Path, model: Path, prompts: int) -> dict[str, Any]:
    """Plan and runs side by side."""
    config = make_workplace(folder, model)
    first, second = folder / "first", folder / "second"
    watched_run(config, first, f"prompts.per_iteration={prompts}")
    larger = f"prompts.per_iteration={2 * prompts}"
    wanted = with_compute_dtype(read_settings(RunConfig, config, [larger]), [])
    time_planned = iteration_time(wanted, measured_rates(first), 2 * prompts)
    memory_planned = make_plan(wanted)
    memory_seen = watched_run(config, second, larger)
    time_seen = iteration_seconds(second)
    return {
        "prompts": 2 * prompts,
        "dtype": wanted.policy.dtype,
        "seconds_planned": {name: round(getattr(time_planned, name), 1) for name in (*time_seen, "total")},
        "seconds_seen": {**{k: round(v, 1) for k, v in time_seen.items()}, "total": round(sum(time_seen.values()), 1)},
        "gib_planned": {**memory_planned.memory_gib, "together": round(memory_planned.peak_gib, 2)},
        "gib_seen": memory_seen,
    }


def claims_of(off: dict[str, float]) -> list[Claim]:
    """Time, and of memory the kind that is furthest off."""
    kind = max(off.keys() - {"time"}, key=lambda kind: abs(off[kind]))
    return [
        at_most("plan: an iteration's time, seen against planned, off by", round(abs(off["time"]), 3), MOST_OFF),
        at_most(f"plan: memory, seen against planned, off by ({kind})", round(abs(off[kind]), 3), MOST_OFF),
    ]


def main() -> int:
    """Both runs, the table, the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=REPOSITORY / "models/smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=16, help="of the first run; the second has twice as many")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), options.model.absolute(), options.prompts)
    off = {"time": found["seconds_seen"]["total"] / found["seconds_planned"]["total"] - 1}
    off |= {kind: found["gib_seen"][kind] / gib - 1 for kind, gib in found["gib_planned"].items()}
    found["off"] = {name: round(share, 3) for name, share in off.items()}
    print(json.dumps(found, indent=2))
    write_report(found, claims_of(off), options.output)
    return 0 if all(abs(share) <= MOST_OFF for share in off.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
