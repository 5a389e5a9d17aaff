"""What ended a run stands at the end of the driver's log, with the way on, and in the run's status.

Run: python -m pytest tests/gpo/test_run_end.py
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpo import run as gpo_run
from gpo.errors import StageError
from gpo.journal import RunDirectory
from tests.gpo.small_runs import run_config


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    before = list(logging.getLogger().handlers)
    yield
    for handler in set(logging.getLogger().handlers) - set(before):
        logging.getLogger().removeHandler(handler)


class Ready:
    versions: dict[str, str] = {}
    data_sha256: dict[str, str] = {}
    notes: list[str] = []


@pytest.mark.parametrize(
    ("raised", "ends_with"),
    [
        (StageError("stage x: no room\n  start the same command again"), "start the same command again"),
        (KeyboardInterrupt(), "interrupted; the same command goes on where this start stopped"),
        (RuntimeError("boom"), "start the same command again to go on"),
    ],
    ids=["failed", "interrupted", "unforeseen"],
)
def test_the_drivers_log_ends_with_what_happened_and_the_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, ends_with: str
) -> None:
    def session(*_given: object) -> None:
        raise raised

    monkeypatch.setattr(gpo_run, "ray_session", session)
    with pytest.raises((StageError, KeyboardInterrupt)):
        gpo_run.run_to_end(run_config(tmp_path), tmp_path / "run", Ready(), fresh=False)  # type: ignore[arg-type]
    (log,) = (tmp_path / "run/logs").glob("driver-*.log")
    text = log.read_text("utf-8").rstrip()
    assert text.endswith(ends_with)
    assert ("Traceback" in text) == isinstance(raised, RuntimeError)
    status = json.loads((tmp_path / "run/run.json").read_text())["status"]
    assert status == ("interrupted" if isinstance(raised, KeyboardInterrupt) else "failed")
    assert RunDirectory(tmp_path / "run").journal()[0]["event"] == "start"
