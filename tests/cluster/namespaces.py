"""A Ray cluster of several hosts on one machine: each node is a network namespace with an address of its own.

The namespaces hang on a bridge inside the head's namespace, so the machine's own network is not touched. A node may
hide a folder behind an empty one of its own, as a host without a shared disk. Needs root and Debian's iproute2.
"""

import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
PORT = 6379
START_SECONDS = 150
MOST_STARTS = 3
OBJECT_STORE_BYTES = 200 << 20
COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
)  # fmt: skip
"""Lists that the config of an autoscaler must have."""
NODES_ALIKE = {"use_node_id_as_ip": True, "disable_node_updaters": True}
"""Nodes of one address are told apart, and set up by nobody, for which an autoscaler would go there by SSH."""
_clusters = itertools.count()


def namespaces_can_be_made() -> bool:
    """Whether this user may make network namespaces here."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"gpo-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    return made


@dataclass
class Host:
    """A namespace, its address, and the folder that Ray may use."""

    name: str
    address: str
    temporary: Path
    hidden: Path | None = None
    """Folder that this host sees empty at first, and fills by itself."""

    def command(self, words: Sequence[str]) -> list[str]:
        """Such that the words run on this host."""
        inside = ["ip", "netns", "exec", self.name]
        if self.hidden is None:
            return [*inside, *words]
        # A folder of the host's own, over the one that all see; several commands on a host share it.
        own = self.temporary / "own-disk"
        own.mkdir(parents=True, exist_ok=True)
        return [*inside, "sh", "-c", f'mount --bind "{own}" "{self.hidden}" && exec "$@"', "sh", *words]

    def processes(self) -> list[int]:
        """Ids of all processes on this host."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(line) for line in found.stdout.split()]

    def kill(self) -> None:
        """As when its power fails: SIGKILL for every process at once."""
        for number in self.processes():
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue


@dataclass(frozen=True)
class Autoscaler:
    """Ray's own, with its provider of nodes on one machine: they appear on the head's host as they are wanted."""

    most_nodes: int
    cpus: int

    def write(self, path: Path, address: str) -> Path:
        """The config file of `ray start --head`."""
        head = {"resources": {}, "node_config": {}, "max_workers": 0}
        added = {"resources": {"CPU": self.cpus}, "node_config": {}, "min_workers": 0, "max_workers": self.most_nodes}
        config = {
            "cluster_name": "added",
            "max_workers": self.most_nodes,
            "provider": {"type": "fake_multinode", "gcs_address": address, **NODES_ALIKE},
            "available_node_types": {"ray.head.default": head, "added": added},
            "head_node_type": "ray.head.default",
            "idle_timeout_minutes": 0.1,
            "upscaling_speed": 1.0,
            "file_mounts_sync_continuously": False,
            **{key: {} for key in ("file_mounts", "docker", "auth")},
            **{key: [] for key in COMMANDS},
        }
        path.write_text(json.dumps(config))
        return path

    def environment(self) -> dict[str, str]:
        """What the provider demands, and a look every second."""
        return {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}


@dataclass
class NamespacedCluster:
    """The head first; every other host is a worker node."""

    hosts: list[Host]
    folder: Path
    autoscaler: Autoscaler | None = None
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    @property
    def head(self) -> Host:
        return self.hosts[0]

    @property
    def address(self) -> str:
        return f"{self.head.address}:{PORT}"

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:8265"

    def environment(self) -> dict[str, str]:
        """What every process of the cluster, and every client, is given."""
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "token"}
        path = f"{RAY.parent}:{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        own = {"RAY_AUTH_TOKEN": self.token, "PYTHONPATH": str(REPOSITORY), "PATH": path}
        return {**kept, **quiet, **own, **(self.autoscaler.environment() if self.autoscaler else {})}

    def start(self, host: Host, cpus: int) -> None:
        """Ray on a host; joins the head's cluster unless it is the head."""
        words = [str(RAY), "start", "--node-ip-address", host.address, "--num-cpus", str(cpus)]
        words += ["--object-store-memory", str(OBJECT_STORE_BYTES), "--temp-dir", str(host.temporary / "ray")]
        words += ["--disable-usage-stats"]
        if host is self.head:
            words += ["--head", "--port", str(PORT), "--dashboard-host", host.address, "--include-dashboard", "true"]
            if self.autoscaler is not None:
                config = self.autoscaler.write(host.temporary / "autoscaling.json", self.address)
                words += ["--autoscaling-config", str(config)]
        else:
            words += ["--address", self.address]
        for _ in range(MOST_STARTS):
            done = self.run(host, words, START_SECONDS)
            if done.returncode == 0:
                return
            # Ray gives a node 30 s to appear, which a busy machine may not.
            host.kill()
            time.sleep(1)
        raise RuntimeError(f"ray start on {host.address} ended with {done.returncode}:\n{done.stdout}{done.stderr}")

    def run(self, host: Host, words: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        """A command on a host, to its end; its output goes through files, because Ray's daemons keep pipes open."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = self.popen(host, words, stdout=out, stderr=err)
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            for stream in (out, err):
                stream.seek(0)
            return subprocess.CompletedProcess(words, status, out.read(), err.read())

    def popen(self, host: Host, words: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """A command on a host, started."""
        return subprocess.Popen(host.command(words), env=self.environment(), cwd=self.folder, **options)


@contextmanager
def namespaced_cluster(
    folder: Path,
    *,
    workers: int,
    cpus: int,
    head_cpus: int = 0,
    hidden: Path | None = None,
    autoscaler: Autoscaler | None = None,
) -> Iterator[NamespacedCluster]:
    """A head and so many worker nodes; all that was started is gone at the end. Several may stand at once."""
    number = next(_clusters)
    label = f"gpo{os.getpid()}-{number}"
    # Ray looks for a head with its address among all processes of the machine, so each cluster has a subnet of its own.
    subnet = f"10.77.{(os.getpid() + number) % 256}"
    # Sockets below it must stay within 107 letters.
    temporary = Path(tempfile.mkdtemp(prefix="gpo-"))
    hosts = [
        Host(f"{label}-{n}", f"{subnet}.{n + 1}", temporary / str(n), hidden if n else None) for n in range(workers + 1)
    ]
    for host in hosts:
        host.temporary.mkdir(parents=True)
    cluster = NamespacedCluster(hosts, folder, autoscaler)
    try:
        _make_network(hosts)
        if autoscaler is not None:
            # Added nodes find their address by the way out.
            subprocess.run(["ip", "-n", hosts[0].name, "route", "add", "default", "dev", "bridge"], check=True)
        cluster.start(hosts[0], head_cpus)
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(lambda host: cluster.start(host, cpus), hosts[1:]))
        yield cluster
    finally:
        for host in hosts:
            host.kill()
        time.sleep(0.5)
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True)
        shutil.rmtree(temporary, ignore_errors=True)


def _make_network(hosts: list[Host]) -> None:
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    head = hosts[0].name
    for host in hosts:
        ip("netns", "add", host.name)
        ip("-n", host.name, "link", "set", "lo", "up")
    ip("-n", head, "link", "add", "bridge", "type", "bridge")
    ip("-n", head, "address", "add", f"{hosts[0].address}/24", "dev", "bridge")
    ip("-n", head, "link", "set", "bridge", "up")
    for number, host in enumerate(hosts[1:], 1):
        ip("-n", head, "link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", host.name)
        ip("-n", head, "link", "set", f"to{number}", "master", "bridge", "up")
        ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
        ip("-n", host.name, "link", "set", "eth0", "up")
