"""Where the kill matrix runs: this machine, or a cluster of namespaces of which a node is to die.

A node is chosen by what it holds: one on which nothing of the run works would prove nothing.
"""

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.cluster.namespaces import Host, NamespacedCluster, namespaced_cluster
from tests.cluster.workplace import titles
from tests.e2e.tiny_run import environment
from tests.proof.workload import TITLES, Workload, kind_of

WORK = {
    "canary": ("forward", "sampler"),
    "answer": ("sampler",),
    "baseline": ("sampler", "scorer"),
    "generate": ("sampler", "scorer"),
    "train": ("learner",),
    "publish": ("sampler",),
    "evaluate": ("scorer", "forward"),
}
"""Stage -> whose death makes a node's death one of that stage; a node's cases take turns."""
NODES, CPUS = 2, 2


class Place:
    """Starts runs, and kills parts of them."""

    def __init__(self, work: Workload, cluster: NamespacedCluster | None) -> None:
        self.work, self.folder = work, work.config.parent
        self._cluster = cluster
        self._killed: Host | None = None
        """A host whose node is to be started again."""

    def start(self, out: Path, said: Path) -> "subprocess.Popen[Any]":
        """The command of a run; what it prints goes to the file `said`."""
        with said.open("w") as stream:
            streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": stream}
            if self._cluster is None:
                return subprocess.Popen(self.work.command(out), env=environment(), cwd=self.folder, **streams)
            words = self.work.command(out, f"cluster.address={self._cluster.address}")
            return self._cluster.popen(self._cluster.head, words, **streams)

    def there(self, process: "subprocess.Popen[Any]", stage: str) -> set[str]:
        """Victims that could be killed at this moment, beside the driver."""
        if self._cluster is None:
            return roles_in(titles_below(process).values())
        wanted = set(WORK.get(kind_of(stage), ()))
        return {"node"} if any(wanted & held for _, held in self._nodes()) else set()

    def kill(self, victim: str, stage: str, number: int, process: "subprocess.Popen[Any]") -> list[str]:
        """SIGKILL; what died by it, nothing where there is no such victim at this moment."""
        if victim == "node":
            return self._kill_node(WORK[kind_of(stage)], number)
        found = [process.pid]
        if victim != "driver":
            found = [pid for pid, title in titles_below(process).items() if TITLES[victim] in title]
        try:
            if found:
                os.kill(found[0], signal.SIGKILL)
            return [victim] if found else []
        except ProcessLookupError:
            return []

    def _kill_node(self, work: tuple[str, ...], number: int) -> list[str]:
        wanted = work[number % len(work)]
        for host, held in self._nodes():
            if wanted in held:
                host.kill()
                self._killed = host
                return sorted(held)
        return []

    def _nodes(self) -> list[tuple[Host, set[str]]]:
        """Worker nodes, and what each holds of the run."""
        assert self._cluster is not None
        return [(host, roles_in(titles(host))) for host in self._cluster.hosts[1:]]

    def mend(self) -> str | None:
        """Start a node that was killed again; what went wrong with that."""
        host, self._killed = self._killed, None
        if host is None or self._cluster is None:
            return None
        try:
            self._cluster.start(host, CPUS)
        except Exception as error:  # a fault of the place, told with the case
            return f"the node did not come back: {type(error).__name__}: {error}"
        return None


def titles_below(process: "subprocess.Popen[Any]") -> dict[int, str]:
    """Process id -> title, of all processes below one: a single look, because each goes through the whole machine."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            found[child.pid] = " ".join(child.cmdline())
        except psutil.Error:
            continue
    return found


def roles_in(lines: Iterable[str]) -> set[str]:
    """Which of the run's processes are among these titles."""
    lines = list(lines)
    return {role for role, title in TITLES.items() if any(title in line for line in lines)}


@contextmanager
def place_for(victims: list[str], work: Workload) -> Iterator[Place]:
    """A cluster only where a node is to die."""
    if victims != ["node"]:
        yield Place(work, None)
        return
    with namespaced_cluster(work.config.parent, workers=NODES, cpus=CPUS) as cluster:
        yield Place(work, cluster)
