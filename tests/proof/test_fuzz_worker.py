"""What fuzzing does with a case that hangs, dies, prints no message, or is like another one.

Run: python -m pytest tests/proof/test_fuzz_worker.py
"""

import subprocess
import sys
from pathlib import Path

import pytest

from gpo.files import read_json_lines
from tests.e2e.tiny_run import REPOSITORY, environment
from tests.proof import fuzz_case
from tests.proof.by_command import Ended, run_command
from tests.proof.fuzz import KEYS, run_all
from tests.proof.fuzz_targets import TARGETS
from tests.proof.outcome import TRACEBACK
from tests.proof.prepared import Prepared

STANDS_STILL = """
import ctypes
from tests.proof.fuzz_case import deadline, watched
with watched(3), deadline(1):
    mutex = ctypes.create_string_buffer(256)
    ctypes.PyDLL(None).pthread_mutex_lock(mutex)
    ctypes.PyDLL(None).pthread_mutex_lock(mutex)
"""
"""A lock that is taken twice, with Python's own lock held: no handler of a signal is ever run."""
LASTS = ["-n", "1", "import time; time.sleep(60)"]
DIES_AT_A_2 = """
import json, os, sys
from pathlib import Path
from tests.proof.case_log import keep
folder, log = map(Path, sys.argv[1:])
(folder / "ready").touch()
for target, seed in json.load(sys.stdin):
    if (target, seed) == ("a", 2):
        print("so it was", file=sys.stderr, flush=True)
        os.abort()
    keep(log, {"target": target, "seed": seed, "fault": None}, shown=False)
"""


def test_a_case_that_stands_still_in_foreign_code_ends_its_process_with_the_stacks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STANDS_STILL],
        env=environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "Timeout (0:00:03)!" in done.stderr
    assert "TooLongError" not in done.stderr, "an alarm alone would not do"


def test_a_case_that_ends_its_worker_is_a_fault_and_the_rest_is_done(tmp_path: Path) -> None:
    log, wanted = tmp_path / "log.jsonl", [("a", 1), ("a", 2), ("a", 3)]
    assert run_all(log, wanted, tmp_path, (sys.executable, "-c", DIES_AT_A_2))
    lines = read_json_lines(log)
    assert [tuple(line[key] for key in KEYS) for line in lines] == wanted
    assert [line["fault"] for line in lines] == [None, "the process died with status -6", None]
    assert "so it was" in lines[1]["printed"]


def test_a_worker_that_cannot_begin_ends_the_fuzz_without_a_word_about_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    assert not run_all(log, [("a", 1)], tmp_path, (sys.executable, "-c", "raise SystemExit('no room')"))
    assert read_json_lines(log) == [] and "no room" in capsys.readouterr().err


def test_a_command_tells_its_status_its_words_and_its_memory_and_is_bounded_in_time_and_memory() -> None:
    ended = run_command("gpo", ["run", "none.yaml"], 200, 2048)
    assert ended is not None and ended.status == 2 and ended.said.startswith("gpo: none.yaml") and 9 < ended.mib < 500
    assert run_command("timeit", LASTS, 0.01, 2048) is None
    greedy = run_command("timeit", LASTS, 200, 1)
    assert greedy is not None and greedy.status == -9 and greedy.mib > 1


GOOD = Ended(2, "gpo: no", 1)


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        (GOOD, None),
        (None, f"no end by command within {fuzz_case.SECONDS_BY_COMMAND} s"),
        (Ended(1, "gpo: no", 1), "status 2 in process, 1 by command: gpo: no"),
        (Ended(2, "", 1), "status 2 without a message of gpo by command: "),
        (Ended(2, f"{TRACEBACK}:\ngpo: no", 1), f"a traceback by command: {TRACEBACK}:\ngpo: no"),
        (Ended(-9, "", 5000), "held 5000 MiB by command"),
    ],
)
def test_what_a_command_says_and_holds_is_judged_beside_its_status(
    monkeypatch: pytest.MonkeyPatch, ended: Ended | None, fault: str | None
) -> None:
    monkeypatch.setattr(fuzz_case, "run_command", lambda *_: ended)
    assert fuzz_case.fault_by_command(Prepared(["run"], "cut", True, b""), 2) == fault


def test_a_short_form_has_a_command_of_each_target_beyond_its_first_case() -> None:
    a_target = 90 // len(TARGETS)
    assert [seed for seed in range(a_target) if fuzz_case.is_sampled(seed)] == [0, 3]


@pytest.mark.parametrize("printed", ["gpo: no", "a warning\ngpo: /gpo/a: no", "usage: gpo run\ngpo run: error: no"])
def test_a_message_of_gpo_is_one(printed: str) -> None:
    assert fuzz_case.fault_of(Prepared(["run"], "cut", True, b""), 2, printed, 1) is None


@pytest.mark.parametrize("printed", ["", "reading /home/gpo/a.yaml", "usage: gpo run", "gpo: ", "see gpo: no"])
def test_what_only_has_gpo_in_it_is_no_message(printed: str) -> None:
    fault = fuzz_case.fault_of(Prepared(["run"], "cut", True, b""), 2, printed, 1)
    assert fault == "status 2 without a message of gpo"


def test_what_standard_output_cannot_hold_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fuzz_case.MAINS, "gpo", lambda _words: print("\udcff") or 0)
    status, printed = fuzz_case.in_process([])
    assert status == -1 and "UnicodeEncodeError" in printed


def test_a_case_like_an_earlier_one_is_drawn_again_and_told_when_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = {"few": lambda _work, _folder, draw: Prepared([str(draw.randrange(3))], "", False, b"")}
    monkeypatch.setattr(fuzz_case, "TARGETS", three)
    cases = fuzz_case.Cases(tmp_path / "log.jsonl", tmp_path)
    found = [cases.drawn("few", seed) for seed in range(4)]
    assert {case.words[0] for case, *_ in found[:3]} == {"0", "1", "2"} and [fault for *_, fault in found[:3]] == [
        None
    ] * 3
    assert "the same case as ('few', " in (found[3][3] or "")
    again = cases.drawn("few", 0)
    assert again == found[0], "a case that is due again is the same one"
