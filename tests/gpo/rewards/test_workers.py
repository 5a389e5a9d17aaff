"""What the driver of a reward training says before workers start, and when they fail. Nothing is started.

Run: python -m pytest tests/gpo/rewards/test_workers.py
"""

from pathlib import Path
from typing import Any

import pytest
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from gpo.cluster.placement import Node
from gpo.config.reward import RewardTrainConfig
from gpo.errors import StageError, UserError
from gpo.rewards import workers


def config(workers: int = 1, **cluster: Any) -> RewardTrainConfig:
    values = {"backbone": "b", "train": "t", "output": "o", "tune": "full", "workers": workers, "cluster": cluster}
    return RewardTrainConfig.model_validate(values)


def nodes(monkeypatch: pytest.MonkeyPatch, *totals: dict[str, float]) -> None:
    found = [Node(str(number), f"10.0.0.{number}", total, total) for number, total in enumerate(totals)]
    monkeypatch.setattr(workers, "cluster_nodes", lambda: found)


def test_a_cluster_without_room_for_the_workers_is_told_with_numbers_before_they_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes(monkeypatch, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0})
    with pytest.raises(UserError) as caught:
        workers._find_room(config(4, placement_seconds=0.2))
    assert "4 workers of 1 GPU each: the cluster has room for 2" in str(caught.value)
    assert "node 10.0.0.0: 8 of 8 CPU free, 2 of 2 GPU free" in str(caught.value)
    assert "lower workers" in str(caught.value)


def test_workers_take_the_cpus_and_gpus_that_the_config_names(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 8.0, "GPU": 2.0})
    assert workers._find_room(config(2, learner_cpus=2, learner_gpus=0.5)).bundle == {"CPU": 2.0, "GPU": 0.5}
    nodes(monkeypatch, {"CPU": 8.0})
    assert workers._find_room(config(2)).bundle == {"CPU": 0.01}


def test_a_bucket_for_a_reward_training_is_refused() -> None:
    with pytest.raises(ValueError, match="cluster.storage is set, and a reward model is written to output alone"):
        config(storage="s3://bucket/runs")


def test_a_failure_of_the_workers_is_told_in_a_line_without_its_traceback(tmp_path: Path) -> None:
    told = UserExceptionWithTraceback(ValueError("odd"), "Traceback (most recent call last):\nValueError: odd")
    failure = workers.failure_of(WorkerGroupError("Traceback", {0: told}), tmp_path)
    first, _ = str(failure).split("\n")
    assert isinstance(failure, StageError) and first == "reward training failed: worker 0: ValueError: odd"
