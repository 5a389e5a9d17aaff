"""What Ray and the libraries in its processes read from the environment, for a Ray of our own or a cluster."""

import os

from gpo.config import ClusterConfig

LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own name for it; 0 keeps the sockets of a local Ray on loopback."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    LOOPBACK_SWITCH: "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # Else what is printed becomes a line of our log, and dill, which reads what it lets be printed, reads nothing.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""Telemetry off and Ray's sockets on loopback."""
ALONE = {
    # Metrics go to an agent that keeps those of ended processes as well, for a dashboard that is not there.
    "RAY_enable_metrics_collection": "0",
    # A process beside each training that asks whether a cloud takes its node back.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # How soon the end of a training is noticed: 2 by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # What the GCS remembers of tasks and actors that are done, for a dashboard too: 100,000 of each by default.
    "RAY_task_events_max_num_task_in_gcs": "1000",
    "RAY_maximum_gcs_destroyed_actor_cached_count": "100",
    # And what it freed, in one place: each of its many threads has an arena and caches by default, which fill for
    # hundreds of trainings.
    "RAY_JEMALLOC_PROFILE": "gcs_server",
    "RAY_JEMALLOC_CONF": "narenas:1,tcache:false,dirty_decay_ms:0,muzzy_decay_ms:0",
}
"""For a Ray that ends with the run."""


def prepare_environment(cluster: ClusterConfig) -> None:
    """Set what is not set yet. To be called before ray is imported, which reads it once."""
    settings = QUIET | (ALONE if cluster.address is None else {})
    os.environ.update({name: os.environ.get(name, value) for name, value in settings.items()})
    if cluster.listen == "all" or cluster.address is not None:
        # On loopback alone this process could not be reached by other nodes.
        os.environ.pop(LOOPBACK_SWITCH, None)
