"""`gpo reward train` with tune = heads: settings without effect, and sources as a whole training reads them.

Run: python -m pytest tests/gpo/rewards/test_heads.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gpo.config.reward import _FOLLOWED_BY_HEADS, RewardTrainConfig
from tests.gpo.command_line import gpo
from tests.reward.training_data import cycle, write_rows
from tests.tiny import save_tiny_model

FILES = {"backbone": "base", "train": "a.jsonl", "heldout": "b.jsonl", "output": "out"}
WITHOUT_EFFECT: dict[str, Any] = {
    "gate_scaling": True,
    "learn_tau": True,
    "sft_weight": 0.1,
    "head_learning_rate": 1e-3,
    "schedule": "cosine",
    "warmup_ratio": 0.03,
    "max_steps": 5,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 1.0,
    "dtype": "float32",
    "gradient_checkpointing": True,
    "stream_buffer": 4,
    "adapter": {"rank": 4},
    "evaluate_steps": 2,
    "save_steps": 2,
    "best_metric": "loss",
    "keep_best": 2,
    "workers": 2,
    "sharding": "zero2",
    "deepspeed": {"wall_clock_breakdown": True},
    "trackers": ["tensorboard"],
    "trust_remote_code": True,
    "cluster": {"threads": 1},
}


def test_everything_that_heads_would_not_follow_is_refused_in_one_message() -> None:
    with pytest.raises(ValidationError) as raised:
        RewardTrainConfig(**FILES, **WITHOUT_EFFECT, epochs=1.5)
    told = str(raised.value)
    assert f"{', '.join(_FOLLOWED_BY_HEADS)}, epochs with a fraction: not with tune = heads" in told
    with pytest.raises(ValidationError, match="weight of a source: not with tune = heads"):
        RewardTrainConfig(**{**FILES, "train": [{"path": "a.jsonl", "weight": 2}]})


def test_what_heads_follow_all_the_same_may_be_said() -> None:
    said = {name: followed[0] for name, followed in _FOLLOWED_BY_HEADS.items() if followed}
    assert RewardTrainConfig(**FILES, **said, epochs=2.0).schedule is None


def test_heads_are_trained_on_folders_and_lists_of_sources_and_told_by_source(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "base")
    for name in ("one", "two"):
        write_rows(tmp_path / "pairs" / f"{name}.jsonl", cycle(name))
        write_rows(tmp_path / f"{name}.jsonl", cycle(f"{name} again"))
    sources = "[{path: one.jsonl}, {path: two.jsonl, template: false}]"
    (tmp_path / "heads.yaml").write_text(
        f"backbone: base\ntrain: pairs\nheldout: {sources}\noutput: out\nvalue_head_dim: 4\nepochs: 2\n"
    )
    done = gpo(tmp_path, "reward", "train", "heads.yaml", f"cache={tmp_path / 'cache'}")
    assert done.status == 0, done.said
    found = json.loads((tmp_path / "out" / "training_metrics.json").read_text())
    assert found["train"]["pairs"] == 6 and found["heldout"]["pairs"] == 6
    assert (found["heldout"]["one/pairs"], found["heldout"]["two/pairs"]) == (3, 3)
    alone = gpo(tmp_path, "reward", "train", "heads.yaml", "heldout=null", "output=alone", "cache=cache")
    assert alone.status == 0 and "unknown on 0 held-out pairs" in alone.said, alone.said
