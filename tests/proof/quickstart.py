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
from tests.e2e.tiny_run import REPOSITORY
from tests.proof.plan import memory_of

SECONDS_BETWEEN_LOOKS = 10.0
MOST_MINUTES, MOST_GIB, LEAST_WIN_RATE, LEAST_OF_INTERVAL = 15, 12, 0.6, 0.5


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


def oracle(folder: Path) -> dict[str, Any]:
    """The last policy's win rate against the start by the oracle, which the policy never saw."""
    last = max((folder / "runs/quickstart/iterations").glob("*/evaluation.json"))
    found: dict[str, Any] = json.loads(last.read_text("utf-8"))["judges"]["oracle"]["vs_start"]
    return {"win_rate": round(found["win_rate"], 3), "ci95": [round(end, 3) for end in found["ci95"]]}


def claims_of(found: dict[str, Any]) -> list[Claim]:
    """What the quick start promises."""
    return [
        at_most("quick start: minutes after set-up", found["minutes"], MOST_MINUTES),
        at_most("quick start: GiB of all its processes", found["peak_gib"], MOST_GIB),
        at_least("quick start: win rate against the start by the oracle", found["win_rate"], LEAST_WIN_RATE),
        at_least("quick start: lower end of its interval", found["ci95"][0], LEAST_OF_INTERVAL),
    ]


def main() -> None:
    """Run it, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    (REPOSITORY / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quickstart-", dir=REPOSITORY / "build") as name:
        found = watched(Path(name)) | oracle(Path(name))
    print("\n".join(claim_lines(claims_of(found))))
    write_report(found, claims_of(found), options.output)
    sys.exit(0 if all(claim.holds for claim in claims_of(found)) else 1)


if __name__ == "__main__":
    main()
