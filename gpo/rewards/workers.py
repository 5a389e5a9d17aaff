"""Workers that train a reward model: by Ray Train, or wherever torchrun starts this module.

The driver's part starts the workers, follows their steps and bounds the wait; the worker's part sets threads and logs
and does `reward.training`. A worker that dies is started again, together with the others, and goes on from the last
whole step checkpoint.

By torchrun: torchrun --nproc-per-node N -m gpo.rewards.workers CONFIG [key=value…]
"""

import logging
import os
import queue
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from gpo import interrupts
from gpo.cluster.runtime import QUIET, ray_alone
from gpo.config.reward import RewardTrainConfig
from gpo.cpu import allocator_environment, use_threads
from gpo.errors import StageError, UserError
from gpo.files import read_json_lines
from gpo.logs import Progress, log_to_file

logger = logging.getLogger(__name__)

LARGEST_WORKER_DEATHS = 3


def run_training(task: Any, config: RewardTrainConfig) -> None:
    """Start the workers and wait for them; raises StageError when they fail or no step comes in time."""
    with ray_alone(config.cluster):
        outcome = _start(_torch_trainer(task, config))
        _follow(Path(task.output), config.cluster.wait_seconds, outcome)
    shutil.rmtree(Path(task.output) / "training" / "ray", ignore_errors=True)


def worker(values: dict[str, Any]) -> None:
    """What one Ray Train worker does."""
    task = values["task"]
    log_to_file(Path(task.output) / "training" / "logs", f"worker-{os.getpid()}")
    use_threads(values["threads"])
    if values["workers"] == 1 and task.settings.sharding == "none":
        # A single worker needs no DDP around its model, which costs a copy of all gradients.
        for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
    from reward.training import train_pairs

    train_pairs(task)


def _torch_trainer(task: Any, config: RewardTrainConfig) -> Any:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = ray.cluster_resources().get("GPU", 0) > 0
    threads = config.cluster.threads or max(1, len(os.sched_getaffinity(0)) // config.workers)
    environment = {name: os.environ[name] for name in (*QUIET, "HF_HUB_OFFLINE") if name in os.environ}
    if not gpus:
        environment |= {**allocator_environment(), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads)}
    options: dict[str, Any] = {
        "name": f"reward-{time.time_ns()}",
        "storage_path": str(Path(task.output) / "training" / "ray"),
        "failure_config": FailureConfig(max_failures=LARGEST_WORKER_DEATHS),
        "worker_runtime_env": {"env_vars": environment},
    }
    return TorchTrainer(
        worker,
        train_loop_config={"task": task, "workers": config.workers, "threads": threads},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=task.collective_seconds),
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": 0.01, "GPU": 1} if gpus else {"CPU": 0.01},
        ),
        run_config=RunConfig(**options),
    )


def _start(trainer: Any) -> "queue.Queue[BaseException | None]":
    """Fit in a thread of its own, because in the main thread Ray Train would take Ctrl-C for itself."""
    outcome: queue.Queue[BaseException | None] = queue.Queue()

    def fit() -> None:
        try:
            trainer.fit()
            outcome.put(None)
        except BaseException as error:  # handed to the main thread, which raises it
            outcome.put(error)

    threading.Thread(target=fit, daemon=True, name="ray-train").start()
    return outcome


def _follow(output: Path, wait_seconds: float, outcome: "queue.Queue[BaseException | None]") -> None:
    """Show the steps that appear in metrics.jsonl until the end; the deadline starts anew with each."""
    metrics = output / "training" / "metrics.jsonl"
    deadline = time.monotonic() + wait_seconds
    progress: Progress | None = None
    shown = 0
    while time.monotonic() < deadline:
        interrupts.check()
        try:
            error = outcome.get(timeout=1.0)
        except queue.Empty:
            lines = [line for line in read_json_lines(metrics) if "loss" in line]
            if not lines or lines[-1]["step"] == shown:
                continue
            shown = lines[-1]["step"]
            deadline = time.monotonic() + wait_seconds
            progress = progress or Progress("reward training", lines[-1]["steps"], "steps")
            progress.update(shown, f"loss {lines[-1]['loss']:.3g}")
            continue
        if error is None:
            return
        _raise(error, output)
    raise StageError(
        f"reward training: no step within {wait_seconds:.0f} s (cluster.wait_seconds); start the same command again "
        "to go on"
    )


def _raise(error: BaseException, output: Path) -> None:
    """A mistake that only the workers could see is the caller's all the same."""
    from reward.errors import RewardInputError

    failures = getattr(error, "worker_failures", None) or {}
    for cause in [error, *failures.values(), getattr(error, "__cause__", None)]:
        if isinstance(cause, RewardInputError) or isinstance(getattr(cause, "cause", None), RewardInputError):
            raise UserError(str(getattr(cause, "cause", cause))) from None
    raise StageError(
        f"reward training failed: {error}\n  details are in {output / 'training' / 'logs'}; start the same command "
        "again to go on"
    ) from error


def main() -> None:
    """One worker under torchrun."""
    import sys

    import torch
    import torch.distributed as dist

    from gpo.rewards.training import training_task
    from gpo.settings import read_settings

    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    config = read_settings(RewardTrainConfig, Path(sys.argv[1]), sys.argv[2:])
    task = training_task(config)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    use_threads(config.cluster.threads or max(1, len(os.sched_getaffinity(0)) // local))
    from reward.training import train_pairs

    train_pairs(task)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
