"""The log of a proof: what is due, what counts, and what the end says.

Run: python -m pytest tests/proof/test_case_log.py
"""

from pathlib import Path

import pytest

from tests.proof import case_log

KEYS = ("target", "seed")
WANTED = [("a", 0), ("a", 1), ("b", 0)]


def keep(log: Path, target: str, seed: int, fault: str | None, commit: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(case_log, "COMMIT", commit)
    case_log.keep(log, {"target": target, "seed": seed, "fault": fault}, shown=False)


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
    assert case_log.told(log, KEYS, WANTED) == 1
    assert "2 cases, 1 with a fault; run at old (2)\n" in capsys.readouterr().out
    keep(log, "a", 1, None, "new", monkeypatch)
    assert case_log.told(log, KEYS, WANTED) == 0
    assert "2 cases, 0 with a fault; run at old (1), new (1); 1 mended: a 1\n" in capsys.readouterr().out
    keep(log, "a", 1, "hangs again", "newest", monkeypatch)
    assert case_log.told(log, KEYS, WANTED) == 1 and case_log.mended(log, KEYS, WANTED) == ""


def test_lines_of_other_cases_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    keep(log, "other", 7, "hangs", "old", monkeypatch)
    keep(log, "a", 0, None, "old", monkeypatch)
    assert case_log.told(log, KEYS, WANTED) == 0 and len(case_log.last_lines(log, KEYS, WANTED)) == 1
