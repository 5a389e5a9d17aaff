"""What several threads add up is added in one order, so that a training gives the same weights each time.

Run: python -m pytest tests/gpo/training/test_one_order.py
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gpo.training.log_probs import ChunkedLogProbs, add_log_prob_head
from tests.gpo.training.small_training import make_trainer
from tests.racing_sums import RacingSums
from tests.tiny import make_tiny_model

TOKENS = 2048
"""With the width of the states more numbers than torch adds in one thread."""
TIMES = 40
"""One order out of two came in a third of the times and more."""


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_the_gradient_of_a_state_that_many_answers_begin_behind_is_summed_in_their_order() -> None:
    model = make_tiny_model()
    add_log_prob_head(model)
    states: list[Tensor] = []
    model.base_model.register_forward_hook(lambda _, __, output: states.append(output.last_hidden_state))
    labels = torch.arange(TOKENS) % 251
    # A prompt's last state predicts the first token of each of its answers.
    logps = model(input_ids=torch.tensor([[1, 2, 3]]), answer_at=torch.full((TOKENS,), 2), answer_ids=labels)
    weights = torch.linspace(-1.0, 2.0, TOKENS)
    loss = (logps * weights).sum()
    found = [torch.autograd.grad(loss, states, retain_graph=True)[0][0, 2].numpy() for _ in range(TIMES)]
    alone = states[0][0, 2].detach().repeat(TOKENS, 1).requires_grad_()
    apart = ChunkedLogProbs.apply(alone, model.lm_head.weight, labels, 1.0, 0.0)
    (parts,) = torch.autograd.grad((apart * weights).sum(), alone)
    assert parts.numel() > 1 << 15
    expected = np.zeros(parts.shape[1], np.float32)
    for part in parts.numpy():
        expected += part
    assert sum(np.array_equal(one, expected) for one in found) == TIMES


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
