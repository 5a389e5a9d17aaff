"""benchmarks/scoring.py compares like with like: every way computes in the type that is asked for.

Run: python -m pytest tests/reward/test_scoring_benchmark.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.scoring import markdown
from benchmarks.scoring_ways import open_way, prepare
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


def test_the_report_says_the_type_and_that_it_was_emulated() -> None:
    work = {"prompts": 2, "answers": 3, "dtype": "bfloat16", "tokens": {"all": 90, "after_sharing": 60}}
    way = {"median": 1.0, "spread": None, "conversation_tokens_per_second": 90, "peak_mib": 1}
    ratios = dict.fromkeys(("card / vllm", "card / transformers", "best / limit"), 1.0)
    empty: dict[str, Any] = {"largest_score_difference": {}, "ratios": ratios}
    empty["ways"] = dict.fromkeys(("card", "transformers", "vllm", "limit"), way)
    assert markdown({**empty, "workload": work, "emulated": True}).startswith("bfloat16 (emulated) in all ways, 2 ")
    assert markdown({**empty, "workload": work, "emulated": False}).startswith("bfloat16 in all ways, 2 ")
