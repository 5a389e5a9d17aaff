"""Soak: many tiny iterations in one run; memory, files and sockets of every lasting process must stay flat.

Run: python -m tests.proof.soak --iterations 16 --run-dir runs/soak --log runs/soak.jsonl   (make soak, make soak-full)

A lasting process is one that lives through at least half of its start of the command: driver, sampler and scorer, which
must be among them, and Ray's own. Judged is the least that it holds in each iteration, because much comes and goes
within one, by the slope (least squares) over the second half of the iterations; the first is warm-up: caches and pools
fill. What no lasting process shows is judged too: the fewest processes and the least that all of them hold, so that one
left behind is seen, shared memory, and the most that the learner holds, which is a new process each time. Slopes are
held against a limit an iteration, and what they come to over that half against a limit of its own, so that many
iterations are judged more strictly. Each look is a line of the log. A soak that was stopped goes on with the same
command, as the run does: each start that was long enough is judged by itself, and one of them must have half of all
iterations.
"""

import argparse
import math
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.frame import COMMIT
from gpo.files import append_json_line, read_json_lines
from tests.e2e.tiny_run import command, environment, journal, make_workplace
from tests.proof.case_log import commits

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_AN_ITERATION = 900
MOST_AN_ITERATION = {"mib": 1.0, "files": 0.2, "processes": 0.2}
MOST_OVER_THE_HALF = {"mib": 10.0, "files": 2.0, "processes": 2.0}
OF_ALL, LEARNER, SHARED = "all processes", "learner, at most", "shared memory"
LOOSER = {OF_ALL: 3.0, LEARNER: 3.0}
"""Factors of the limits: twenty processes together, and a peak that is looked at every few seconds."""
OF_RAY = {"gcs_server", "log_monitor.py"}
"""Their files are not judged: Ray 2.60's GCS keeps a socket of each training's workers, so that a usual limit of 1,024
is far; its log monitor keeps files of dead workers until they are 200 (RAY_LOG_MONITOR_MAX_OPEN_FILES)."""
INTERNED_MIB = (6.0, 8.5)
"""CPython's table of interned names, some 160,000 in a process with torch and vLLM, is built anew once it has taken so
many, those that are gone included: one step of 7.3 MiB, at no certain time, and none behind it."""
LEAST_ITERATIONS = 12
"""A start with fewer is too short to be judged: caches of the driver fill for eight."""
MUST_LAST = ("driver", "LoggedSampler", "ShardScorer")
PROMPTS_AN_ITERATION = 2


def kind_of(words: list[str]) -> str:
    """Class of an actor, whose title also names the call that it is in; else the program, or its script."""
    title = next((word for word in words if word.startswith("ray::")), None)
    if title is not None:
        return title.removeprefix("ray::").split(".")[0].split("(")[0]
    names = [Path(word).name for word in words]
    script = next((name for name in names if name.endswith(".py")), None)
    return script or (names[0] if names else "?")


def anonymous_mib(pid: int) -> float:
    """What a process allocated and holds in memory; raises OSError where it is gone.

    Pages of programs and libraries are left out: they are private only while no other process maps them, so that a
    second Ray that ends beside this one would look like growth.
    """
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    kib = next((line.split()[1] for line in lines if line.startswith("RssAnon:")), None)
    if kib is None:
        raise ProcessLookupError(f"process {pid} has ended and has no memory any more")
    return int(kib) / 1024


def look(root: psutil.Process) -> Iterator[dict[str, Any]]:
    """MiB of allocated memory, open files and sockets of a process and all below it."""
    for process in [root, *root.children(recursive=True)]:
        try:
            kind = "driver" if process.pid == root.pid else kind_of(process.cmdline())
            mib = anonymous_mib(process.pid)
            yield {"pid": process.pid, "kind": kind, "mib": round(mib, 3), "files": process.num_fds()}
        except (psutil.Error, OSError):
            continue


def iterations_done(run_dir: Path) -> int:
    """By the journal."""
    return sum(line["event"] == "stage" and line["stage"] == "evaluate" for line in journal(run_dir))


def watch(process: "subprocess.Popen[Any]", run_dir: Path, log: Path) -> None:
    """Keep a look every few seconds until the command ends; raises TimeoutError where iterations do not end."""
    start = max((line["start"] for line in read_json_lines(log)), default=0) + 1
    root = psutil.Process(process.pid)
    done, since = iterations_done(run_dir), time.monotonic()
    while process.poll() is None:
        if (now := iterations_done(run_dir)) != done:
            done, since = now, time.monotonic()
        if time.monotonic() - since > SECONDS_AN_ITERATION:
            process.kill()
            raise TimeoutError(f"no end of iteration {done + 1} within {SECONDS_AN_ITERATION} s")
        found = list(look(root))
        shared = round(shutil.disk_usage("/dev/shm").used / 2**20, 3)
        append_json_line(
            log, {"start": start, "done": done, "commit": COMMIT, "shared_mib": shared, "processes": found}
        )
        time.sleep(SECONDS_BETWEEN_LOOKS)


@dataclass(frozen=True, slots=True)
class Row:
    """What a lasting process, or all of a run, grows by an iteration, and over how many iterations it was measured."""

    start: int
    kind: str
    mib: float
    iterations: int
    slopes: dict[str, float]

    def grows(self) -> bool:
        """Beyond a limit."""
        factor = LOOSER.get(self.kind, 1.0)
        return any(
            slope > factor * MOST_AN_ITERATION[what] or slope * self.iterations > factor * MOST_OVER_THE_HALF[what]
            for what, slope in self.slopes.items()
        )


