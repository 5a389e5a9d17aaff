"""Ray: start it here or join it, make actors in the places of a run, and wait for them with a deadline.

A Ray that is started here is this run's alone, listens on loopback unless the config says otherwise, and ends with the
driver, however that ends.
"""

import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpo import interrupts
from gpo.cluster.leftovers import end_leftovers, workers_of_ray
from gpo.cluster.node_files import NodeFiles
from gpo.cluster.placement import A_LITTLE_CPU
from gpo.cluster.ray_environment import QUIET, prepare_environment
from gpo.cluster.reservation import Place, Reservation, cluster_nodes
from gpo.cluster.worker_room import WorkerRoom
from gpo.config import ClusterConfig, RunConfig
from gpo.errors import StageError, UserError

if TYPE_CHECKING:
    from ray import ObjectRef

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 512 << 20
A_LITTLE_OF_A_NODE = 0.001
"""Of the one that each node has of its own name."""
REACH_SECONDS = 5.0

_reservation: Reservation | None = None
_files: NodeFiles | None = None
"""Of the session: Ray, too, is one for a whole process."""


@contextmanager
def ray_session(config: RunConfig, root: Path, owner: str) -> Iterator[None]:
    """Ray for the time of a run in the directory `root`, with its places reserved; joins `cluster.address` when given.

    `owner` tells this run from others that lay there. A cluster that was joined is left running. Raises UserError when
    it cannot be reached, or lacks what the run wants.
    """
    global _reservation, _files
    with ray_alone(config.cluster):
        try:
            _reservation = Reservation(config)
            _files = NodeFiles(root, "yes" if config.cluster.address is None else config.cluster.shared_disk, owner)
            _files.keep(*(path for path in named_files(config) if path.exists()))
            yield
        finally:
            if _reservation is not None:
                _reservation.close()
            _reservation = _files = None


@contextmanager
def ray_alone(cluster: ClusterConfig) -> Iterator[None]:
    """Ray without places reserved, started here or joined; raises UserError when that cannot be."""
    prepare_environment(cluster)
    import ray

    try:
        with interrupts.kept_from_ray():
            _start_or_join(cluster)
        yield
    finally:
        ours = workers_of_ray() if cluster.address is None else []
        ray.shutdown()
        interrupts.take_back()
        end_leftovers(ours)


def _start_or_join(cluster: ClusterConfig) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address is None:
        _check_shell()
        local: dict[str, Any] = {"_node_ip_address": "127.0.0.1"} if cluster.listen == "loopback" else {}
        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **local,
            **quiet,
        )
        return
    _check_reachable(cluster.address)
    use_token_where_there_is_one()
    try:
        ray.init(address=cluster.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"cluster.address = {cluster.address}: Ray cannot join it ({error}); expected a running cluster of Ray "
            f"{ray.__version__} of which this machine is a node (`ray status` shows one); from elsewhere use gpo submit"
        ) from None


def _check_shell() -> None:
    """Ray has bash start its workers; without one it tries again for ever, and says so only in a log of its own.

    Raises UserError.
    """
    if shutil.which("bash") is None:
        raise UserError(
            f"PATH = {os.environ.get('PATH', '')}: there is no bash, which Ray starts its processes with; expected the "
            "folder of one (export PATH=/usr/bin:/bin)"
        )


def _check_reachable(address: str) -> None:
    """Find a wrong HOST:PORT in seconds: Ray itself tries it for minutes. Raises UserError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        if address in ("auto", "local"):
            return
        raise UserError(
            f"cluster.address = {address}: expected auto or HOST:PORT of a cluster's head; a machine outside the "
            "cluster uses gpo submit --address http://HOST:8265"
        )
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cluster.address = {address}: nothing answers there ({error}); is the head running (`ray start --head`), "
            "and its port open for this machine?"
        ) from None


def use_token_where_there_is_one() -> None:
    """Turn Ray's token authentication on where this user has a token, as a head that was started here does."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ["RAY_AUTH_MODE"] = "token"


