"""benchmarks/scoring.py compares like with like: every way computes in the type that is asked for.

Run: python -m pytest tests/reward/test_scoring_benchmark.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.scoring import linear_claim, markdown
from benchmarks.scoring_ways import growth, open_way, prepare
from tests.tiny import save_tiny_model

torch.set_num_threads(1)
GROUPS = [
    [[{"role": "user", "content": prompt}, {"role": "assistant", "content": text}] for text in ("a", "bb", "the sea")]
    for prompt in ("q", "Name a sea.")
]


def ways(folder: Path, dtype: str) -> dict[str, Any]:
    prepare(save_tiny_model(folder / "base"), folder / "checkpoint", dtype)
    return {name: open_way(name, folder / "checkpoint", dtype, GROUPS) for name in ("card", "transformers", "limit")}


def test_all_ways_compute_in_the_type_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward.compute_type.computes_bfloat16", lambda device: False)
    found = ways(tmp_path, "bfloat16")
    types = (found["card"].backbone.dtype, found["transformers"].scorer.backend.model.backbone.dtype)
    assert {*types, found["limit"].backbone.dtype} == {torch.bfloat16}


def test_the_cards_way_and_ours_find_the_same_scores(tmp_path: Path) -> None:
    found = ways(tmp_path, "float32")
    one, other = (torch.tensor(found[name].score(GROUPS)) for name in ("card", "transformers"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def growth_row(k: int, seconds: float) -> dict[str, Any]:
    return {"k": k, "seconds": seconds, "rounds": [seconds, 1.01 * seconds], "pairs": 1.0, "pairs_measured": True}


def test_only_a_linear_cost_of_answers_is_within_the_claim() -> None:
    sizes = (2, 4, 8, 16, 32, 64)
    linear = linear_claim([growth_row(k, 0.5 + 0.1 * k) for k in sizes])
    assert linear.holds and linear.value == pytest.approx(1) and linear.spread == pytest.approx(0)
    # An answer of 64 costs less than half of one of 2 here too, because what is paid once weighs most with 2.
    squared = linear_claim([growth_row(k, 0.5 + 0.1 * k + 0.001 * k**2) for k in sizes])
    assert not squared.holds and "from 32 to 64 / from 16 to 32" in squared.what


def test_tables_are_swept_over_in_all_sizes(tmp_path: Path) -> None:
    prepare(save_tiny_model(tmp_path / "base"), tmp_path / "checkpoint", "float32")
    group = [[GROUPS[0][0][0], {"role": "assistant", "content": f"answer {place}"}] for place in range(8)]
    rows = growth(tmp_path / "checkpoint", "float32", group, repeats=1)
    assert [row["k"] for row in rows] == [2, 4, 8] and {len(row["rounds"]) for row in rows} == {5}


def test_the_report_says_the_type_and_that_it_was_emulated() -> None:
    work = {"prompts": 2, "answers": 3, "dtype": "bfloat16", "tokens": {"all": 90, "after_sharing": 60}}
    way = {"median": 1.0, "spread": None, "conversation_tokens_per_second": 90, "peak_mib": 1}
    ratios = dict.fromkeys(("card / vllm", "card / transformers", "best / limit"), 1.0)
    growth = [growth_row(k, 0.1 * k) for k in (2, 4, 8)]
    empty: dict[str, Any] = {"largest_score_difference": {}, "growth": growth, "ratios": ratios}
    empty["ways"] = dict.fromkeys(("card", "transformers", "vllm", "limit"), way)
    assert markdown({**empty, "workload": work, "emulated": True}).startswith("bfloat16 (emulated) in all ways, 2 ")
    assert markdown({**empty, "workload": work, "emulated": False}).startswith("bfloat16 in all ways, 2 ")
