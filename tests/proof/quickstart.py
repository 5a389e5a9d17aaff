"""The quick start from nothing: its time after set-up, the memory of all its processes, and what came of it.

Run: python -m tests.proof.quickstart --output runs/proof-quickstart.json     (make proof-quickstart)

It runs in a folder of its own, because a quick start that was made before leaves out what is there. Memory (private
and the share of what is shared) is looked at seldom: oftener, the looking itself takes a third of the time. The status
is the quick start's where that failed, and 1 where a promise falls short, which the report tells too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.frame import Claim, at_least, at_most, claim_lines, write_report
from scripts.quickstart import PREFERENCES, compared
from tests.e2e.tiny_run import REPOSITORY
from tests.proof.plan import memory_of

SECONDS_BETWEEN_LOOKS = 10.0
MOST_MINUTES, MOST_GIB, LEAST_WIN_RATE, LEAST_OF_INTERVAL = 15, 12, 0.6, 0.5
LEAST_CYCLIC, MOST_OF_A_SCALAR = 0.08, 2 / 3


def watched(folder: Path) -> dict[str, float]:
    """Minutes and peak GiB of `scripts/quickstart.py` in the folder; ends this program with its status if it fails."""
    for name in ("configs", "scripts"):
        (folder / name).symlink_to(REPOSITORY / name)
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    started, most = time.monotonic(), 0.0
    process = subprocess.Popen(
        [sys.executable, "scripts/quickstart.py"], cwd=folder, env={**os.environ, "PYTHONPATH": paths}
    )
    root = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            most = max(most, sum(memory_of(root).values()))
            process.wait(SECONDS_BETWEEN_LOOKS)
        except (psutil.NoSuchProcess, subprocess.TimeoutExpired):
            continue
    if process.returncode:
        sys.exit(process.returncode)
    return {"minutes": round((time.monotonic() - started) / 60, 2), "peak_gib": round(most, 2)}


def win_rates(folder: Path) -> dict[str, Any]:
    """The last policy against the start, by the GPM and by the oracle, which the policy never saw."""
    last = max((folder / "runs/quickstart/iterations").glob("*/evaluation.json"))
    judges = json.loads(last.read_text("utf-8"))["judges"]
    against_start = {name: judges[name]["vs_start"] for name in ("oracle", "gpm")}
    return {
        name: {"win_rate": round(one["win_rate"], 3), "ci95": [round(end, 3) for end in one["ci95"]]}
        for name, one in against_start.items()
    }


def preferences(folder: Path) -> dict[str, float]:
    """How cyclic the labels are, and what the two reward models learned from them."""
    labelled = json.loads((folder / PREFERENCES / "cycles.json").read_text("utf-8"))["train"]
    found = compared(folder)
    return {
        "cyclic_share": round(labelled["cyclic_triples"] / labelled["decided_triples"], 3),
        "cyclic_accuracy": round(found["gpm"]["train"]["cyclic_accuracy"], 3),
        "most_better_than_twin": round(found["difference"].ci95[1], 3),
    }


def claims_of(found: dict[str, Any]) -> list[Claim]:
    """What the quick start promises."""
    oracle, gpm = found["oracle"], found["gpm"]
    return [
        at_most("quick start: minutes after set-up", found["minutes"], MOST_MINUTES),
        at_most("quick start: GiB of all its processes", found["peak_gib"], MOST_GIB),
        at_least("quick start: win rate against the start by the oracle", oracle["win_rate"], LEAST_WIN_RATE),
        at_least("quick start: lower end of its interval", oracle["ci95"][0], LEAST_OF_INTERVAL),
        at_least("quick start: win rate against the start by the GPM", gpm["win_rate"], LEAST_OF_INTERVAL),
        at_least("quick start: cycles among decided triples of the oracle", found["cyclic_share"], LEAST_CYCLIC),
        at_least("quick start: GPM right on cyclic triples, in sample", found["cyclic_accuracy"], MOST_OF_A_SCALAR),
        at_least("quick start: GPM - twin on held-out pairs, upper end", found["most_better_than_twin"], 0.0),
    ]


def main() -> None:
    """Run it, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    (REPOSITORY / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quickstart-", dir=REPOSITORY / "build") as name:
        found = watched(Path(name)) | win_rates(Path(name)) | preferences(Path(name))
    print("\n".join(claim_lines(claims_of(found))))
    write_report(found, claims_of(found), options.output)
    sys.exit(0 if all(claim.holds for claim in claims_of(found)) else 1)


if __name__ == "__main__":
    main()
