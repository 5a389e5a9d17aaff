"""The soak's judgement, from logs that are made up: growth, a missing process, a start too short to tell.

Run: python -m pytest tests/proof/test_soak.py
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.tiny_run import REPOSITORY, environment
from tests.proof.soak import MUST_LAST, SHARED, anonymous_mib, judge, kind_of

Lines = list[dict[str, Any]]


def looks(iterations: int, growth: dict[str, float], kinds: tuple[str, ...] = MUST_LAST) -> Lines:
    """Two looks an iteration; `growth` is MiB an iteration of a kind."""
    return [
        {
            "start": 1,
            "done": look // 2,
            "shared_mib": 40 + growth.get(SHARED, 0.0) * look / 2,
            "processes": [
                {"pid": pid, "kind": kind, "mib": 100 + growth.get(kind, 0.0) * look / 2, "files": 9}
                for pid, kind in enumerate(kinds)
            ],
        }
        for look in range(2 * iterations + 1)
    ]


def test_flat_processes_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(looks(16, {}), 16) == 0
    assert "0 faults; at most 16 iterations a start; looks run at an unknown commit (33)" in capsys.readouterr().out


def test_a_hundred_iterations_are_judged_more_strictly_than_sixteen() -> None:
    slow_leak = {"LoggedSampler": 0.5}
    assert judge(looks(16, slow_leak), 16) == 0
    assert judge(looks(100, slow_leak), 100) == 1


def test_a_leak_in_any_process_is_a_fault() -> None:
    assert judge(looks(16, {"raylet": 1.5}, (*MUST_LAST, "raylet")), 16) == 1


@pytest.mark.parametrize("missing", MUST_LAST)
def test_a_process_that_was_never_watched_is_a_fault(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(looks(16, {}, tuple(kind for kind in MUST_LAST if kind != missing)), 16) == 1
    assert f"not among the lasting processes: {missing}" in capsys.readouterr().out


def test_one_step_of_the_table_of_names_is_no_growth_and_several_or_a_larger_one_are() -> None:
    def stepped(*steps: tuple[int, float]) -> Lines:
        lines = looks(100, {})
        for line in lines:
            line["processes"][2]["mib"] += sum(mib for place, mib in steps if line["done"] >= place)
        return lines

    assert judge(stepped((75, 7.4)), 100) == 0
    assert judge(stepped((65, 7.4), (75, 7.4), (85, 7.4)), 100) == 1
    assert judge(stepped((75, 12.0)), 100) == 1


def test_starts_that_are_too_short_prove_nothing() -> None:
    assert judge(looks(11, {}), 11) == 1 and judge([], 16) == 1


def test_a_hundred_iterations_need_a_start_of_fifty() -> None:
    assert judge(looks(49, {}), 100) == 1 and judge(looks(50, {}), 100) == 0


def test_shared_memory_that_grows_is_a_fault() -> None:
    assert judge(looks(16, {SHARED: 1.5}), 16) == 1


@pytest.mark.parametrize("iterations", [16, 100])
def test_a_process_left_behind_in_each_iteration_is_a_fault_although_each_is_flat(iterations: int) -> None:
    lines = looks(iterations, {})
    for line in lines:
        line["processes"] += [{"pid": 90 + n, "kind": "worker", "mib": 1, "files": 1} for n in range(line["done"])]
    assert judge(lines, iterations) == 1


def test_a_learner_that_takes_more_each_time_is_a_fault() -> None:
    lines = looks(16, {})
    for line in lines:
        learner = {"pid": 50 + line["done"], "kind": "RayTrainWorker", "mib": 300 + 4 * line["done"], "files": 9}
        line["processes"].append(learner)
    assert judge(lines, 16) == 1


def test_what_a_process_allocates_is_its_memory_and_files_that_it_maps_are_not(tmp_path: Path) -> None:
    (tmp_path / "library").write_bytes(b"x" * (64 << 20))
    # In a process of its own: this one may have room left from other tests.
    script = """
import mmap, os, sys
from tests.proof.soak import anonymous_mib
before = anonymous_mib(os.getpid())
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    assert sum(mapped[place] for place in range(0, len(mapped), 4096)) > 0
    print(anonymous_mib(os.getpid()) - before)
held = bytearray(b"x") * (64 << 20)
print(anonymous_mib(os.getpid()) - before)
"""
    words = [sys.executable, "-c", script, tmp_path / "library"]
    run = subprocess.run(words, capture_output=True, text=True, check=True, env=environment(), cwd=REPOSITORY)
    mapped, allocated = map(float, run.stdout.split())
    assert mapped < 16 and allocated > 60, run.stdout


def test_a_process_that_ended_has_no_memory() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(OSError):
            anonymous_mib(process.pid)


def test_an_actor_is_known_by_its_class_in_whatever_call_it_is() -> None:
    assert kind_of(["ray::ShardScorer.score_shard"]) == kind_of(["ray::ShardScorer"]) == "ShardScorer"
    assert kind_of(["/usr/lib/raylet", "--port=0"]) == "raylet" and kind_of([]) == "?"
    assert kind_of(["/usr/bin/python", "-u", "/lib/ray/_private/log_monitor.py", "--x"]) == "log_monitor.py"


@pytest.mark.parametrize(("kind", "status"), [("log_monitor.py", 0), ("dashboard.py", 1)])
def test_files_that_ray_keeps_are_known_and_others_are_a_fault(kind: str, status: int) -> None:
    lines = looks(16, {})
    for line in lines:
        line["processes"].append({"pid": 70, "kind": kind, "mib": 40, "files": 20 + 10 * line["done"]})
    assert judge(lines, 16) == status
