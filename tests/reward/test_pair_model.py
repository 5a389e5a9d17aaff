"""The forward pass of training, on packed rows, against the published training batches: outputs, loss, gradients.

Run: python -m pytest tests/reward/test_pair_model.py
"""

import math
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from reward.encoded_pairs import PairEncoder
from reward.encoding import ConversationEncoder
from reward.model import GeneralPreferenceModel
from reward.pair_batches import lay_out
from reward.pair_model import PairModel, loss_of_pairs, pair_loss
from reward.pairs import PreferencePair
from reward.training_settings import TrainingSettings
from tests.reward import published

torch.set_num_threads(1)
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype).reshape(found.shape), **CLOSE)


@published.present
@pytest.mark.parametrize("share", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("case", published.entries("training_batches"))
def test_training_batches_agree_with_the_published_ones(case: dict[str, Any], share: bool) -> None:
    directory = published.checkpoint(case["checkpoint"])
    settings = TrainingSettings(
        loss="margin" if case["use_margin"] else "logistic", max_length=case["max_length"], precision="float32"
    )
    model = PairModel(GeneralPreferenceModel.from_pretrained(directory, dtype="float32"), settings)
    if not share:
        model.model.backbone.config._attn_implementation = "eager"
    encoder = ConversationEncoder(AutoTokenizer.from_pretrained(directory), model.model.settings, case["max_length"])
    pairs = [PreferencePair(row["chosen"], row["rejected"], margin=row["margin"]) for row in case["rows"]]
    encoded = list(PairEncoder(encoder).encode(pairs))
    expected = case["expected"]
    assert [list(pair.rows[0]) for pair in encoded] == expected["chosen_input_ids"]
    assert [list(pair.rows[1]) for pair in encoded] == expected["rejected_input_ids"]
    batch = lay_out(encoded, 1 / len(encoded), share=share)
    output = model(batch)
    same(output.v_N2D[:, 0], expected["chosen_output"])
    same(output.v_N2D[:, 1], expected["rejected_output"])
    loss = pair_loss(output, batch, settings)
    same(loss, expected["loss"])
    loss.backward()
    heads = model.model.heads
    same(heads.value_head.weight.grad, expected["grad_value_head"])
    if heads.prompt_head is not None:
        same(heads.prompt_head.weight.grad, expected["grad_prompt_head"])
    same(model.model.backbone.norm.weight.grad, expected["grad_final_norm"])
    total = math.sqrt(sum(float(w.grad.square().sum()) for w in model.parameters() if w.grad is not None))
    assert total == pytest.approx(expected["grad_global_norm"], rel=1e-4)


def test_regression_takes_the_log_odds_of_soft_labels_and_a_limit_for_certainty() -> None:
    settings = TrainingSettings(loss="regression", regression_target=4.0)
    found = loss_of_pairs(torch.tensor([0.4, 0.1]), 0.1, torch.tensor([1.0, 0.5]), torch.zeros(2), settings)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0]))
