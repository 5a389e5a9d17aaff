"""A preference model in training: one forward pass of a batch of pairs, and the loss.
What it is: backbone, heads and, when they are trained too, tau and the language model head behind one `forward`, which
is what DDP, DeepSpeed and FSDP wrap; heads see gathered rows only. What it is not: it steps no optimizer and saves
nothing; `published` hands out the model as it is used and saved.

Shape suffixes: F computed tokens, N pairs, A answer tokens, H hidden size, D embedding width, L = D / 2 blocks; 2
stands for (chosen, rejected).
"""

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward.checkpoint import read_tensors
from reward.errors import RewardInputError
from reward.head_settings import HeadTrainingSettings
from reward.lm_head import LM_HEADS
from reward.losses import logistic_loss, regression_loss, soft_label_loss
from reward.model import GeneralPreferenceModel
from reward.packed_attention import packing_obstacle
from reward.packed_training import trained_states, use_packed_attention
from reward.pair_batches import PairBatch
from reward.preference import preference_score
from reward.shared_states import states_at
from reward.training_layers import use_training_layers
from reward.training_settings import TrainingSettings

_LOGITS_AT_ONCE = 512


class PairOutput(NamedTuple):
    """What losses and metrics need."""

    score_N: Tensor
    tau: Tensor
    v_N2D: Tensor
    gate_NL: Tensor | None
    norm_N2: Tensor
    """Length of the embeddings before normalisation; no gradient."""
    answer_loss: Tensor
    """Weighted mean negative log-likelihood of the chosen answers' tokens; 0 when it is not trained."""


class PairModel(nn.Module):
    """Wraps a GeneralPreferenceModel for training; its attention becomes the packed one where the model can."""

    def __init__(self, model: GeneralPreferenceModel, settings: TrainingSettings) -> None:
        super().__init__()
        self.settings = settings
        self.model = model
        self.shares_beginnings = packing_obstacle(model.backbone.config) is None
        if self.shares_beginnings:
            use_packed_attention(model.backbone)
        use_training_layers(model.backbone)
        self.gate_factor = model.settings.value_head_dim // 2 if settings.gate_scaling else 1
        if settings.gate_scaling:
            self._scale_gate(math.sqrt(model.backbone.config.get_text_config().hidden_size))
        # The tau that divides the scores of training, which are gate_factor times those of the published form.
        self.tau = model.settings.tau * self.gate_factor
        self.log_tau = nn.Parameter(torch.tensor([math.log(self.tau)])) if settings.learn_tau else None
        self.lm_head = _untied_lm_head(model) if settings.sft_weight else None

    def forward(self, batch: PairBatch) -> PairOutput:
        """Scores of chosen over rejected, and what else comes out of the same pass."""
        # Within the forward pass, because DeepSpeed's engine ends an autocast that is opened around it (only on a GPU).
        with self._computing(batch.answer_N2.device.type):
            return self._output(batch)

    def _computing(self, device_type: str) -> torch.autocast:
        """The compute type; master weights stay float32 whatever spreads them."""
        bfloat16 = self.settings.precision == "bfloat16"
        # Weights that are gathered layer by layer must not be kept in a cache of whole casts.
        whole = self.settings.sharding not in ("zero3", "fsdp2")
        return torch.autocast(device_type, torch.bfloat16, enabled=bfloat16, cache_enabled=whole)

    def _output(self, batch: PairBatch) -> PairOutput:
        states_FH = self._states(batch)
        answer_NH, prompt_NH = (
            states_at(states_FH, place_N2.flatten()) for place_N2 in (batch.answer_N2, batch.prompt_N2)
        )
        heads = self.model.heads
        if self.gate_factor != 1:
            prompt_NH = prompt_NH.float() / math.sqrt(prompt_NH.shape[-1])
        v_MD, gate_ML = heads(answer_NH, prompt_NH)
        v_N2D = v_MD.unflatten(0, (-1, 2))
        # As in the scorer's tables: the mean of the two gates, which differ only if truncation cut the prompt.
        gate_NL = None if gate_ML is None else gate_ML.unflatten(0, (-1, 2)).mean(1) * self.gate_factor
        score_N = preference_score(v_N2D[:, 0], v_N2D[:, 1], gate_NL)
        with torch.no_grad(), torch.autocast(states_FH.device.type, enabled=False):
            norm_N2 = F.linear(answer_NH.float(), heads.value_head.weight.float()).norm(dim=-1).view(-1, 2)
        tau = score_N.new_tensor([self.tau]) if self.log_tau is None else self.log_tau.float().exp()
        return PairOutput(score_N, tau, v_N2D, gate_NL, norm_N2, self._answer_loss(states_FH, batch))

    def _states(self, batch: PairBatch) -> Tensor:
        backbone = self.model.backbone
        if batch.packed is not None:
            return trained_states(backbone, batch.packed, batch.answer_N2.device)
        assert batch.padded is not None
        ids_NT, mask_NT = batch.padded
        output = backbone(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False)
        flat_FH: Tensor = output.last_hidden_state.flatten(0, 1)
        return flat_FH

    def _answer_loss(self, states_FH: Tensor, batch: PairBatch) -> Tensor:
        if batch.answers is None or not self.settings.sft_weight:
            return states_FH.new_zeros((), dtype=torch.float32)
        head = self.model.backbone.get_input_embeddings() if self.lm_head is None else self.lm_head
        weight_VH = cast(Tensor, head.weight)
        total = states_FH.new_zeros((), dtype=torch.float32)
        answers = batch.answers
        parts = (one.split(_LOGITS_AT_ONCE) for one in (answers.place_A, answers.label_A, answers.weight_A))
        for place_A, label_A, weight_A in zip(*parts, strict=True):
            logits_AV = F.linear(states_at(states_FH, place_A), weight_VH.to(states_FH.dtype))
            total = total + (F.cross_entropy(logits_AV.float(), label_A, reduction="none") * weight_A).sum()
        return total

    @torch.no_grad()
    def _scale_gate(self, factor: float) -> None:
        if self.model.heads.prompt_head is not None:
            self.model.heads.prompt_head.weight.mul_(factor)


