"""Who sends weights over the network takes what a learner left, for the time of a publish. Nothing is started.

Run: python -m pytest tests/gpo/rollouts/test_sender.py
"""

from types import SimpleNamespace
from typing import Any

import pytest

from gpo.rollouts import pool as pools
from gpo.rollouts.pool import Pool, Weights, Worker
from rollout.engine_settings import EngineSettings
from tests.gpo.small_runs import run_config


@pytest.mark.parametrize(("learner_gpus", "taken"), [(None, 1.0), (0.5, 0.5), (2, 1.0)])
def test_a_sender_takes_a_learners_gpu_and_goes_after_the_publish(
    monkeypatch: pytest.MonkeyPatch, learner_gpus: float | None, taken: float
) -> None:
    made: list[float] = []
    ended: list[Any] = []
    sender = SimpleNamespace(send=SimpleNamespace(remote=lambda *_: "sent"))

    def make_actor(*_: Any, gpus: float, **__: Any) -> Any:
        made.append(gpus)
        return sender

    monkeypatch.setattr(pools, "make_actor", make_actor)
    monkeypatch.setattr(pools, "end_actor", ended.append)
    monkeypatch.setattr(pools, "wait_for", lambda *_: None)
    monkeypatch.setattr(Pool, "notice_deaths", lambda self: None)
    config = run_config(cluster={"shape": "split", "samplers": 2, "learner_gpus": learner_gpus})
    pool = Pool(config, EngineSettings(max_model_len=64, weight_transfer="nccl"), "logs")
    pool._workers = [Worker(name, "sampler", loaded=Weights("start", None)) for name in ("one", "two")]
    assert pool.samplers(Weights("published", "001")) == ["one", "two"]
    assert made == [taken] and ended == [sender]
