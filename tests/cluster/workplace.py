"""A tiny run on a namespaced cluster: its command, where its processes lie, and what it left."""

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from rollout.records import read_shard
from tests.cluster.namespaces import Host, NamespacedCluster
from tests.e2e.tiny_run import journal, make_workplace

RUN_SECONDS = 400
SAMPLER, SCORER, LEARNER, FORWARD = "ray::LoggedSampler", "ray::ShardScorer", "RayTrainWorker", "ray::ForwardActor"
PLACEMENT = (
    "cluster.shape=split", "cluster.strategy=spread", "cluster.samplers=2", "cluster.scorers=1", "train.workers=2",
    "cluster.sampler_cpus=1", "cluster.scorer_cpus=1", "cluster.learner_cpus=1", "cluster.threads=1",
)  # fmt: skip
"""Five CPUs: two nodes of three hold them, so that one of three nodes may fail."""
FEW_AT_ONCE = ("rollout.engine.max_sequences=6", "cluster.waiting_shards=1")
"""Two shards in an engine instead of all eight, so that some are left when the first one is finished."""


def gpo_run(config: Path, out: Path, *overrides: str) -> list[str]:
    """`gpo run` of one iteration."""
    return [sys.executable, "-m", "gpo", "run", str(config), "iterations=1", *overrides, "--run-dir", str(out)]


def gpo_submit(cluster: NamespacedCluster, config: Path, out: Path, *overrides: str) -> list[str]:
    """`gpo submit` of the same, followed to its end."""
    words = [sys.executable, "-m", "gpo", "submit", str(config), "iterations=1", *overrides]
    return [*words, "--address", cluster.dashboard, "--run-dir", str(out), "--wait"]


def hosts_of(cluster: NamespacedCluster, title: str) -> list[Host]:
    """Hosts on which a process with this in its title runs now."""
    return [host for host in cluster.hosts if any(title in line for line in titles(host))]


def titles(host: Host) -> list[str]:
    """Of all processes of a host."""
    found = []
    for number in host.processes():
        try:
            found.append(" ".join(psutil.Process(number).cmdline()))
        except psutil.Error:
            continue
    return found


class Watch:
    """Looks, all the time, which actors run on which host."""

    def __init__(self, cluster: NamespacedCluster) -> None:
        self.seen: dict[str, set[str]] = {SAMPLER: set(), SCORER: set(), LEARNER: set()}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(cluster,), daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self, cluster: NamespacedCluster) -> None:
        while not self._over.wait(0.5):
            for host in cluster.hosts:
                for line in titles(host):
                    for title, addresses in self.seen.items():
                        if title in line:
                            addresses.add(host.address)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = RUN_SECONDS) -> Any:
    """What the condition gives once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no {what} within {seconds:.0f} s")


def answers(out: Path) -> dict[str, list[list[int]]]:
    """Token ids by prompt; each of the 16 prompts exactly once."""
    rows = [row for path in sorted((out / "iterations/001/rollouts").glob("*.parquet")) for row in read_shard(path)]
    assert len(rows) == len({row.prompt_id for row in rows}) == 16
    return {row.prompt_id: row.completion_ids for row in rows}


def finished_stages(out: Path) -> list[str]:
    """Of the first iteration, in the order of the journal."""
    return [line["stage"] for line in journal(out) if line["event"] == "stage" and line["iteration"] == 1]


def new_workplace(folder: Path) -> Path:
    """A folder that all hosts see, emptied; returns the config's path."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return make_workplace(folder)