def _untied_lm_head(model: GeneralPreferenceModel) -> nn.Linear | None:
    """The model's own language model head as a trained layer; None when the embeddings serve."""
    if getattr(model.backbone.config.get_text_config(), "tie_word_embeddings", False):
        return None
    found = {} if model.source is None else read_tensors(model.source, LM_HEADS)
    weight = next(iter(found.values()), None)
    if weight is None:
        raise RewardInputError("sft_weight is above 0, but the model has no language model head; set sft_weight to 0")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float32)
    layer.weight.data.copy_(weight)
    return layer


def pair_loss(output: PairOutput, batch: PairBatch, settings: TrainingSettings) -> Tensor:
    """The loss of a batch: weighted sum over its pairs, in nats (regression: squared log-odds)."""
    loss_N = loss_of_pairs(output.score_N, output.tau, batch.target_N, batch.margin_N, settings)
    preference = (loss_N * batch.weight_N).sum()
    return (1 - settings.sft_weight) * preference + settings.sft_weight * output.answer_loss


def loss_of_pairs(
    score_N: Tensor,
    tau: Tensor | float,
    target_N: Tensor,
    margin_N: Tensor,
    settings: TrainingSettings | HeadTrainingSettings,
) -> Tensor:
    """The preference loss of each pair."""
    if settings.loss == "soft":
        return soft_label_loss(score_N, tau, target_N)
    if settings.loss == "regression":
        limit = settings.regression_target
        return regression_loss(score_N, tau, torch.logit(target_N.double()).clamp(-limit, limit).to(score_N))
    return logistic_loss(score_N, tau, margin_N if settings.loss == "margin" else None)
