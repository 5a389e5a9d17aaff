"""The proof by signals and full disks tells a signal that was lost, and files that are missing, from what is a miss.

Run: python -m pytest tests/proof/test_surroundings.py
"""

import signal
import sys
import time
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rollout.records import write_shard
from tests.e2e.tiny_run import journal
from tests.proof import surroundings, workload
from tests.proof.disturbed import MOMENTS, Disturbed, Run, Workplace
from tests.proof.outcome import TRACEBACK, results
from tests.proof.preloaded import WRITE_MICROSECONDS, jumping_clock, slow_disk, write_microseconds
from tests.proof.surroundings import judged_on_full_disk, one_case, signalled
from tests.proof.workload import Workload
from tests.rollout.test_records import make_row

RUN = """
import json, os, signal, sys, time
came = []
signal.signal(signal.SIGTERM, lambda *_: came.append(1))
os.makedirs(sys.argv[1], exist_ok=True)
def write(event):
    line = {"event": event, "stage": "evaluate", "iteration": 2, "time": time.time()}
    with open(sys.argv[1] + "/journal.jsonl", "a") as file:
        file.write(json.dumps(line) + chr(10))
def wait():
    while not came:
        time.sleep(0.01)
"""
"""A run of which only the last stage, the handler and the end are there."""
ENDS = {
    "obeys": 'write("begin"); wait(); sys.exit(143)',
    "goes on": 'write("begin"); wait(); write("stage")',
    "is over": 'write("stage"); wait()',
    "says a wrong thing": 'write("begin"); wait(); sys.exit(1)',
}


def until_its_journal_has_a_line(run: Run, _seconds: float) -> bool:
    while not journal(run.out):
        assert run.process.poll() is None
        time.sleep(0.01)
    return True


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(Workload(tmp_path / "none.yaml", 2), tmp_path / "none.so", 1.0, {})


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """What the command of a run does; its first argument is the run directory."""
    monkeypatch.setattr(workload, "command", lambda _, out, *__: [sys.executable, "-c", code, str(out)])


def sent(place: Workplace, how: str, monkeypatch: pytest.MonkeyPatch) -> Disturbed:
    """SIGTERM to a run that takes it in one way."""
    stand_in(monkeypatch, RUN + ENDS[how])
    monkeypatch.setattr(Run, "let_run", until_its_journal_has_a_line)
    return signalled(place, place.work.config.parent / how, 0.0, signal.SIGTERM)


def test_a_signal_in_spite_of_which_a_run_ends_well_is_a_fault(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sent(place, "obeys", monkeypatch) == Disturbed()
    lost = sent(place, "goes on", monkeypatch)
    assert lost.missed is None and (lost.fault or "").startswith("the signal was lost: status 0")
    assert (sent(place, "says a wrong thing", monkeypatch).fault or "").startswith("status 1")


def test_a_signal_behind_the_last_stage_is_a_miss_with_its_reason(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sent(place, "is over", monkeypatch) == Disturbed(missed="the run was over")


def test_a_full_disk_that_ends_nothing_is_a_miss_only_where_nothing_is_missing(
    place: Workplace, tmp_path: Path
) -> None:
    shard = tmp_path / "iterations/001/rollouts/shard-00000.parquet"
    write_shard(shard, [make_row()])
    place.expected.update(results(tmp_path))
    assert judged_on_full_disk(place, tmp_path, 0, "").missed == "it had space enough to the end"
    assert judged_on_full_disk(place, tmp_path, 0, TRACEBACK).fault
    assert judged_on_full_disk(place, tmp_path, 1, "gpo: No space left on device") == Disturbed()
    assert judged_on_full_disk(place, tmp_path, 1, "gpo: something else").fault
    shard.unlink()
    assert (judged_on_full_disk(place, tmp_path, 0, "").fault or "").startswith("status 0, and finished with another")


def test_the_log_has_the_reason_of_a_miss(place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: Any = iter([Disturbed(missed="the run was over"), Disturbed(missed="the run was over"), Disturbed("hangs")])
    monkeypatch.setitem(surroundings.CASES, "sigterm", lambda *_: next(ends))
    line = one_case(place, "sigterm", 0, tmp_path)
    assert line["seed"] == "sigterm/0/2", "that of the last try"
    moment = Random(line["seed"]).uniform(*MOMENTS) * place.seconds
    assert line["moment_seconds"] == round(moment, 1)
    assert line["fault"] == "hangs" and [why.partition(": ")[2] for why in line["misses"]] == 2 * ["the run was over"]


def test_a_case_that_is_never_met_is_a_fault(place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(surroundings.CASES, "sigterm", lambda *_: Disturbed(missed="the run was over"))
    line = one_case(place, "sigterm", 0, tmp_path)
    assert line["fault"] == "never met" and len(line["misses"]) == surroundings.MOST_MISSES


def test_each_case_of_a_slow_disk_has_another_one(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [Random(f"slow-disk/{number}/0").uniform(*MOMENTS) for number in range(7)]
    delays = {write_microseconds(place, moment) for moment in moments}
    assert len(delays) == 7 and max(delays) > 3 * min(delays)
    assert tuple(write_microseconds(place, moment) for moment in MOMENTS) == WRITE_MICROSECONDS
    stand_in(monkeypatch, "import os, sys; sys.exit(os.environ['GPO_PROOF_WRITE_US'] + ' a write')")
    found = slow_disk(place, place.work.config.parent / "run", MOMENTS[1])
    assert "40000 a write" in (found.fault or "") and found.done == "each write took 40.0 ms"


@pytest.mark.parametrize("disturb", [slow_disk, partial(jumping_clock, seconds=86_400)], ids=["slow disk", "clock"])
def test_a_traceback_is_a_fault_although_the_run_ends_well(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, disturb: Any
) -> None:
    stand_in(monkeypatch, f"import sys; print({TRACEBACK!r}, file=sys.stderr)")
    fault = disturb(place, place.work.config.parent / "run", MOMENTS[0]).fault
    assert fault.startswith("status 0: ") and TRACEBACK in fault
