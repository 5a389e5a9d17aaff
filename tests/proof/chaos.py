"""The kill matrix: SIGKILL of every kind of process and of a Ray worker node, in every stage that it lives in.

An undisturbed run shows when each process is there: windows, by stage and iteration. Those of the stages that must be
met come first, and without one of each nothing is run and the status is 1; windows too short to be met are left out and
named. A victim's moments are shared out over its windows. Each case draws a moment within its window, waits for that
stage and looks once: where the victim is not there, or the stage was over before the kill, the run is a miss and
another moment is drawn.

A dead sampler, scorer, learner or forward costs no new start: the run must end with status 0. Behind a dead driver, and
a dead node where the start ends with status 1 and says what was lost, the same command must. The run then has what an
undisturbed one leaves, no shard reported twice, no traceback, and names the victim in its journal where its work was
still wanted. Each case is a line in the log, with the seed of its moment; a matrix that was stopped goes on behind the
last one, and the end tells the seeds of all kills.

    python -m tests.proof.chaos --moments 10 --log runs/chaos-full.jsonl

The node's cases need root and iproute2 (network namespaces); without them nothing is run and the status is 1.
"""

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from benchmarks.frame import COMMIT
from gpo.files import read_json_lines
from tests.cluster.namespaces import namespaces_can_be_made
from tests.e2e.tiny_run import journal, make_workplace
from tests.proof.allowance import Allowance
from tests.proof.case_log import commits, keep, seeds
from tests.proof.kill_place import Place, place_for
from tests.proof.outcome import SECONDS, TRACEBACK, differences, results, status_of, written_twice
from tests.proof.workload import (
    MUST_MEET,
    START,
    TITLES,
    Window,
    Windows,
    Workload,
    over,
    times_of,
    windows_of,
)

MOST_MISSES = 5
COSTS_A_START = {"driver", "node"}
"""Whose death may end a start; the documents promise of all others that nothing need be done."""
WHAT_HAPPENED = re.compile(r"\b(lost|died|dead|node|lacks|no answer)\b")
WAY_ON = "the same command"


class Case(NamedTuple):
    """What a line of the log is about: a kill within a stage, by its number there."""

    victim: str
    stage: str
    number: int


def wait_for(window: Window, moment: float, process: "subprocess.Popen[Any]", out: Path) -> bool:
    """Sleep until the moment; False where the run or the stage is over before it."""
    started = time.time()
    while process.poll() is None and time.time() - started < SECONDS:
        stages = {START: started, **times_of(out, "begin")}
        begun = stages.get(window.stage)
        if begun is not None and list(stages)[-1] != window.stage:
            return False
        if begun is not None and time.time() - begun >= moment:
            return True
        time.sleep(0.01)
    return False


def one_case(place: Place, case: Case, misses: int, window: Window, expected: dict[str, Any]) -> dict[str, Any]:
    """Kill at a moment of the window, start again where that is allowed, and compare."""
    name = f"{case.victim}-{case.stage.replace(' ', '-')}-{case.number}-{misses}"
    moment = Random(name).uniform(window.first, window.last)
    out, said = place.folder / name, place.folder / f"{name}.said"
    line = {**case._asdict(), "seed": name, "moment_seconds": round(moment, 2)}
    before = time.monotonic()
    process = place.start(out, said)
    held: list[str] = []
    try:
        missed = None if wait_for(window, moment, process, out) else "the stage was over before the moment"
        if missed is None:
            held = place.kill(case.victim, case.stage, case.number, process)
            missed = None if held else "nobody of that kind was there"
        if missed is None and over(case.stage, out):
            missed = "the stage was over before the kill"
        fault = place.mend()
        if missed is not None:
            return line | {"hit": False, "missed": missed}
        status = status_of(process)
    finally:
        end(process)
    printed = said.read_text("utf-8", errors="replace")
    fault = fault or wrong_end(case.victim, status, printed)
    starts = 1
    if not fault and status != 0:
        starts = 2
        fault = wrong_end("the second start", status_of(place.start(out, said)), said.read_text("utf-8", "replace"))
    lost = [entry["process"] for entry in journal(out) if entry["event"] == "lost"]
    if not fault and case.victim in TITLES and case.victim not in lost and case.stage != place.work.last_stage:
        fault = "the journal does not name the process"
    fault = fault or differences(out, expected) or written_twice(out)
    told = {"hit": True, "held": held, "status": status, "starts": starts, "lost": lost, "fault": fault}
    return line | told | {"seconds": round(time.monotonic() - before, 1)}


def wrong_end(victim: str, status: int | None, printed: str) -> str | None:
    """What is wrong with how a start ended in which a victim died."""
    told = f"{victim}: status {status}: {printed[-1500:]}"
    if TRACEBACK in printed:
        return f"a traceback, {told}"
    killed = victim == "driver" and status == -signal.SIGKILL
    resumable = victim in COSTS_A_START and status == 1 and says_why(printed)
    return None if status == 0 or killed or resumable else told


