"""How a step is cut into forward passes and accumulated, and how rows lie in them, changes no objective's numbers.

Run: python -m pytest tests/gpo/training/test_cuts.py
"""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.gpo.training.small_training import Gradients, make_rows, make_trainer, steps_of

PROMPTS = 6
PAIRS: dict[str, Any] = {"select": "best-and-worst"}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "regression": {},
    "dpo": {"objective": "dpo", **PAIRS},
    "ipo": {"objective": "ipo", **PAIRS},
    "sft": {"sft": 0.5},
    "pull": {"pull": 0.5},
    "length_power": {"length_power": 0.5},
    "together": {"sft": 0.5, "pull": 0.25, "length_power": 1.0, "clamp": 1.0, "select": "top-and-bottom"},
}
WHOLE: dict[str, Any] = {"layout": "padded", "gradient_accumulation_steps": 1, "batch_tokens": 10_000}
VALUES = product(("padded", "packed", "shared"), (1, 4), (30, 10_000))
CUTS = [cut for cut in (dict(zip(WHOLE, values, strict=True)) for values in VALUES) if cut != WHOLE]
"""30 tokens are fewer than most prompts have with their answers: those are cut in between, but for pairs."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """With log-ratios to a reference and to an anchor that are of the targets' size."""
    rows = make_rows(PROMPTS)
    own = make_trainer(tmp_path_factory.mktemp("own"), rows).train_dataset["ref_logps"]
    return [
        {**row, "ref_logps": logp + 3.0 - number % 7, "anchor_logps": logp + 2.0 - number % 5}
        for number, (row, logp) in enumerate(zip(rows, own, strict=True))
    ]


def first_step(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[float, dict[str, Tensor], int]:
    """Loss and gradients of a step of all rows, and how many forward passes it took."""
    gradients = Gradients()
    plain: dict[str, Any] = {"batch_prompts": PROMPTS, "optim": "sgd", "max_grad_norm": 0.0}
    trainer = make_trainer(folder, rows, callbacks=[gradients], **plain, **settings)
    trainer.train()
    (step,) = steps_of(trainer)
    return step["loss"], gradients.first, sum(len(item["parts"]) for item in trainer.get_train_dataloader())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_cuts_accumulation_padding_and_shared_prompts_change_neither_loss_nor_gradients(
    tmp_path: Path, rows: list[dict[str, Any]], objective: str
) -> None:
    """In float32 to 1e-5, gradients relative to each tensor's largest entry."""
    loss, gradients, passes = first_step(tmp_path, rows, **OBJECTIVES[objective], **WHOLE)
    assert passes == 1 and loss > 0.0 and gradients
    for cut in CUTS:
        found, other, passes = first_step(tmp_path, rows, **OBJECTIVES[objective], **cut)
        assert (passes > 1) is (cut["gradient_accumulation_steps"] > 1 or cut["batch_tokens"] == 30), cut
        assert found == pytest.approx(loss, rel=1e-5), cut
        assert other.keys() == gradients.keys()
        for name, value in gradients.items():
            assert (other[name] - value).abs().max() <= 1e-5 * value.abs().max(), (cut, name)
