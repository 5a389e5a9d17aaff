"""A job that is followed, on clusters that answer, fall silent and vanish.

Run: python -m pytest tests/gpo/cluster/test_following.py
"""

import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from gpo.cluster import following
from gpo.errors import StageError


class ScriptedCluster:
    """In the place of Ray's client: a job with these states, one a look; `silent` makes every call hang."""

    def __init__(self, *states: JobStatus, exit_code: int | None = None, silent: bool = False) -> None:
        self._states, self._exit_code, self._silent = list(states), exit_code, silent
        self.stopped = False

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        """One line; then, from a silent cluster, nothing more for ever."""
        import asyncio

        yield "a line of the job\n"
        if self._silent:
            await asyncio.sleep(1000)

    def get_job_info(self, job: str) -> Any:
        """The next state; the last one stays."""
        if self._silent:
            time.sleep(1000)
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        return SimpleNamespace(status=state, message="as scripted", driver_exit_code=self._exit_code)

    def stop_job(self, job: str) -> None:
        """Remember."""
        self.stopped = True
        self._states = [JobStatus.STOPPED]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "POLL_SECONDS": 0.01,
        "LOST_SECONDS": 0.3,
        "STOP_SECONDS": 0.3,
        "OUTPUT_SECONDS": 0.3,
    }.items():
        monkeypatch.setattr(following, name, seconds)


@pytest.mark.parametrize(
    ("last", "code", "status"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 143),
    ],
)
def test_a_job_is_shown_to_its_end_and_its_status_comes_back(
    last: JobStatus, code: int | None, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster: Any = ScriptedCluster(JobStatus.PENDING, JobStatus.RUNNING, last, exit_code=code)
    assert following.follow(cluster, "job-1") == status
    assert "a line of the job" in capsys.readouterr().out


def test_a_cluster_that_vanishes_is_told_and_does_not_hang() -> None:
    started = time.monotonic()
    with pytest.raises(StageError, match="job-1: nothing heard of it for 0 s.*the same gpo submit command goes on"):
        following.follow(ScriptedCluster(JobStatus.RUNNING, silent=True), "job-1")  # type: ignore[arg-type]
    assert time.monotonic() - started < 5


def test_an_interrupt_stops_the_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cluster: Any = ScriptedCluster(JobStatus.RUNNING)
    ask = following._details_at_end

    def interrupted(client: Any, job: str, seconds: float = float("inf")) -> Any:
        if not cluster.stopped and seconds == float("inf"):
            raise KeyboardInterrupt
        return ask(client, job, seconds)

    monkeypatch.setattr(following, "_details_at_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        following.follow(cluster, "job-1")
    assert cluster.stopped and "not known" not in capsys.readouterr().err


def test_a_job_whose_stop_is_not_confirmed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    following._stop(ScriptedCluster(JobStatus.RUNNING, silent=True), "job-1")  # type: ignore[arg-type]
    assert "whether job job-1 has stopped is not known" in capsys.readouterr().err
