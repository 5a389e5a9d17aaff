"""The forward pass of training, on packed rows, against the published training batches: outputs, loss, gradients.

Run: python -m pytest tests/reward/test_pair_model.py
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from reward.encoded_pairs import PairEncoder
from reward.encoding import ConversationEncoder
from reward.model import GeneralPreferenceModel
from reward.pair_batches import lay_out
from reward.pair_model import PairModel, loss_of_pairs, pair_loss
from reward.pairs import PreferencePair
from reward.settings import RewardSettings
from reward.training_settings import TrainingSettings
from tests.racing_sums import RacingSums
from tests.reward import published
from tests.reward.training_data import pair
from tests.tiny import make_tiny_model, make_tokenizer

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


def test_the_answer_loss_is_that_of_the_chosen_answers_tokens_alone() -> None:
    """As the language model itself gives it, row by row: the mean over each chosen answer, then over pairs."""
    causal = make_tiny_model(tied=True).eval()
    model = GeneralPreferenceModel.from_backbone(causal, RewardSettings.published(2))
    settings = TrainingSettings(sft_weight=0.5, precision="float32")
    talks = [("Name a sea.", "the north sea", "none"), ("Count to three now.", "one two three", "three two one")]
    pairs = [pair(*talk) for talk in talks]
    encoded = list(PairEncoder(ConversationEncoder(make_tokenizer(), model.settings, 512)).encode(pairs))
    expected = 0.0
    for one in encoded:
        ids, start = torch.tensor([one.rows[0]]), one.answer_start
        assert 1 < start < ids.shape[1] - 1, "prompt and answer have tokens of their own"
        logits = causal(input_ids=ids).logits[0, start - 1 : -1]
        expected += float(F.cross_entropy(logits, ids[0, start:])) / len(encoded)
    for share in (True, False):
        wrapped = PairModel(GeneralPreferenceModel.from_backbone(causal, model.settings), settings)
        if not share:
            wrapped.model.backbone.config._attn_implementation = "eager"
        batch = lay_out(encoded, 1 / len(encoded), share=share, with_answers=True)
        assert float(wrapped(batch).answer_loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [True, False], ids=["packed", "padded"])
def test_no_gradient_is_added_up_in_the_order_of_whichever_thread_comes_first(share: bool) -> None:
    model = GeneralPreferenceModel.from_backbone(make_tiny_model(tied=True).eval(), RewardSettings.published(2, True))
    wrapped = PairModel(model, TrainingSettings(sft_weight=0.5, precision="float32"))
    if not share:
        model.backbone.config._attn_implementation = "eager"
    encoder = PairEncoder(ConversationEncoder(make_tokenizer(), model.settings, 512))
    encoded = list(encoder.encode([pair("Name a sea.", "the north sea", "none")]))
    batch = lay_out(encoded, 1.0, share=share, with_answers=True)
    with RacingSums() as sums:
        output = wrapped(batch)
        (output.score_N.sum() + output.answer_loss).backward()
    assert not sums.found
