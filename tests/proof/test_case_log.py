"""The log of a proof: what is due, what counts, and what the end says.

Run: python -m pytest tests/proof/test_case_log.py
"""

from pathlib import Path

import pytest

from tests.proof import case_log

KEYS = ("target", "number")
WANTED = [("a", 0), ("a", 1), ("b", 0)]


def keep(log: Path, target: str, number: int, fault: str | None, commit: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(case_log, "COMMIT", commit)
    case_log.keep(log, {"target": target, "number": number, "fault": fault}, shown=False)


def told(log: Path) -> int:
    return case_log.told(log, KEYS, WANTED, lambda line: line.get("seed"))


def test_a_fault_is_due_again_at_another_commit_and_only_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    keep(log, "a", 0, None, "old", monkeypatch)
    keep(log, "a", 1, "hangs", "old", monkeypatch)
    assert case_log.not_yet(log, KEYS, WANTED) == [("b", 0)]
    monkeypatch.setattr(case_log, "COMMIT", "new")
    assert case_log.not_yet(log, KEYS, WANTED) == [("a", 1), ("b", 0)]
    keep(log, "a", 1, "hangs", "new", monkeypatch)
    assert case_log.not_yet(log, KEYS, WANTED) == [("b", 0)]


def test_the_last_line_of_a_case_counts_and_mended_ones_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    keep(log, "a", 0, None, "old", monkeypatch)
    keep(log, "a", 1, "hangs", "old", monkeypatch)
    assert told(log) == 1
    assert "2 cases, 1 with a fault; run at old (2)\n" in capsys.readouterr().out
    keep(log, "a", 1, None, "new", monkeypatch)
    assert told(log) == 0
    assert "2 cases, 0 with a fault; run at old (1), new (1); 1 mended: a 1\n" in capsys.readouterr().out
    keep(log, "a", 1, "hangs again", "newest", monkeypatch)
    assert told(log) == 1 and case_log.mended(log, KEYS, WANTED) == ""


def test_lines_of_other_cases_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    keep(log, "other", 7, "hangs", "old", monkeypatch)
    keep(log, "a", 0, None, "old", monkeypatch)
    assert told(log) == 0 and len(case_log.last_lines(log, KEYS, WANTED)) == 1


def test_the_end_tells_the_seeds_and_reads_lines_that_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    for target, number, seed in [("a", 0, "a/0/2"), ("a", 1, "a/1/0"), ("b", 0, None)]:
        line = {"target": target, "number": number, "fault": None} | ({"seed": seed} if seed else {})
        case_log.keep(log, line, shown=False)
    assert case_log.not_yet(log, KEYS, WANTED) == [] and told(log) == 0
    assert "seeds: a/{0/2,1/0}; 1 older cases do not tell theirs\n" in capsys.readouterr().out


def test_seeds_of_a_kind_stand_together_to_their_last_numbers() -> None:
    kills = ["sampler-generate-1-0-0", "node-start-0-0", "sampler-generate-1-1-4", "alone"]
    assert case_log.seeds(kills) == "seeds: sampler-generate-{1-0-0,1-1-4} node-start-{0-0} alone{}"
    assert case_log.seeds([]) == "seeds: none"
