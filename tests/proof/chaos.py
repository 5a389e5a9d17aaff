"""The kill matrix: SIGKILL of every kind of process and of a Ray worker node, in every stage that it lives in.

An undisturbed run shows when each process is there: windows, by stage and iteration. Each case takes one of its
victim's windows in turn, draws a moment within it by its seed, waits for that stage and looks once: where the victim
is not there, or the stage was over before the kill, the run is a miss and another moment is drawn. Windows too short
to be met are left out. After a kill the run must end well, after at most one more start of the same command, with what
an undisturbed run leaves, no shard reported twice, no traceback, and the victim named in the journal where its work
was still wanted. Each case is a line in the log; a matrix that was stopped goes on behind the last one.

    python -m tests.proof.chaos --moments 20 --log runs/chaos-full.jsonl

The node case needs root and iproute2 (network namespaces); without them nothing is run and the status is 1.
"""

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.frame import COMMIT
from gpo.files import read_json_lines
from tests.cluster.namespaces import NamespacedCluster, namespaced_cluster, namespaces_can_be_made
from tests.e2e.tiny_run import command, descendants, environment, journal, make_workplace
from tests.proof.case_log import commits, keep
from tests.proof.outcome import EQUAL_TOKENS, SECONDS, TRACEBACK, differences, results, status_of, written_twice

VICTIMS = {
    "sampler": "ray::LoggedSampler",
    "scorer": "ray::ShardScorer",
    "learner": "RayTrainWorker",
    "forward": "ray::ForwardActor",
    "driver": "",
    "node": "",
}
"""With what its title has in it; the driver and a node have none, and are there from the first to the last."""
MOST_STARTS, MOST_MISSES = 2, 5
SETTINGS = ("iterations=2", "baseline.kind=previous", "prompts.per_iteration=8", EQUAL_TOKENS)
START, LAST_STAGE = "start", "evaluate 2"
SHORTEST_SECONDS = 0.2
"""A look takes some hundredths of a second."""


@dataclass(frozen=True, slots=True)
class Window:
    """When a victim is there in a stage, in seconds since that began; START began with the command."""

    stage: str
    first: float
    last: float


def stages_of(out: Path) -> Iterator[tuple[str, float]]:
    """Stages that have begun, as `name iteration`, with the wall time."""
    for line in journal(out):
        if line["event"] == "begin":
            yield f"{line['stage']} {line['iteration']}", line["time"]


def windows_of(process: "subprocess.Popen[Any]", out: Path) -> dict[str, list[Window]]:
    """Watch an undisturbed run to its end: the windows of every victim."""
    started, seen = time.time(), dict[tuple[str, str], list[float]]()
    while process.poll() is None and time.time() - started < SECONDS:
        stage, begun = ([(START, started), *stages_of(out)])[-1]
        there = {victim for victim, title in VICTIMS.items() if not title or descendants(process, title)}
        for victim in there:
            seen.setdefault((victim, stage), []).append(time.time() - begun)
        time.sleep(0.05)
    assert process.wait(SECONDS) == 0, "the undisturbed run"
    found: dict[str, list[Window]] = {victim: [] for victim in VICTIMS}
    for (victim, stage), looks in seen.items():
        if max(looks) - min(looks) >= SHORTEST_SECONDS and (stage != START or victim == "driver"):
            found[victim].append(Window(stage, min(looks), max(looks)))
    return found


def said_by(out: Path) -> Path:
    """What all starts of a run printed."""
    return out.with_suffix(".said")


class Place:
    """Where runs are started: this machine, or the head of a cluster of namespaces."""

    def __init__(self, config: Path, cluster: NamespacedCluster | None) -> None:
        self.config, self.cluster = config, cluster
        self.killed: Any = None
        """A host whose node is to be started again."""

    def start(self, out: Path) -> "subprocess.Popen[Any]":
        """The command of a run."""
        with said_by(out).open("a") as said:
            streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": said}
            if self.cluster is None:
                words = command(self.config, out, *SETTINGS)
                return subprocess.Popen(words, env=environment(), cwd=self.config.parent, **streams)
            words = command(self.config, out, *SETTINGS, f"cluster.address={self.cluster.address}")
            return self.cluster.popen(self.cluster.head, words, **streams)

    def kill(self, victim: str, process: "subprocess.Popen[Any]", number: int) -> bool:
        """SIGKILL; False when there is no such process at this moment. Nodes take turns, by the case's number."""
        if victim == "node":
            assert self.cluster is not None
            workers = self.cluster.hosts[1:]
            host = workers[number % len(workers)]
            host.kill()
            self.killed = host
            return True
        try:
            found = descendants(process, VICTIMS[victim]) if VICTIMS[victim] else [psutil.Process(process.pid)]
            if found:
                os.kill(found[0].pid, signal.SIGKILL)
            return bool(found)
        except (psutil.Error, ProcessLookupError):
            return False

    def mend(self) -> str | None:
        """Start a node that was killed again; what went wrong with that."""
        host, self.killed = self.killed, None
        if host is None or self.cluster is None:
            return None
        try:
            self.cluster.start(host, 2)
        except Exception as error:  # a fault of the place, told with the case
            return f"the node did not come back: {type(error).__name__}: {error}"
        return None


