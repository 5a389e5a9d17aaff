"""Which model a reference pass asks: DeepSpeed's policy through an engine, whatever the stage, all others as they are.

And how long models stay, and what becomes of numbers that are kept.

Run: python -m pytest tests/gpo/training/test_reference.py
"""

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpo.training import reference
from gpo.training.reference import ALIVE, read_reference, reference_file, starting_policy, write_reference
from gpo.training.trainer import GPOTrainer
from tests.gpo.training.small_training import make_trainer
from tests.tiny import make_tiny_model


def trainer_with(deepspeed: bool, ref_model: Any = None) -> Any:
    """What `starting_policy` looks at; ZeRO-1 and ZeRO-2 leave no mark on the parameters."""
    return SimpleNamespace(
        model="policy",
        ref_model=ref_model,
        is_deepspeed_enabled=deepspeed,
        accelerator="accelerator",
        _precompute_engine=None,
    )


def test_deepspeeds_policy_goes_through_one_engine_for_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, Any]] = []

    def engine(model: Any, accelerator: Any) -> str:
        made.append((model, accelerator))
        return "engine"

    monkeypatch.setattr(reference, "prepare_deepspeed", engine)
    trainer = trainer_with(deepspeed=True)
    assert [starting_policy(trainer) for _ in range(2)] == ["engine", "engine"]
    assert made == [("policy", "accelerator")]


def test_without_deepspeed_and_with_a_reference_of_its_own_nothing_is_wrapped() -> None:
    assert starting_policy(trainer_with(deepspeed=False)) == "policy"
    assert starting_policy(trainer_with(deepspeed=True, ref_model="prepared")) == "prepared"


def test_a_trainer_that_is_let_go_is_gone(tmp_path: Path) -> None:
    """A cycle of references would keep it, and its arguments: with ZeRO-3 the next model would be made in pieces."""
    gc.disable()
    try:
        trainer = make_trainer(tmp_path, stop_kl=1.0)
        trainer.train()
        seen = weakref.ref(trainer)
        del trainer
        assert seen() is None
    finally:
        gc.enable()


def test_a_pass_gives_a_sign_behind_each_of_its_parts_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    logps = GPOTrainer._logps

    def looking(*given: Any) -> Any:
        seen.append((tmp_path / ALIVE).exists())
        return logps(*given)

    monkeypatch.setattr(GPOTrainer, "_logps", looking)
    make_trainer(tmp_path, reference_folder=str(tmp_path)).train()
    first = seen[:3]
    assert first == [False, True, True] and not (tmp_path / ALIVE).exists()


@pytest.mark.parametrize("bf16", [False, True])
def test_an_anchor_is_gone_once_its_log_probabilities_are_there(tmp_path: Path, bf16: bool) -> None:
    anchor = make_tiny_model(seed=1)
    seen = weakref.ref(anchor)
    trainer = make_trainer(tmp_path, pull=0.5, anchor_model=anchor, bf16=bf16)
    del anchor
    gc.collect()
    assert "anchor_logps" in trainer.train_dataset.column_names
    assert seen() is None


@pytest.mark.parametrize(
    "damaged", [b"", b"[]", b"\x93", b'{"logps": [1, 2]}', b'{"logps": [1, [2]]}', b'{"logps": "12"}']
)
def test_kept_numbers_come_back_to_the_bit_and_damaged_ones_not_at_all(tmp_path: Path, damaged: bytes) -> None:
    logps = torch.tensor([-1.1, -3e-7])
    write_reference(tmp_path, "key", logps)
    found = read_reference(tmp_path, "key", 2)
    assert found is not None and torch.equal(found, logps)
    assert read_reference(tmp_path, "key", 3) is None and read_reference(tmp_path, "other", 2) is None
    path = reference_file(tmp_path, "key")
    path.write_text(path.read_text().replace("-1.1", "-1.2"))
    assert read_reference(tmp_path, "key", 2) is None
    path.write_bytes(damaged)
    assert read_reference(tmp_path, "key", 2) is None
