"""A training followed from the driver, with a trainer that only waits: deadlines, what renews them, what is told.

Run: python -m pytest tests/gpo/cluster/test_fitting.py
"""

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from gpo.cluster import fitting
from gpo.cluster.fitting import Followed, fit, what_workers_say
from gpo.config import ClusterConfig
from gpo.errors import StageError

NO_ROOM = "  - 2 learners of 1 GPU each: the cluster has room for 1, and for 1 of them now"


class Trainer:
    """Fits until it is told to end, or fails at once."""

    def __init__(self, error: Exception | None = None) -> None:
        self.end = threading.Event()
        self._error = error

    def fit(self) -> None:
        if self._error is not None:
            raise self._error
        self.end.wait(60)


@pytest.fixture
def waiting() -> Iterator[Trainer]:
    trainer = Trainer()
    yield trainer
    trainer.end.set()


def followed(
    sign: Callable[[], int] = lambda: 0, missing: Callable[[], str | None] = lambda: None, **cluster: Any
) -> Followed:
    return Followed(
        name="training", steps=lambda: [], sign=sign, missing=missing, cluster=ClusterConfig.model_validate(cluster)
    )


def failed(error: BaseException) -> Exception:
    return StageError(what_workers_say(error))


def test_workers_without_a_place_are_told_and_end_the_wait(
    waiting: Trainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fitting, "REPORT_EVERY_SECONDS", 0.1)
    with caplog.at_level(logging.WARNING), pytest.raises(StageError) as caught:
        fit(lambda: waiting, followed(missing=lambda: NO_ROOM, placement_seconds=1.5), failed)
    assert NO_ROOM in str(caught.value) and "cluster.placement_seconds" in str(caught.value)
    assert "waiting up to 2 s more" in caplog.records[0].message and NO_ROOM in caplog.records[0].message


def test_without_any_sign_a_training_ends_at_its_deadline_and_each_sign_renews_it(waiting: Trainer) -> None:
    with pytest.raises(StageError, match="nor any other sign of the workers, within 2 s"):
        fit(lambda: waiting, followed(wait_seconds=2), failed)
    signs = itertools.count()

    def sign() -> int:
        found = next(signs)
        if found == 5:
            waiting.end.set()
        return found

    fit(lambda: waiting, followed(sign, wait_seconds=2), failed)
    assert next(signs) > 5


def test_a_failed_training_is_told_in_a_line_and_its_tracebacks_go_to_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    traceback = 'Traceback (most recent call last):\n  File "trainer.py", line 3, in step\nValueError: an odd shape'
    failures = {rank: UserExceptionWithTraceback(ValueError("an odd shape"), traceback) for rank in (0, 2)}
    failures[1] = RuntimeError("the node was lost")
    error = WorkerGroupError(f"[Rank 0]\n{traceback}", failures)
    with pytest.raises(StageError) as caught:
        fit(lambda: Trainer(error), followed(), failed)
    assert str(caught.value) == "worker 0, 2: ValueError: an odd shape; worker 1: the node was lost"
    assert [(record.name, record.exc_info[1]) for record in caplog.records if record.exc_info] == [("driver", error)]


def test_a_lost_controller_is_followed_by_another_one_that_goes_on_but_not_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = ControllerError(ActorUnavailableError("socket closed", b"0" * 16))
    done = Trainer()
    done.end.set()
    trainers = iter([Trainer(lost), done])
    reasons: list[str] = []
    with caplog.at_level(logging.WARNING):
        fit(lambda: next(trainers), replace(followed(), lost=reasons.append), failed)
    assert "an actor of Ray Train was lost" in caplog.text and not list(trainers)
    assert len(reasons) == 1 and "socket closed" in reasons[0]
    begun: list[Trainer] = []

    def another() -> Trainer:
        begun.append(Trainer(lost))
        return begun[-1]

    with pytest.raises(StageError, match="socket closed"):
        fit(another, followed(), failed)
    assert len(begun) == fitting.MOST_CONTROLLERS
    with pytest.raises(StageError, match="a bug"):
        fit(lambda: Trainer(ControllerError(ValueError("a bug"))), followed(), failed)
