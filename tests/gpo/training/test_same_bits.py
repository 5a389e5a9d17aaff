"""Nothing in a step depends on which thread comes first, so that a training that is done again has the same weights.

Run: python -m pytest tests/gpo/training/test_same_bits.py
"""

from pathlib import Path

import pytest
import torch

from tests.gpo.training.small_training import make_trainer
from tests.racing_sums import RacingSums


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_no_gradient_is_added_up_in_the_order_of_whichever_thread_comes_first(tmp_path: Path, layout: str) -> None:
    """Answers share the place behind their prompt; two threads once made two results of a training."""
    trainer = make_trainer(tmp_path, layout=layout)
    (item, *_) = trainer.get_train_dataloader()
    with RacingSums() as sums:
        trainer.training_step(trainer.model, item)
    assert not sums.found


def test_without_that_care_it_would_be() -> None:
    states = torch.ones(4, 2, requires_grad=True)
    with RacingSums() as sums:
        states[torch.tensor([1, 1, 2])].sum().backward()
    assert sums.found
