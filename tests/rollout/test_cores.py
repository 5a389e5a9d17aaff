"""Cores are claimed by one process at a time. Two real engines: tests/rollout/test_engines.py.

Run: python -m pytest tests/rollout/test_cores.py
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rollout.cores import FOLDER_VARIABLE

ROOT = Path(__file__).parents[2]
CLAIM = (
    "import sys, os\nfrom rollout.cores import claim_cores\ncores = claim_cores(int(sys.argv[1]), float(sys.argv[2]))\n"
)
CORES = len(os.sched_getaffinity(0))
needs_two = pytest.mark.skipif(CORES < 2, reason="this machine has one core")


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "locks"))


def claim(count: int, wait: float, then: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CLAIM + then, str(count), str(wait)]
    return subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


SAY_AND_WAIT = "print(cores, sorted(os.sched_getaffinity(0)) == cores, flush=True)\nsys.stdin.read()\n"


@needs_two
def test_claims_are_disjoint_bind_the_process_and_end_with_it_however_it_ends() -> None:
    first, second = claim(1, 5, SAY_AND_WAIT), claim(1, 5, SAY_AND_WAIT)
    found = [line(first), line(second)]
    assert len(set(found)) == 2 and all(text.endswith("True") for text in found)
    third = claim(CORES, 0.5, "print(cores, len(os.sched_getaffinity(0)), flush=True)\n")
    assert line(third) == f"[] {CORES}", "not enough are free: unbound, not shared"
    first.kill()
    first.wait()
    fourth = claim(1, 5, SAY_AND_WAIT)
    assert line(fourth) == found[0]
    for process in (second, third, fourth):
        process.kill()
        process.wait()


@needs_two
def test_an_engine_that_waits_for_all_cores_holds_none_of_them_meanwhile() -> None:
    first = claim(1, 5, SAY_AND_WAIT)
    line(first)
    patient = claim(CORES, 30, SAY_AND_WAIT)
    time.sleep(1)
    second = claim(1, 5, SAY_AND_WAIT)
    assert line(second).endswith("] True"), "the waiting one would keep it from this core, and get nothing by it"
    for process in (first, second):
        process.kill()
        process.wait()
    assert line(patient) == f"{sorted(os.sched_getaffinity(0))} True"
    patient.kill()
    patient.wait()
