"""All benchmarks in one table: which results count, whose row says what, and what nobody has measured.

Run: python -m pytest tests/benchmarks/test_all.py
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import all as bench
from benchmarks.all import PROOFS, not_measured, read_reports, rows_of, table
from benchmarks.frame import Claim, asked_report, write_report

REPOSITORY = Path(__file__).parents[2]
FAST = Claim(what="ours / theirs", value=3.2, sense="at least", target=3.0, spread=0.041)
FAT = Claim(what="memory", value=0.67, sense="at most", target=0.5)
CHART = {"self-play on the chart": "make it"}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the benchmarks that were started; each ends with status 1 and no JSON."""
    found: list[str] = []

    def run(command: list[str], **more: Any) -> SimpleNamespace:
        found.append(command[2].removeprefix("benchmarks."))
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(bench, "COMMIT", "now")
    return found


def planted(path: Path, commit: str, **found: Any) -> None:
    write_report(found, [FAST], path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": commit}))


def test_reports_come_together_in_one_table_and_rows_tell_their_commit_and_day(tmp_path: Path) -> None:
    planted(tmp_path / "scoring.json", "older")
    write_report({}, [FAT], tmp_path / "training.json")
    assert json.loads((tmp_path / "scoring.json").read_text())["claims"][0]["holds"] is True
    reports = list(read_reports(tmp_path, ["training", "rollout", "scoring"]).values())
    rows = rows_of(reports, ["rollout"], {"plan: memory": "make proof-plan"})
    text = table(reports, rows)
    head, _, memory, speed, failed, unknown, *below = text.splitlines()
    assert head == "| ratio | measured | spread | target |  | measured at |"
    day = reports[1]["date"][:10]
    assert speed == f"| ours / theirs | 3.2 | 4.1% | at least 3 | holds | older, {day} |"
    assert memory.startswith("| memory | 0.67 |") and reports[0]["commit"] in memory
    assert failed == "| rollout: the benchmark failed |  |  |  | failed |  |"
    assert unknown == "| plan: memory |  |  |  | not measured: `make proof-plan` |  |"
    (place,) = filter(None, below)
    assert place.startswith("On ") and place.endswith(f"({reports[0]['commit']}, older).")


def test_a_result_of_this_commit_counts_and_one_of_an_older_commit_does_not(tmp_path: Path, started: list[str]) -> None:
    planted(tmp_path / "scoring.json", "now")
    planted(tmp_path / "training.json", "older")
    assert bench.run("scoring", [], tmp_path)
    assert started == []
    assert not bench.run("training", [], tmp_path)
    assert started == ["training"] and not (tmp_path / "training.json").exists(), "old numbers are gone where it fails"


def test_a_result_of_changes_without_a_commit_does_not_count(
    tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "COMMIT", "now-dirty")
    planted(tmp_path / "scoring.json", "now-dirty")
    assert not bench.run("scoring", [], tmp_path)


def test_a_result_that_left_something_out_is_tried_again(tmp_path: Path, started: list[str]) -> None:
    planted(tmp_path / "nash.json", "now", not_measured=CHART)
    assert not bench.run("nash", [], tmp_path)
    assert started == ["nash"]


def test_what_other_commands_measure_is_a_row_or_told_as_not_measured(tmp_path: Path) -> None:
    planted(tmp_path / "proof-plan.json", "older")
    planted(tmp_path / "bench/nash.json", "now", not_measured=CHART)
    found = not_measured(read_reports(tmp_path / "bench", ["nash"]) | read_reports(tmp_path, PROOFS), PROOFS)
    assert found == CHART | {what: how for name, (what, how) in PROOFS.items() if name != "proof-plan"}
    assert not_measured({}, {}) == {}, "the short form has its own benchmarks only"


def test_every_proof_has_a_make_target_and_something_that_writes_its_report() -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    written = "".join(path.read_text("utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py"))
    for name, (_, command) in PROOFS.items():
        assert f"\n{command.removeprefix('make ')}: setup ##" in makefile
        assert f"runs/{name}.json" in makefile or f'asked_report("{name.removeprefix("proof-")}")' in written


def test_a_test_writes_its_report_only_where_a_make_target_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROOFS", raising=False)
    assert asked_report("submit") is None
    monkeypatch.setenv("PROOFS", str(tmp_path))
    assert asked_report("submit") == tmp_path / "proof-submit.json"


def test_the_whole_command_writes_the_page_and_ends_with_status_one_where_a_benchmark_failed(
    tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{bench.BEGIN}old\n{bench.END}below\n")
    page.with_suffix(".json").write_text("{}")
    planted(tmp_path / "full/training.json", "now")
    words = ["all", "--full", str(tmp_path / "full"), "--page", str(page), "--chart", "chart.json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 1 and set(started) == bench.FULL.keys() - {"training"}
    text = page.read_text()
    assert "| ours / theirs | 3.2 |" in text and "not measured: `make cluster`" in text and text.endswith("below\n")
    rows = json.loads((tmp_path / "full/table.json").read_text())
    assert [row["what"] for row in rows if row.get("failed")] == [name for name in bench.FULL if name != "training"]


def test_what_is_not_asked_for_stays_as_the_page_has_it_and_outlasts_its_reports(
    tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, full = tmp_path / "page.md", tmp_path / "runs/full"
    page.write_text(f"{bench.BEGIN}{bench.END}")
    page.with_suffix(".json").write_text("{}")
    for report in (full / "scoring.json", full / "training.json", full.parent / "proof-plan.json"):
        planted(report, "now")
    words = ["all", "--full", str(full), "--page", str(page), "--only"]
    monkeypatch.setattr(sys, "argv", [*words, "scoring", "training"])
    bench.main()
    assert started == [] and page.read_text().count("| now, ") == 3
    shutil.rmtree(full.parent)
    monkeypatch.setattr(sys, "argv", [*words, "training"])
    with pytest.raises(SystemExit):
        bench.main()
    assert started == ["training"] and page.read_text().count("| now, ") == 2
    assert "training: the benchmark failed" in page.read_text()
    monkeypatch.setattr(sys, "argv", words)
    bench.main()
    assert list(json.loads(page.with_suffix(".json").read_text())) == ["scoring", "proof-plan"]


def test_the_table_of_the_page_is_that_of_its_json() -> None:
    page = REPOSITORY / "docs/performance.md"
    reports = bench.kept(page)
    assert table(reports.values(), rows_of(reports.values(), (), not_measured(reports, PROOFS))) in page.read_text()
