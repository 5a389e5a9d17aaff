"""The kill matrix: which stages it meets, what it calls a good end, which node it kills, and what its log decides.

Run: python -m pytest tests/proof/test_chaos.py
"""

import subprocess
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from tests.proof import kill_place
from tests.proof.chaos import COMMIT, Case, cases_of, measured, one_case, told, was_hit, wrong_end
from tests.proof.kill_place import Place
from tests.proof.outcome import TRACEBACK
from tests.proof.workload import TITLES, Window, Windows, Workload, over

RUN = """
import json, sys, time
def write(event, stage, iteration):
    line = {"event": event, "stage": stage, "iteration": iteration, "time": time.time()}
    with open(sys.argv[1] + "/journal.jsonl", "a") as file:
        file.write(json.dumps(line) + chr(10))
for stage, iteration, seconds in [("canary", 0, 0.6), ("generate", 1, float(sys.argv[2])), ("publish", 1, 0.1)]:
    write("begin", stage, iteration)
    time.sleep(seconds)
    write("stage", stage, iteration)
"""
"""A run's journal and nothing else."""
LOST = "gpo: the canary: 3 samplers were lost (the actor died); start the same command again to go on"


class PlaceOfStandIns:
    """Runs that write a journal only, in which a sampler is there from the first stage on."""

    def __init__(self, folder: Path, generate_seconds: float) -> None:
        self.folder, self._seconds = folder, generate_seconds

    def start(self, out: Path, said: Path) -> "subprocess.Popen[Any]":
        out.mkdir()
        said.touch()
        return subprocess.Popen([sys.executable, "-c", RUN, str(out), str(self._seconds)])

    def there(self, _process: "subprocess.Popen[Any]", stage: str) -> set[str]:
        return set() if stage == "start" else {"sampler"}

    def kill(self, *_: object) -> list[str]:
        return []

    def mend(self) -> None:
        return None


