"""The benchmarks of training and of a whole iteration: rounds, what stays for the rest, a failed way, and reasons.

Run: python -m pytest tests/benchmarks/test_training.py
"""

import argparse
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import end_to_end, training
from benchmarks.frame import Claim, claim_lines
from benchmarks.operators import KINDS, kind_of
from benchmarks.training import TRL_TRIES, claims_of, markdown, side_by_side
from benchmarks.training_profile import profile_table

SPEEDS = {"packed": 110.0, "shared": 100.0, "eager": 50.0, "sdpa": 80.0}
LAST_SEEN = {
    "ours_over_trl": 2.41,
    "peak_over_trl": 0.58,
    "computed_tokens_trl_over_ours": 1.61,
    "step_over_plain_packed": 1.44,
    "step_over_plain_shared": 1.54,
}


def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Ways measured, by told speeds: TRL's is 9 less its batch, and what it checkpoints takes nothing."""
    measured: list[tuple[str, dict[str, Any]]] = []

    def measure(args: argparse.Namespace, way: str, **changes: Any) -> dict[str, Any]:
        measured.append((way, changes))
        speed = 9.0 - changes["batch"] if "batch" in changes else SPEEDS[changes.get("layout") or changes["attention"]]
        own = {"tokens_per_second": speed, "step_tokens_per_second": 1.2 * speed, "computed_tokens": 100}
        return changes | own | {"peak_gib": 4.0 + len(measured) / 100}

    monkeypatch.setattr(training, "measure", measure)
    return measured


def test_all_settings_are_tried_in_the_first_round_and_the_fastest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = told(monkeypatch)
    found = side_by_side(argparse.Namespace(rounds=3, trl_tries=len(TRL_TRIES)))
    first = 2 + 2 + len(TRL_TRIES)
    assert [way for way, _ in measured[first:]] == 2 * ["plain", "ours", "ours", "trl"]
    assert found["taken"] == {"plain": {"attention": "sdpa"}, "trl": TRL_TRIES[3]}
    ratios = found["ratios"]
    assert ratios["ours_over_trl"] == {"median": 13.75, "spread": 0.0, "rounds": [13.75, 13.75, 13.75]}
    assert ratios["step_over_plain_shared"]["median"] == 1.5 and ratios["peak_over_trl"]["spread"] is not None
    text = markdown(found)
    assert "| trl | batch 1, attention eager, checkpointing off | 8 | 8, 8, 8 |" in text
    assert all(f"* batch {one['batch']}, attention {one['attention']}, checkpointing {one['checkpointing']}" in text
               for one in TRL_TRIES)  # fmt: skip


def test_a_way_that_fails_ends_the_benchmark_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(returncode=1, stdout="", stderr="MemoryError: no room")
    monkeypatch.setattr(subprocess, "run", lambda *words, **more: done)
    with pytest.raises(SystemExit, match="trl batch=8: failed with status 1; its last words:\nMemoryError: no room"):
        training.measure(argparse.Namespace(dtype="float32"), "trl", batch=8)


def iteration(trl: float, gpo: float) -> dict[str, Any]:
    """What benchmarks/end_to_end.py found: TRL's way and gpo in seconds, the limit 300."""
    return {
        "median": {"trl": trl, "gpo": gpo, "limit": 300.0},
        "spread": dict.fromkeys(("trl", "gpo", "limit")),
        "seconds": {"trl": [trl], "gpo": [gpo], "limit": [300.0]},
        "programs": {
            "trl": [{"trl-generate": trl - 550, "trl-score": 50.0, "trl-train": 500.0}],
            "limit": [{"limit-generate": 80.0, "limit-score": 20.0, "limit-train": 200.0}],
        },
        "stages_of_gpo": {"generate 1": 95.0, "train 1": 250.0},
    }


def short(claims: list[Claim]) -> list[Claim]:
    return [claim for claim in claims if not claim.holds]


def test_what_fell_short_when_it_was_last_measured_has_its_reason() -> None:
    numbers = {name: {"median": value, "spread": 0.02} for name, value in LAST_SEEN.items()}
    found = short(claims_of(numbers)) + short(end_to_end.claims_of(iteration(750.0, 400.0)))
    assert len(found) == 4
    assert all(claim.reason and "](" in claim.reason for claim in found)
    speed, _, of_trl, of_limit = (str(claim.reason) for claim in found)
    assert "only 1.61 times our tokens" in speed
    assert "training is 67% of TRL's way, and gpo trains 2.0 times as fast" in of_trl
    assert "training takes +50 s, sampling and scoring -5 s against the parts alone, all else 55 s" in of_limit
    assert f"falls short: {of_limit} |" in claim_lines(found)[-1]


def test_reasons_lead_to_headings_that_are_there() -> None:
    pages = Path(__file__).parents[2] / "docs"
    assert "\n## One iteration, end to end\n" in (pages / "performance.md").read_text("utf-8")
    assert end_to_end.EXPLAINED.endswith("(#one-iteration-end-to-end)")
    assert "\n## Measured\n" in (pages / "training.md").read_text("utf-8")
    assert training.PROFILED.endswith("(training.md#measured)")


def event(*names: str) -> SimpleNamespace | None:
    """An event of the profiler within others, its own name first."""
    return SimpleNamespace(name=names[0], cpu_parent=event(*names[1:])) if names else None


def test_an_operator_counts_once_by_the_first_kind_that_it_belongs_to() -> None:
    assert kind_of(event("aten::bmm", "_SegmentAttentionBackward", "autograd")) == "attention"
    assert kind_of(event("aten::copy_", "Optimizer.step#RMSprop.step")) == "optimizer"
    assert kind_of(event("aten::mm", "aten::matmul")) == "matrix products"
    assert kind_of(event("aten::copy_", "aten::_to_copy", "aten::to")) == "copies and casts"
    assert kind_of(event("aten::mul")) == "all other" and kind_of(event("_Norm")) == "between"
    found = {"step_seconds": 3.0, "shares": dict.fromkeys(KINDS, 0.125), "gib": {"weights": 0.5}, "peak_gib": 4.0}
    assert "| attention | 12.5% |" in profile_table(found) and "| weights | 0.50 |" in profile_table(found)