def threads_for(cluster: ClusterConfig, processes: int, reserved: float = 0) -> int:
    """CPU threads of one process among `processes` that work at the same time, each with `reserved` CPUs of its own.

    On a cluster the cores that count are those of the node that offers fewest, which may hold all the processes.
    """
    if cluster.threads or reserved:
        return cluster.threads or max(1, int(reserved))
    cores = len(os.sched_getaffinity(0))
    if cluster.address is not None:
        offered = [int(node.total["CPU"]) for node in cluster_nodes() if node.total.get("CPU")]
        cores = min(offered, default=cores)
    return max(1, cores // max(1, processes))


def make_actor(
    kind: type,
    *arguments: Any,
    threads: int,
    role: str | None = None,
    gpus: float = 0,
    environment: dict[str, str] | None = None,
) -> Any:
    """Start an actor process of a plain class; it never restarts by itself, the stage that uses it decides.

    `role` (sampler, scorer): it goes to a reserved place of that kind. None: it takes `gpus` devices wherever they are
    and no CPU, so that a cluster that holds the reserved places and nothing else has room for it. Raises StageError
    when no place is there within `cluster.placement_seconds`.
    """
    import ray

    deliver()
    place = _reservation.take(role) if _reservation is not None and role is not None else None
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **{name: os.environ[name] for name in (*QUIET, "HF_HUB_OFFLINE") if name in os.environ},
        **(environment or {}),
        **(place.environment() if place else {}),
    }
    options = {"num_cpus": 0, "num_gpus": gpus, **_options(place, gpus)}
    actor: Any = (
        ray.remote(kind).options(**options, max_restarts=0, runtime_env={"env_vars": environment}).remote(*arguments)
    )
    if place is not None and _reservation is not None:
        _reservation.hold(place, actor)
    return actor


def _options(place: Place | None, gpus: float) -> dict[str, Any]:
    """Ray puts a process that takes nothing at all on any node, also on a small head that offers no core."""
    if place is not None:
        return place.actor_options()
    return {} if gpus else {"resources": {_node_with_cores(): A_LITTLE_OF_A_NODE}}


def _node_with_cores() -> str:
    """The resource that Ray gives a node by its address: of the driver's node where it offers cores, else of the one
    that offers most. Ray 2.60 does not keep a soft affinity of a process that takes nothing."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes = cluster_nodes()
    own = [node for node in nodes if node.node_id == here and node.total.get("CPU")]
    chosen = own[0] if own else max(nodes, key=lambda node: node.total.get("CPU", 0.0))
    return f"node:{chosen.address}"


def named_files(config: RunConfig) -> list[Path]:
    """What processes on nodes read besides the run directory: the policy and the preference sources."""
    places = [spec.partition(":")[2] for spec in config.preference.sources.values() if spec.startswith("gpm:")]
    places += [spec.split(":")[1] for spec in config.preference.sources.values() if spec.startswith("python:")]
    return [Path(place) for place in (config.policy.model, *places)]


def deliver(*paths: Path) -> None:
    """Bring files to the nodes that do not share this disk; nothing happens where all do."""
    if _files is not None:
        _files.deliver(*paths)


def begin_stage() -> None:
    """A node that joins from now on gets what is delivered from now on."""
    if _files is not None:
        _files.begin_stage()


def collect(*paths: Path, beside: Path | None = None) -> None:
    """Bring back what processes on such nodes wrote; `beside`: only from the node that wrote this file last."""
    if _files is not None:
        _files.collect(*paths, beside=beside)


def processes_now(role: str, wanted: int) -> int:
    """How many processes of a role may be there now: `wanted`, or fewer while the cluster has no room for all."""
    return wanted if _reservation is None else min(wanted, _reservation.processes(role))


def learner_scaling(config: RunConfig) -> dict[str, Any]:
    """Arguments of Ray Train's ScalingConfig; waits for room for the learners, raises StageError without it."""
    bundle = {"CPU": A_LITTLE_CPU}
    if _reservation is not None:
        _reservation.wait_for_learners()
        bundle = _reservation.learners.bundle
    return {
        "num_workers": config.train.workers,
        "use_gpu": "GPU" in bundle,
        "resources_per_worker": bundle,
        "placement_strategy": config.cluster.strategy.upper(),
    }


def learner_room() -> Callable[[], str | None]:
    """Ask it for what the cluster lacks for learners that are started from now on and have no place."""
    return (lambda: None) if _reservation is None else WorkerRoom(_reservation.learners).missing


def wait_for(reference: "ObjectRef", seconds: float, what: str) -> Any:
    """The result of a remote call; raises StageError naming it when the deadline passes.

    Errors of the remote side are raised as they are (Ray's RayActorError for a dead process).
    """
    import ray

    interrupts.check()
    try:
        return ray.get(reference, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        raise StageError(
            f"no answer within {seconds:.0f} s from {what}; start the same command again to go on"
        ) from None


def end_actor(actor: Any) -> None:
    """Kill an actor process and give it a moment to free its memory."""
    import ray

    if _reservation is not None:
        _reservation.leave(actor)
    ray.kill(actor)
    time.sleep(0.2)


def relative(path: Path) -> str:
    """Path for people: below the working directory where possible."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
