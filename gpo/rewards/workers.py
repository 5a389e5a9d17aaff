"""Workers that train a reward model: by Ray Train, or wherever torchrun starts this module.

The driver's part starts the workers, follows their steps and bounds the wait; the worker's part sets threads and logs
and does `reward.training`. A worker that dies is started again, together with the others, and goes on from the last
whole step checkpoint.

By torchrun: torchrun --nproc-per-node N -m gpo.rewards.workers CONFIG [key=value…]
Before it: python -m gpo.rewards.workers --check CONFIG [key=value…], since torchrun starts a mistake again and again.
"""

import logging
import os
import shutil
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from gpo.cluster.fitting import Followed, fit, what_workers_say
from gpo.cluster.placement import Demand, reward_workers, what_is_missing
from gpo.cluster.ray_environment import QUIET
from gpo.cluster.reservation import cluster_nodes, wait_for_room, want_no_nodes, want_nodes
from gpo.cluster.runtime import ray_alone
from gpo.cluster.worker_room import WorkerRoom
from gpo.config.reward import RewardTrainConfig
from gpo.cpu import keeping_malloc, prepare_process
from gpo.errors import StageError, UserError
from gpo.files import last_written, read_json_lines
from gpo.logs import log_to_file
from gpo.rewards.checks import check_for_torchrun, check_sources
from gpo.rewards.output import begin, held, is_finished
from gpo.training.workers import threads_of_worker, work_alone
from reward.checkpoint_files import METRICS_FILE

logger = logging.getLogger(__name__)

LARGEST_WORKER_DEATHS = 3
NEXT_STEP = (
    "add nodes, lower workers or what each takes (cluster.learner_cpus, cluster.learner_gpus), or wait longer with "
    "cluster.placement_seconds"
)


def run_training(task: Any, config: RewardTrainConfig) -> None:
    """Start the workers and wait for them.

    Raises UserError when the cluster has no room for them, StageError when they fail or nothing is heard of them.
    """
    output, folder = Path(task.output), Path(task.output) / "training"
    log_to_file(folder / "logs", f"driver-{os.getpid()}")

    def steps() -> list[dict[str, Any]]:
        return [line for line in read_json_lines(folder / "metrics.jsonl") if "loss" in line]

    with ray_alone(config.cluster):
        try:
            demand = _find_room(config)
            followed = Followed(
                name="reward training",
                steps=steps,
                # What the driver and Ray Train write is no sign of the workers.
                sign=lambda: last_written(output, folder / "ray", folder / "logs"),
                missing=WorkerRoom(demand).missing,
                cluster=config.cluster,
            )
            fit(
                lambda: _torch_trainer(task, config, demand.bundle),
                followed,
                lambda error: failure_of(error, output),
            )
        finally:
            want_no_nodes(config.cluster)
    shutil.rmtree(folder / "ray", ignore_errors=True)


def _find_room(config: RewardTrainConfig) -> Demand:
    """What the workers take, once the cluster has it; raises UserError when it lacks it at the deadline."""

    def wanted() -> Demand:
        gpus = any(node.total.get("GPU") for node in cluster_nodes())
        return reward_workers(config.cluster, config.workers, gpus=gpus)

    want_nodes(config.cluster, [wanted()])
    # The first node with GPUs may join late, so what is wanted is counted anew at each look.
    seconds = config.cluster.placement_seconds
    wait_for_room(lambda: what_is_missing([wanted()], cluster_nodes()), seconds, UserError, NEXT_STEP)
    return wanted()


def worker(values: dict[str, Any]) -> None:
    """What one Ray Train worker does."""
    task = values["task"]
    if (Path(task.output) / METRICS_FILE).is_file():
        return  # Another worker died after the end: the driver itself starts no finished training.
    log_to_file(Path(task.output) / "training" / "logs", f"worker-{os.getpid()}")
    prepare_process(values["threads"] or threads_of_worker())
    if values["workers"] == 1 and task.settings.sharding == "none":
        work_alone()
    from reward.training import train_pairs

    train_pairs(task)


def _torch_trainer(task: Any, config: RewardTrainConfig, bundle: dict[str, float]) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from gpo.cluster.torch_trainer import torch_trainer
    from gpo.rewards.mistakes import Mistakes

    gpus = "GPU" in bundle
    threads = config.cluster.threads or int(config.cluster.learner_cpus)
    environment = {name: os.environ[name] for name in (*QUIET, "HF_HUB_OFFLINE") if name in os.environ}
    if not gpus:
        environment |= {**keeping_malloc(), "DS_ACCELERATOR": "cpu"}
    options: dict[str, Any] = {
        "name": f"reward-{time.time_ns()}",
        "storage_path": str(Path(task.output) / "training" / "ray"),
        "failure_config": FailureConfig(max_failures=LARGEST_WORKER_DEATHS),
        "callbacks": [Mistakes()],
        "worker_runtime_env": {"env_vars": environment},
    }
    return torch_trainer(config.cluster)(
        worker,
        train_loop_config={"task": task, "workers": config.workers, "threads": threads},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=task.collective_seconds),
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=gpus,
            resources_per_worker=bundle,
            placement_strategy=config.cluster.strategy.upper(),
        ),
        run_config=RunConfig(**options),
    )


def failure_of(error: BaseException, output: Path) -> Exception:
    """A mistake that only the workers could see is the caller's all the same."""
    from reward.errors import RewardInputError

    mistake = getattr(error, "controller_failure", None)
    if isinstance(mistake, RewardInputError):
        return UserError(str(mistake))
    return StageError(
        f"reward training failed: {what_workers_say(error)}\n  details are in "
        f"{output / 'training' / 'logs'}; start the same command again to go on"
    )


def main() -> None:
    """One worker under torchrun, or with --check only what is checked before any starts."""
    import sys

    from gpo.rewards.training import training_task
    from gpo.settings import read_settings
    from reward.errors import RewardInputError

    checks = sys.argv[1:2] == ["--check"]
    words = sys.argv[2 if checks else 1 :]
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if words else 2)
    try:
        config = read_settings(RewardTrainConfig, Path(words[0]), words[1:])
        check_for_torchrun(config)
        if checks:
            check_sources(training_task(config))
        else:
            _work_under_torchrun(config, int(os.environ.get("RANK", "0")))
    except (UserError, RewardInputError, StageError) as error:
        print(f"gpo: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, StageError) else 2)


def _work_under_torchrun(config: RewardTrainConfig, rank: int) -> None:
    """The first worker does what the driver does of a training by Ray Train."""
    from gpo.hub import push_reward_model
    from gpo.rewards.training import training_task

    if not is_finished(config):
        task = training_task(config)
        if rank == 0:
            check_sources(task)
        with held(config) if rank == 0 else nullcontext():
            if rank == 0:
                begin(config)
            _train_under_torchrun(task, config)
    if rank == 0:
        push_reward_model(config)


def _train_under_torchrun(task: Any, config: RewardTrainConfig) -> None:
    import torch
    import torch.distributed as dist

    from gpo.rewards.training import write_card

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    prepare_process(config.cluster.threads or max(1, len(os.sched_getaffinity(0)) // local))
    if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # With use_cpu transformers hands its deadline on to nobody.
        dist.init_process_group("gloo", timeout=timedelta(seconds=task.collective_seconds))
    from reward.training import train_pairs

    if train_pairs(task) is not None:
        write_card(config)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
