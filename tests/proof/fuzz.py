"""Fuzzing: damaged configs, prompts, preference files and run directories through the command line's own entry.

Run: python -m tests.proof.fuzz --cases 400 --log runs/fuzz.jsonl     (make fuzz; make fuzz-full does 5,000)

A case is (target, seed). It must end with status 0, 1 or 2 within its time and memory, without a traceback, with a
message of gpo's where it is not 0, and not with 0 where the input is certainly wrong. No two cases of a log are alike.
Cases run in a worker process; every hundredth seed, and the third, also as a command of its own, which must end with
the same status, as good a message, and bounded memory. A case that ends the worker, or makes it stand still in foreign
code, is a fault, and another worker goes on with the rest. The log has a line a case, and a start with the same log
goes on behind it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.proof.by_command import REPOSITORY
from tests.proof.case_log import commits, keep, last_lines, mended, not_yet
from tests.proof.fuzz_case import MOST_GROWTH_MIB, SECONDS_IN_ALL
from tests.proof.fuzz_targets import TARGETS

KEYS = ("target", "seed")
MOST_DEATHS = 20
"""More workers than that die of something else than a case."""
WORKER = (sys.executable, "-m", "tests.proof.fuzz_case")


def run_all(log: Path, wanted: Sequence[tuple[str, int]], folder: Path, worker: Sequence[str] = WORKER) -> bool:
    """Every wanted case that is due; False when the workers themselves cannot go on."""
    deaths = 0
    while due := not_yet(log, KEYS, wanted):
        with (folder / "worker.txt").open("w+b") as errors:
            words = [*worker, str(folder), str(log)]
            ended = subprocess.run(words, input=json.dumps(due).encode(), stderr=errors, cwd=REPOSITORY)
        left = not_yet(log, KEYS, wanted)
        if ended.returncode == 0 and len(left) < len(due):
            continue
        printed = (folder / "worker.txt").read_text("utf-8", "replace")[-3000:]
        deaths += 1
        if not (folder / "ready").exists() or deaths > MOST_DEATHS:
            print(f"worker {deaths} ended with status {ended.returncode}: {printed}", file=sys.stderr)
            return False
        if left:
            keep(log, ending_case(*left[0], ended.returncode, printed), shown=False)
    return True


def ending_case(target: str, seed: int, status: int, printed: str) -> dict[str, Any]:
    """The line of the case that a worker had in hand when it ended; it takes them in order."""
    why = "died" if status < 0 else f"ended, as when it stands still for {SECONDS_IN_ALL} s,"
    line = {"target": target, "seed": seed, "done": "not known", "wrong": False, "status": None}
    return line | {"fault": f"the process {why} with status {status}", "printed": printed, "seconds": 0, "grown_mib": 0}


def report(lines: list[dict[str, Any]], wanted: int, earlier: str) -> int:
    """Say what came out, `earlier` of faults that are no more; the exit status."""
    faults = [line for line in lines if line["fault"]]
    for line in faults:
        print(f"{line['target']} seed {line['seed']}: {line['fault']} ({line['done']})")
    counts = Counter((line["target"], line["status"]) for line in lines)
    for (target, status), count in sorted(counts.items(), key=str):
        print(f"{target}: status {status} {count} times")
    slowest = max(lines, key=lambda line: line["seconds"])
    grown = max(line.get("held_mib", 0) for line in lines)
    print(
        f"slowest case {slowest['seconds']:.1f} s ({slowest['target']} seed {slowest['seed']}); "
        f"grown {grown} MiB, most in a case {max(line['grown_mib'] for line in lines)} MiB"
    )
    if grown > MOST_GROWTH_MIB:
        print(f"memory grew beyond {MOST_GROWTH_MIB} MiB")
    different = len({line["input"] for line in lines if "input" in line})
    wrong = sum(bool(line.get("wrong")) for line in lines)
    print(
        f"{len(lines) - len(faults)} passed, {len(faults)} failed of {wanted}; {different} known to be different, ",
        end="",
    )
    print(f"{wrong} certainly wrong; {commits(lines)}{earlier}")
    return 1 if faults or grown > MOST_GROWTH_MIB or len(lines) < wanted else 0


def main() -> int:
    """All cases that the log does not have yet; status 1 when any has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=400, help="in all, shared out among the targets")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--only", choices=sorted(TARGETS), action="append")
    options = parser.parse_args()
    log = options.log.absolute()
    log.parent.mkdir(parents=True, exist_ok=True)
    names = options.only or sorted(TARGETS)
    wanted = [(names[n % len(names)], options.first_seed + n // len(names)) for n in range(options.cases)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        went_on = run_all(log, wanted, Path(folder))
    lines = last_lines(log, KEYS, wanted)
    if not lines:
        return 1
    status = report(lines, len(wanted), mended(log, KEYS, wanted))
    return status if went_on else 1


if __name__ == "__main__":
    sys.exit(main())
