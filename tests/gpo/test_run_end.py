"""What ended a run stands at the end of the driver's log, with the way on, and in the run's status.

Run: python -m pytest tests/gpo/test_run_end.py
"""

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpo import run as gpo_run
from gpo.errors import StageError
from gpo.journal import RunDirectory, open_run
from tests.gpo.small_runs import run_config


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    before = list(logging.getLogger().handlers)
    raises = logging.raiseExceptions
    yield
    logging.raiseExceptions = raises
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


def full(*_given: object) -> None:
    """In place of os.fsync: every file of a run is flushed before it counts."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_ended_a_run_is_told_although_the_disk_is_too_full_to_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cause = StageError("stage x: no room\n  start the same command again")

    def session(*_given: object) -> None:
        monkeypatch.setattr(os, "fsync", full)
        raise cause

    monkeypatch.setattr(gpo_run, "ray_session", session)
    with pytest.raises(StageError) as caught:
        gpo_run.run_to_end(run_config(tmp_path), tmp_path / "run", Ready(), fresh=False)  # type: ignore[arg-type]
    assert caught.value is cause
    assert "run.json" in caplog.text and "journal.jsonl" in caplog.text, "what could not be kept is named"


@pytest.mark.parametrize("first", [True, False], ids=["new", "again"])
def test_a_run_that_cannot_begin_on_a_full_disk_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    if not first:
        open_run(tmp_path / "run", run_config(tmp_path), fresh=False, versions={}, data={})
    monkeypatch.setattr(os, "fsync", full)
    named = "config.yaml" if first else "journal.jsonl"
    with pytest.raises(StageError, match=rf"No space left on device.*{named}.*make room.*same command again"):
        gpo_run.run_to_end(run_config(tmp_path), tmp_path / "run", Ready(), fresh=False)  # type: ignore[arg-type]


FILLS_ITS_DISK = """
import sys
from pathlib import Path
from gpo import cli, run, verbs
from tests.gpo.small_runs import run_config
from tests.gpo.test_run_end import Ready

disk = Path(sys.argv[1])

def session(*_given):
    with (disk / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(4096))
            filler.flush()

run.ray_session = session
options = cli._parse(["run", "small.yaml"])
options.verb = lambda _: run.run_to_end(run_config(disk), disk / "run", Ready(), fresh=False)
cli._parse = lambda _: options
sys.exit(cli.main([]))
"""


def test_a_run_on_a_disk_that_is_really_full_ends_with_a_message_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", FILLS_ITS_DISK, str(disk)],
                cwd=Path(__file__).parents[2], capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
            assert "No space left on device" in done.stderr and "the same command again" in done.stderr
        (disk / "filler").unlink()
        open_run(disk / "run", run_config(disk), fresh=False, versions={}, data={})
        assert RunDirectory(disk / "run").journal()[-1]["event"] == "restart"
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_finished_run_whose_last_copy_failed_is_copied_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, root, saved = run_config(tmp_path, iterations=1), tmp_path / "run", []
    first = open_run(root, config, fresh=False, versions={}, data={})
    first.record("stage", stage="evaluate", iteration=1, seconds=1.0)
    assert first._lock is not None
    first._lock.close()

    class Copy:
        def restore(self) -> bool:
            return False

        def save(self) -> None:
            saved.append(json.loads((root / "run.json").read_text("utf-8"))["status"])

    monkeypatch.setattr(gpo_run, "storage_of", lambda cluster, root: Copy())
    monkeypatch.setattr(gpo_run, "_say_what_came_out", lambda directory, config: None)
    assert gpo_run.run_to_end(config, root, Ready(), fresh=False) == 0  # type: ignore[arg-type]
    assert saved == ["finished"]
