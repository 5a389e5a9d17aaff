"""The kill matrix: SIGKILL of every kind of process and of a Ray worker node at random moments of a small run.

After each kill the run must end well, after at most one more start of the same command, with every (prompt, k) exactly
once, the token ids of an undisturbed run, and the victim named in the journal where its work was still wanted. Moments
are drawn from the whole run, so baseline, publish and evaluate are hit too; where the victim is not there, the run is
told as a miss and another moment is drawn. Each case is a line in the log; a matrix that was stopped goes on behind the
last one.

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from gpo.files import read_json_lines
from rollout.records import read_shard
from tests.cluster.namespaces import NamespacedCluster, namespaced_cluster, namespaces_can_be_made
from tests.e2e.tiny_run import command, descendants, environment, journal, make_workplace
from tests.proof.case_log import commits, keep

VICTIMS = {
    "sampler": "ray::LoggedSampler",
    "scorer": "ray::ShardScorer",
    "learner": "RayTrainWorker",
    "forward": "ray::ForwardActor",
    "driver": "",
    "node": "",
}
"""With what its title has in it; the driver and a node have none."""
MOST_STARTS, MOST_MISSES, SECONDS = 2, 5, 900
EQUAL_TOKENS = "policy.dtype=float32"
"""In bfloat16 seeds do not promise the same tokens in other company (docs/rollout.md)."""
SETTINGS = ("iterations=2", "baseline.kind=previous", "prompts.per_iteration=8", EQUAL_TOKENS)
LAST_STAGE = "evaluate 2"


def answers(out: Path) -> dict[str, Any]:
    """Token ids by iteration and prompt: a list of all rows of it, so that a doubled one is no equal."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("iterations/*/rollouts/shard-*.parquet")):
        for row in read_shard(path):
            found.setdefault(f"{path.parent.parent.name}/{row.prompt_id}", []).append(row.completion_ids)
    return found


def status_of(process: "subprocess.Popen[Any]") -> int | None:
    """How a run ended; None when it had to be ended."""
    try:
        return process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


class Place:
    """Where runs are started: this machine, or the head of a cluster of namespaces."""

    def __init__(self, config: Path, cluster: NamespacedCluster | None) -> None:
        self.config, self.cluster = config, cluster
        self.killed: Any = None
        """A host whose node is to be started again."""

    def start(self, out: Path) -> "subprocess.Popen[Any]":
        """The command of a run."""
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if self.cluster is None:
            words = command(self.config, out, *SETTINGS)
            return subprocess.Popen(words, env=environment(), cwd=self.config.parent, **quiet)
        words = command(self.config, out, *SETTINGS, f"cluster.address={self.cluster.address}")
        return self.cluster.popen(self.cluster.head, words, **quiet)

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


def one_case(
    place: Place, victim: str, number: int, misses: int, seconds: float, expected: dict[str, Any]
) -> dict[str, Any]:
    """Kill at a random moment, start again until it ends well, and compare."""
    moment = random.Random(f"{victim}/{number}/{misses}").uniform(0.05, 0.95) * seconds
    out = place.config.parent / f"{victim}-{number}-{misses}"
    process = place.start(out)
    started = time.monotonic()
    hit, fault = False, None
    try:
        while process.poll() is None and not hit and time.monotonic() - started < SECONDS:
            time.sleep(0.05)
            hit = time.monotonic() - started > moment and place.kill(victim, process, number)
        stages = [f"{line['stage']} {line['iteration']}" for line in journal(out) if line["event"] == "begin"]
        fault = place.mend()
        status = status_of(process)
    finally:
        process.kill()
    starts = 1
    while status not in (0, None) and starts < MOST_STARTS:
        starts += 1
        status = status_of(place.start(out))
    lines = journal(out)
    shards = [(line["iteration"], line["shard"]) for line in lines if line["event"] == "shard"]
    return {
        "victim": victim,
        "number": number,
        "moment_seconds": round(moment, 2),
        "hit": hit,
        "stage": stages[-1] if stages else "start",
        "starts": starts,
        "status": status,
        "same_tokens": answers(out) == expected,
        "shards_once": len(shards) == len(set(shards)),
        "lost": [line["process"] for line in lines if line["event"] == "lost"],
        "fault": fault,
    }


def named(case: dict[str, Any]) -> bool:
    """Whether the journal names a process that was killed; in the last stage its work may be over."""
    process = bool(VICTIMS[case["victim"]])
    wanted = case["hit"] and process and case["stage"] != LAST_STAGE and case["starts"] == 1
    return case["victim"] in case["lost"] if wanted else True


def good(case: dict[str, Any]) -> bool:
    """Whether a case ended as promised."""
    return case["status"] == 0 and case["same_tokens"] and case["shards_once"] and named(case) and not case.get("fault")


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
    with tempfile.TemporaryDirectory() as folder:
        config = make_workplace(Path(folder))
        started = time.monotonic()
        assert Place(config, None).start(Path(folder) / "undisturbed").wait(SECONDS) == 0
        seconds = time.monotonic() - started
        expected = answers(Path(folder) / "undisturbed")
        for victim in victims:
            left = [number for number in range(options.moments) if not was_hit(cases, victim, number)]
            if not left:
                continue
            with place_for(victim, config) as place:
                for number, misses in itertools.product(left, range(MOST_MISSES)):
                    if was_hit(cases, victim, number):
                        continue
                    keep(options.log, one_case(place, victim, number, misses, seconds, expected))
                    cases = read_json_lines(options.log)
    bad = [case for case in cases if not good(case)]
    spared = [
        f"{victim} {number}"
        for victim, number in itertools.product(victims, range(options.moments))
        if not was_hit(cases, victim, number)
    ]
    hits = sum(case["hit"] for case in cases)
    print(f"{len(cases)} runs, {hits} hits, {len(bad)} failed; {commits(cases)}; undisturbed {seconds:.0f} s")
    if spared:
        print(f"never hit, so nothing is proved of them: {', '.join(spared)}")
    return 1 if bad or spared else 0


def was_hit(cases: list[dict[str, Any]], victim: str, number: int) -> bool:
    """Whether a case of the matrix killed somebody."""
    return any(case["hit"] for case in cases if (case["victim"], case["number"]) == (victim, number))


if __name__ == "__main__":
    sys.exit(main())