@contextmanager
def place_for(victim: str, config: Path) -> Iterator[Place]:
    """A cluster only where a node is to die."""
    if victim != "node":
        yield Place(config, None)
        return
    with namespaced_cluster(config.parent, workers=2, cpus=2) as cluster:
        yield Place(config, cluster)


def wait_for(window: Window, moment: float, process: "subprocess.Popen[Any]", out: Path) -> bool:
    """Sleep until the moment; False where the run or the stage is over before it."""
    started = time.time()
    while process.poll() is None and time.time() - started < SECONDS:
        stages = [(START, started), *stages_of(out)]
        begun = dict(stages).get(window.stage)
        if begun is not None and stages[-1][0] != window.stage:
            return False
        if begun is not None and time.time() - begun >= moment:
            return True
        time.sleep(0.01)
    return False


def over(stage: str, out: Path) -> bool:
    """Whether the journal has the end of the stage."""
    ends = [f"{line['stage']} {line['iteration']}" for line in journal(out) if line["event"] == "stage"]
    return stage in ends or (stage == START and bool(list(stages_of(out))))


def one_case(
    place: Place, victim: str, number: int, misses: int, window: Window, expected: dict[str, Any]
) -> dict[str, Any]:
    """Kill at a moment of the window, start again until it ends well, and compare."""
    moment = random.Random(f"{victim}/{number}/{misses}").uniform(window.first, window.last)
    out = place.config.parent / f"{victim}-{number}-{misses}"
    line = {"victim": victim, "number": number, "stage": window.stage, "moment_seconds": round(moment, 2)}
    process = place.start(out)
    try:
        hit = wait_for(window, moment, process, out) and place.kill(victim, process, number)
        hit = hit and not over(window.stage, out)
        fault = place.mend()
        if not hit:
            return line | {"hit": False}
        status = status_of(process)
    finally:
        end(process)
    starts = 1
    while status not in (0, None) and starts < MOST_STARTS:
        starts += 1
        status = status_of(place.start(out))
    lost = [line["process"] for line in journal(out) if line["event"] == "lost"]
    printed = said_by(out).read_text("utf-8", errors="replace")
    if status != 0:
        fault = fault or f"status {status}: {printed[-1500:]}"
    elif TRACEBACK in printed:
        fault = fault or f"a traceback: {printed[-1500:]}"
    elif victim not in lost and VICTIMS[victim] and starts == 1 and window.stage != LAST_STAGE:
        fault = fault or "the journal does not name the process"
    fault = fault or differences(out, expected) or written_twice(out)
    return line | {"hit": True, "starts": starts, "lost": lost, "fault": fault}


def end(process: "subprocess.Popen[Any]") -> None:
    """A run that missed is of no more use; those below the driver end with it."""
    process.kill()
    process.wait()


def main() -> int:
    """Run the matrix; status 1 when a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=1, help="of each victim")
    parser.add_argument("--victims", nargs="+", choices=list(VICTIMS), default=list(VICTIMS))
    parser.add_argument("--log", type=Path, default=Path("runs/chaos.jsonl"))
    options = parser.parse_args()
    victims = list(options.victims)
    if "node" in victims and not namespaces_can_be_made():
        print("node: no network namespaces here (root, iproute2); --victims leaves it out", file=sys.stderr)
        return 1
    options.log.parent.mkdir(parents=True, exist_ok=True)
    cases = read_json_lines(options.log)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        config, out = make_workplace(Path(folder)), Path(folder) / "undisturbed"
        windows = windows_of(Place(config, None).start(out), out)
        expected = results(out)
        for victim in victims:
            left = [number for number in range(options.moments) if not was_hit(cases, victim, number)]
            if not left:
                continue
            with place_for(victim, config) as place:
                for number, misses in itertools.product(left, range(MOST_MISSES)):
                    if was_hit(cases, victim, number):
                        continue
                    window = windows[victim][number % len(windows[victim])]
                    keep(options.log, one_case(place, victim, number, misses, window, expected))
                    cases = read_json_lines(options.log)
    return told(cases, list(itertools.product(victims, range(options.moments))))


def told(cases: list[dict[str, Any]], wanted: list[tuple[str, int]]) -> int:
    """Say who was killed where, and what went wrong; the exit status."""
    last = last_kills(cases)
    hits = [last[case] for case in wanted if case in last]
    for (victim, stage), count in sorted(Counter((case["victim"], case["stage"]) for case in hits).items()):
        print(f"{victim} in {stage}: {count}")
    bad = [case for case in hits if case["fault"]]
    spared = [f"{victim} {number}" for victim, number in wanted if (victim, number) not in last]
    misses = sum(not case["hit"] for case in cases)
    print(f"{len(hits)} kills, {len(bad)} with a fault, {misses} misses; {commits(hits)}")
    if spared:
        print(f"never hit, so nothing is proved of them: {', '.join(spared)}")
    return 1 if bad or spared else 0


def last_kills(cases: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """The line that counts of each case that killed somebody."""
    return {(case["victim"], case["number"]): case for case in cases if case["hit"]}


def was_hit(cases: list[dict[str, Any]], victim: str, number: int) -> bool:
    """Whether a case of the matrix is done; one with a fault is due again at another commit, as in `case_log`."""
    last = last_kills(cases).get((victim, number))
    return last is not None and (not last["fault"] or last["commit"] == COMMIT)


if __name__ == "__main__":
    sys.exit(main())
