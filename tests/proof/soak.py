"""Soak: many tiny iterations in one run; memory, files and sockets of every lasting process must stay flat.

Run: python -m tests.proof.soak --iterations 8 --output runs/soak.json     (make soak; make soak-full does 100)

A lasting process is one that lives through at least half of the run: the driver, Ray's own, the sampler, the scorer.
The slope of its memory over the second half of its life (least squares) is told in MiB an iteration; beyond the limit
the status is 1. The first half is warm-up: caches and pools fill.
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

import numpy as np
import psutil

from tests.e2e.tiny_run import command, environment, journal, make_workplace

SECONDS_BETWEEN_LOOKS = 2.0
MOST_MIB_AN_ITERATION = 1.0
"""Twice what a hundred iterations could hide in the noise of the allocator."""
MOST_FILES_AN_ITERATION = 0.2
PROMPTS_AN_ITERATION = 2


def look(root: psutil.Process) -> dict[tuple[int, str], tuple[float, int]]:
    """(pid, name) -> (MiB of private memory, open files and sockets) of a process and all below it."""
    found = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            words = process.cmdline()
            name = next((word for word in words if word.startswith("ray::")), Path(words[0]).name if words else "?")
            found[process.pid, name] = (process.memory_full_info().uss / 2**20, process.num_fds())
        except psutil.Error:
            continue
    return found


def watch(process: subprocess.Popen[Any], run_dir: Path) -> dict[tuple[int, str], list[tuple[int, float, int]]]:
    """(iterations done, MiB, files) at every look, by process, until the command ends."""
    seen: dict[tuple[int, str], list[tuple[int, float, int]]] = defaultdict(list)
    root = psutil.Process(process.pid)
    while process.poll() is None:
        done = sum(line["event"] == "stage" and line["stage"] == "evaluate" for line in journal(run_dir))
        try:
            for key, (mib, files) in look(root).items():
                seen[key].append((done, mib, files))
        except psutil.NoSuchProcess:
            break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return seen


def slopes(looks: list[tuple[int, float, int]]) -> tuple[float, float]:
    """MiB and files an iteration over the second half of a process's life."""
    half = np.array(looks[len(looks) // 2 :], dtype=float)
    if len(half) < 3 or half[0, 0] == half[-1, 0]:
        return 0.0, 0.0
    return float(np.polyfit(half[:, 0], half[:, 1], 1)[0]), float(np.polyfit(half[:, 0], half[:, 2], 1)[0])


def main() -> int:
    """Run, watch, report; status 1 when anything grows or the run fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--output", type=Path, required=True, help="JSON with every process's slopes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        config = make_workplace(folder)
        words = command(
            config,
            folder / "out",
            f"iterations={options.iterations}",
            f"prompts.per_iteration={PROMPTS_AN_ITERATION}",
            "prompts.split=whole",
        )
        with (folder / "printed").open("w+") as printed:
            process = subprocess.Popen(words, env=environment(), cwd=folder, stdout=subprocess.DEVNULL, stderr=printed)
            seen = watch(process, folder / "out")
            if process.wait() != 0:
                printed.seek(0)
                print(printed.read()[-3000:])
                print(f"the run ended with {process.returncode}")
                return 1
    longest = max(len(looks) for looks in seen.values())
    rows = [
        {"process": name, "looks": len(looks), "mib": round(looks[-1][1], 1), "mib_an_iteration": mib, "files": files}
        for (_, name), looks in seen.items()
        if len(looks) >= longest / 2
        for mib, files in [slopes(looks)]
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"iterations": options.iterations, "processes": rows}, indent=2) + "\n")
    grown = 0
    for row in rows:
        bad = row["mib_an_iteration"] > MOST_MIB_AN_ITERATION or row["files"] > MOST_FILES_AN_ITERATION
        grown += bad
        print(
            f"{row['process']:<40} {row['mib']:8.1f} MiB  {row['mib_an_iteration']:+.3f} MiB an iteration  "
            f"{row['files']:+.3f} files an iteration{'  GROWS' if bad else ''}"
        )
    print(f"{len(rows) - grown} passed, {grown} failed")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