def without_step(values: list[float]) -> list[float]:
    """A series of MiB without the one step of the table of names: all is below it before, and above it from then on."""
    for place in range(1, len(values)):
        step = min(values[place:]) - max(values[:place])
        if INTERNED_MIB[0] <= step <= INTERNED_MIB[1]:
            return values[:place] + [value - step for value in values[place:]]
    return values


def rows_of_start(start: int, looks: list[dict[str, Any]]) -> list[Row]:
    """The lasting processes of one start of the command, and all of its processes together."""
    by_iteration: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in looks:
        by_iteration[line["done"]].append(line)
    # The first and the last are there in part, and of the rest the first half is warm-up.
    done = sorted(by_iteration)[1:-1]
    done = done[len(done) // 2 :]
    if len(done) < 2:
        return []

    def row(kind: str, **series: list[float]) -> Row:
        judged_on = series | {"mib": without_step(series["mib"])}
        slopes = {what: float(np.polyfit(done, values, 1)[0]) for what, values in judged_on.items()}
        return Row(start, kind, series["mib"][-1], done[-1] - done[0], slopes)

    def least(of: Callable[[dict[str, Any]], float]) -> list[float]:
        return [min(map(of, by_iteration[number])) for number in done]

    def total(what: str) -> Callable[[dict[str, Any]], float]:
        left_out = OF_RAY if what == "files" else set()
        return lambda line: sum(one[what] for one in line["processes"] if one["kind"] not in left_out)

    def learner(line: dict[str, Any]) -> float:
        return max((one["mib"] for one in line["processes"] if one["kind"] == "RayTrainWorker"), default=0.0)

    def of_process(key: tuple[int, str], what: str) -> Callable[[dict[str, Any]], float]:
        return lambda line: next((one[what] for one in line["processes"] if name_of(one) == key), math.inf)

    rows = [
        row(key[1], **{what: least(of_process(key, what)) for what in judged(key[1])})
        for key, seen in Counter(name_of(one) for line in looks for one in line["processes"]).items()
        if seen >= len(looks) / 2 and all(least(of_process(key, "mib"))[place] < math.inf for place in range(len(done)))
    ]
    together = {what: least(total(what)) for what in ("mib", "files")}
    processes = least(lambda line: len(line["processes"]))
    return [
        *rows,
        row(OF_ALL, **together, processes=processes),
        row(SHARED, mib=least(lambda line: line["shared_mib"])),
        row(LEARNER, mib=[max(map(learner, by_iteration[number])) for number in done]),
    ]


def judged(kind: str) -> tuple[str, ...]:
    """What must stay flat of a process."""
    return ("mib",) if kind in OF_RAY else ("mib", "files")


def name_of(process: dict[str, Any]) -> tuple[int, str]:
    """What tells a process of a look from others."""
    return process["pid"], process["kind"]


def judge(lines: list[dict[str, Any]], wanted: int) -> int:
    """Say what grows, and what should have been watched and was not; the exit status."""
    starts: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        starts[line["start"]].append(line)
    long_enough = {
        start: rows_of_start(start, looks)
        for start, looks in starts.items()
        if looks[-1]["done"] - looks[0]["done"] >= LEAST_ITERATIONS
    }
    most = max((looks[-1]["done"] - looks[0]["done"] for looks in starts.values()), default=0)
    faults = 0
    if most < max(LEAST_ITERATIONS, wanted // 2):
        faults = 1
        print(f"no start with {max(LEAST_ITERATIONS, wanted // 2)} iterations or more, so nothing is proved")
    for start, rows in long_enough.items():
        for row in rows:
            faults += row.grows()
            slopes = ", ".join(f"{slope:+.3f} {what}" for what, slope in row.slopes.items())
            grows = "  GROWS" if row.grows() else ""
            print(f"start {start}: {row.kind:<30} {row.mib:8.1f} MiB  {slopes} an iteration{grows}")
        missing = set(MUST_LAST) - {row.kind for row in rows}
        faults += len(missing)
        if missing:
            print(f"start {start}: not among the lasting processes: {', '.join(sorted(missing))}")
    rows_judged = sum(map(len, long_enough.values()))
    print(f"{rows_judged} rows, {faults} faults; at most {most} iterations a start; looks {commits(lines)}")
    return 1 if faults else 0


def main() -> int:
    """Run or go on, watch, judge; status 1 when anything grows or the run fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--run-dir", type=Path, required=True, help="the run; its config and models lie in NAME-files")
    parser.add_argument("--log", type=Path, required=True, help="JSON Lines, a look each")
    options = parser.parse_args()
    run_dir, log = options.run_dir.absolute(), options.log.absolute()
    files = run_dir.with_name(f"{run_dir.name}-files")
    config = files / "tiny.yaml"
    if not config.is_file():
        files.mkdir(parents=True, exist_ok=True)
        make_workplace(files)
    log.parent.mkdir(parents=True, exist_ok=True)
    changes = (f"iterations={options.iterations}", f"prompts.per_iteration={PROMPTS_AN_ITERATION}")
    words = command(config, run_dir, *changes, "prompts.split=whole")
    with (files / "printed").open("w+") as printed:
        process = subprocess.Popen(words, env=environment(), cwd=files, stdout=subprocess.DEVNULL, stderr=printed)
        try:
            watch(process, run_dir, log)
        except TimeoutError as error:
            print(error)
            return 1
        if process.wait() != 0:
            printed.seek(0)
            print(printed.read()[-3000:])
            print(f"the run ended with {process.returncode}")
            return 1
    return judge(read_json_lines(log), options.iterations)


if __name__ == "__main__":
    sys.exit(main())