def test_windows_are_those_of_an_undisturbed_run_and_the_log_has_them(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    place: Any = PlaceOfStandIns(tmp_path, 0.5)
    windows, _ = measured(place, ["sampler", "driver"], log)
    assert [one.stage for one in windows.met["sampler"]] == ["generate 1", "canary 0"], "what must be met comes first"
    stages = [one.stage for one in windows.met["driver"]]
    assert stages[:2] == ["generate 1", "publish 1"] and stages[-1] == "canary 0"
    assert windows.left_out["sampler"].keys() == {"publish 1"}, "too short to find a process in"
    assert '"generate 1"' in log.read_text() and cases_of(log) == []


def test_a_matrix_that_cannot_meet_generate_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place: Any = PlaceOfStandIns(tmp_path, 0.0)
    with pytest.raises(SystemExit) as ended:
        measured(place, ["sampler", "driver"], tmp_path / "log.jsonl")
    assert str(ended.value.code).endswith("sampler in generate, driver in generate"), "a text is status 1"
    assert "sampler: left out as too short: generate 1" in capsys.readouterr().out


def test_moments_are_shared_out_over_the_windows_of_a_victim() -> None:
    windows = Windows()
    for stage in ("canary 0", "generate 1"):
        windows.add("scorer", Window(stage, 0.0, 1.0), 0.2)
    shares = [(window.stage, number) for window, number in windows.shared_out("scorer", 3)]
    assert shares == [("generate 1", 0), ("canary 0", 0), ("generate 1", 1)]


@pytest.mark.parametrize(
    ("victim", "status", "printed"),
    [("sampler", 0, ""), ("learner", 0, ""), ("node", 0, ""), ("node", 1, LOST), ("driver", -9, ""), ("second", 0, "")],
)
def test_an_end_that_the_documents_promise_is_none_to_complain_of(victim: str, status: int, printed: str) -> None:
    assert wrong_end(victim, status, printed) is None


@pytest.mark.parametrize(
    ("victim", "status", "printed"),
    [
        *((victim, 1, LOST) for victim in TITLES),
        ("node", 1, "gpo: stage train of iteration 1 failed: KeyError; start the same command again to go on"),
        ("node", 1, LOST.removesuffix("; start the same command again to go on")),
        ("node", 1, LOST.removeprefix("gpo: ")),
        ("node", -15, LOST),
        ("node", 2, LOST),
        ("sampler", None, ""),
        ("sampler", 0, TRACEBACK),
        ("driver", -6, ""),
        ("the second start", 1, LOST),
    ],
)
def test_an_end_beyond_what_the_documents_promise_is_a_fault(victim: str, status: int | None, printed: str) -> None:
    assert f"{victim}: status {status}" in (wrong_end(victim, status, printed) or "")


def cluster_of(monkeypatch: pytest.MonkeyPatch, *held: tuple[str, ...]) -> tuple[Place, list[str]]:
    """A place whose worker nodes hold these roles, and the names of nodes that were killed."""
    killed: list[str] = []
    hosts = [SimpleNamespace(name=f"{n}", kill=lambda n=n: killed.append(f"{n}")) for n in range(len(held) + 1)]
    titles = {"0": ["python -m gpo run"]} | {
        f"{n}": [TITLES[role] for role in roles] for n, roles in enumerate(held, 1)
    }
    monkeypatch.setattr(kill_place, "titles", lambda host: titles[host.name])
    cluster: Any = SimpleNamespace(hosts=hosts)
    return Place(Workload(Path("none.yaml"), 2), cluster), killed


def test_the_node_that_dies_is_one_that_works_in_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    process: Any = None
    place, killed = cluster_of(monkeypatch, ("forward",), ("sampler", "scorer"))
    assert place.kill("node", "generate 1", 0, process) == ["sampler", "scorer"] and killed == ["2"]
    assert place.kill("node", "generate 1", 1, process) == ["sampler", "scorer"] and killed == ["2", "2"]
    assert place.kill("node", "canary 0", 0, process) == ["forward"] and killed[2:] == ["1"]
    assert place.there(process, "generate 1") == {"node"}


def test_a_node_that_does_not_work_in_the_stage_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    process: Any = None
    place, killed = cluster_of(monkeypatch, ("forward",), ())
    assert place.kill("node", "generate 1", 0, process) == [] and killed == [] and place.mend() is None
    assert place.there(process, "generate 1") == set() and place.there(process, "start") == set()


def test_a_stage_is_over_when_the_journal_says_so_and_the_start_when_a_stage_begins(tmp_path: Path) -> None:
    line = '{"event": "%s", "stage": "canary", "iteration": 0, "time": 1.0}\n'
    assert not over("start", tmp_path)
    (tmp_path / "journal.jsonl").write_text(line % "begin")
    assert over("start", tmp_path) and not over("canary 0", tmp_path)
    (tmp_path / "journal.jsonl").write_text(line % "begin" + line % "stage")
    assert over("canary 0", tmp_path) and not over("canary 1", tmp_path)


def test_a_kill_with_a_fault_is_due_again_at_another_commit_and_the_last_one_counts() -> None:
    case = Case("scorer", "answer 0", 0)
    kill = {**case._asdict(), "hit": True, "fault": None, "commit": "older"}
    miss, faulty = kill | {"hit": False}, kill | {"fault": "the journal does not name the process"}
    assert was_hit([kill], case) and not was_hit([miss], case) and not was_hit([faulty], case)
    assert was_hit([faulty | {"commit": COMMIT}], case)
    assert told([faulty], [case]) == 1 and told([faulty, kill], [case]) == 0
    assert told([miss], [case]) == 1


def test_a_fault_counts_and_a_number_is_due_by_its_stage_whatever_windows_a_later_start_has() -> None:
    old, new = Case("scorer", "answer 0", 0), Case("scorer", "generate 1", 0)
    kill = {**old._asdict(), "hit": True, "fault": None, "commit": COMMIT}
    assert not was_hit([kill], new)
    assert told([kill | {"fault": "hangs"}, kill | new._asdict()], [new]) == 1


def test_a_line_has_the_seed_of_its_moment_and_the_end_tells_it_where_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place: Any = PlaceOfStandIns(tmp_path, 0.0)
    case, window = Case("sampler", "canary 0", 1), Window("canary 0", 0.0, 0.3)
    line = one_case(place, case, 2, window, {})
    assert line["seed"] == "sampler-canary-0-1-2" and not line["hit"]
    assert line["moment_seconds"] == round(Random(line["seed"]).uniform(window.first, window.last), 2)
    hit = line | {"hit": True, "fault": None, "commit": COMMIT}
    old = {name: value for name, value in hit.items() if name != "seed"} | {"number": 2}
    assert told([hit, old], [case, case._replace(number=2)]) == 0
    assert "seeds: sampler-canary-{0-1-2}; 1 older cases do not tell theirs\n" in capsys.readouterr().out