def says_why(printed: str) -> bool:
    """Whether the last words of a start that failed name what the run lost, and the way on."""
    _, told, message = printed.rpartition("gpo: ")
    return bool(told and WAY_ON in message and WHAT_HAPPENED.search(message))


def end(process: "subprocess.Popen[Any]") -> None:
    """A run that missed is of no more use; those below the driver end with it."""
    process.kill()
    process.wait()


def measured(place: Place, victims: list[str], log: Path) -> tuple[Windows, dict[str, Any]]:
    """Windows and results of an undisturbed run; ends the program where a window is lacking."""
    out = place.folder / f"undisturbed-{victims[0]}"
    process = place.start(out, out.with_suffix(".said"))
    windows = windows_of(process, out, lambda stage: place.there(process, stage))
    keep(log, windows.line(victims))
    for victim in victims:
        short = [f"{stage} ({seconds} s)" for stage, seconds in windows.left_out.get(victim, {}).items()]
        print(f"{victim}: left out as too short: {', '.join(short) or 'nothing'}")
    lacking = windows.lacking(victims)
    if lacking:
        sys.exit(f"too short to be met, so that nothing would be proved of it: {', '.join(lacking)}")
    return windows, results(out)


def matrix(place: Place, victims: list[str], moments: int, log: Path, allowance: Allowance) -> list[Case]:
    """Run what the log does not have of these victims; returns all their cases that there was time for."""
    windows, expected = measured(place, victims, log)
    wanted = {
        Case(victim, window.stage, number): window
        for victim in victims
        for window, number in windows.shared_out(victim, moments)
    }
    begun = list[Case]()
    for case in allowance.order(list(wanted)):
        # One in any case: what was measured for it took longer.
        if begun and allowance.is_over(case.victim):
            continue
        begun.append(case)
        for misses in range(MOST_MISSES):
            if not was_hit(cases_of(log), case):
                keep(log, one_case(place, case, misses, wanted[case], expected))
    return begun


def main() -> int:
    """Run the matrix; status 1 when a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=1, help="of each victim")
    parser.add_argument("--victims", nargs="+", choices=list(MUST_MEET), default=list(MUST_MEET))
    parser.add_argument("--iterations", type=int, default=2, help="of a run")
    parser.add_argument("--minutes", type=float, help="begin no kill later, in an order of the commit's own")
    parser.add_argument("--log", type=Path, default=Path("runs/chaos.jsonl"))
    options = parser.parse_args()
    victims = list(dict.fromkeys(options.victims))
    if "node" in victims and not namespaces_can_be_made():
        print("node: no network namespaces here (root, iproute2); --victims leaves it out", file=sys.stderr)
        return 1
    options.log.parent.mkdir(parents=True, exist_ok=True)
    allowance, wanted = Allowance(options.minutes), list[Case]()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        work = Workload(make_workplace(Path(folder)), options.iterations)
        # A node's windows, and what an undisturbed run leaves there, are those of a cluster.
        groups = [[name for name in victims if (name == "node") == is_node] for is_node in (False, True)]
        for group in allowance.order(list(filter(None, groups))):
            if wanted and allowance.is_over(*group):
                continue
            with place_for(group, work) as place:
                wanted += matrix(place, group, options.moments, options.log, allowance)
    print(allowance.told(), end="")
    return told(cases_of(options.log), wanted)


def told(cases: list[dict[str, Any]], wanted: list[Case]) -> int:
    """Say who was killed where, and what went wrong, also in cases of other windows; the exit status."""
    last = last_kills(cases)
    victims = {case.victim for case in wanted}
    hits = [line for case, line in last.items() if case.victim in victims]
    for (victim, stage), count in sorted(Counter((line["victim"], line["stage"]) for line in hits).items()):
        print(f"{victim} in {stage}: {count}")
    bad = [line for line in hits if line["fault"]]
    spared = [f"{case.victim} in {case.stage} {case.number}" for case in wanted if case not in last]
    misses = sum(not line["hit"] for line in cases)
    print(f"{len(hits)} kills, {len(bad)} with a fault, {misses} misses; {commits(hits)}")
    print(seeds(line.get("seed") for line in hits))
    if spared:
        print(f"never hit, so nothing is proved of them: {', '.join(spared)}")
    return 1 if bad or spared else 0


def cases_of(log: Path) -> list[dict[str, Any]]:
    """Lines of cases: those of windows are for who reads the log."""
    return [line for line in read_json_lines(log) if "victim" in line]


def last_kills(cases: list[dict[str, Any]]) -> dict[Case, dict[str, Any]]:
    """The line that counts of each case that killed somebody."""
    return {Case(line["victim"], line["stage"], line["number"]): line for line in cases if line["hit"]}


def was_hit(cases: list[dict[str, Any]], case: Case) -> bool:
    """Whether a case of the matrix is done; one with a fault is due again at another commit, as in `case_log`."""
    last = last_kills(cases).get(case)
    return last is not None and (not last["fault"] or last["commit"] == COMMIT)


if __name__ == "__main__":
    sys.exit(main())
