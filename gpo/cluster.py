"""Ray: start it here or join it, make actors, and wait for them with a deadline.

A Ray that is started here is this run's alone, listens on loopback only, and ends with the driver, however that ends.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpo import interrupts
from gpo.config import ClusterConfig, RunConfig
from gpo.errors import StageError

if TYPE_CHECKING:
    from ray import ObjectRef

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 512 << 20
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""Telemetry off and Ray's sockets on loopback; read once, when ray is imported."""


@contextmanager
def ray_session(config: ClusterConfig) -> Iterator[None]:
    """Ray for the time of a run; joins `cluster.address` when one is given, and then leaves it running."""
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    import ray

    if config.address is None:
        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
    else:
        ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR)
    # Ray 2.60 puts a handler on SIGTERM that aborts the process; ours unwinds and leaves a resumable run.
    interrupts.install()
    try:
        yield
    finally:
        ray.shutdown()


def threads_for(config: RunConfig, processes: int) -> int:
    """CPU threads of one process among `processes` that work at the same time."""
    if config.cluster.threads:
        return config.cluster.threads
    return max(1, len(os.sched_getaffinity(0)) // max(1, processes))


def make_actor(
    kind: type, *arguments: Any, threads: int, gpus: float = 0, environment: dict[str, str] | None = None
) -> Any:
    """Start an actor process of a plain class; it never restarts by itself, the stage that uses it decides."""
    import ray

    environment = {
        "OMP_NUM_THREADS": str(threads),
        **{name: os.environ.get(name, QUIET[name]) for name in QUIET},
        **(environment or {}),
    }
    if "HF_HUB_OFFLINE" in os.environ:
        environment["HF_HUB_OFFLINE"] = os.environ["HF_HUB_OFFLINE"]
    options = {
        "num_cpus": 0.01,
        "num_gpus": gpus,
        "max_restarts": 0,
        "runtime_env": {"env_vars": environment},
    }
    return ray.remote(kind).options(**options).remote(*arguments)


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


def wait_for_any(references: Sequence["ObjectRef"], seconds: float, what: str) -> "ObjectRef":
    """The first reference that is ready; raises StageError at the deadline."""
    import ray

    interrupts.check()
    ready, _ = ray.wait(list(references), num_returns=1, timeout=seconds)
    if not ready:
        raise StageError(f"nothing finished within {seconds:.0f} s of {what}; start the same command again to go on")
    return ready[0]


def end_actor(actor: Any) -> None:
    """Kill an actor process and give it a moment to free its memory."""
    import ray

    ray.kill(actor)
    time.sleep(0.2)


def relative(path: Path) -> str:
    """Path for people: below the working directory where possible."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
