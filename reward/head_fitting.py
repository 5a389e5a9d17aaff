"""Fitting heads to hidden states that are there, and what heads say of pairs.
What it is: AdamW on two small matrices, in seconds. What it is not: it runs no backbone and reads no files.

Shape suffixes: N pairs, M rows of them, U different token rows, H hidden size, D embedding width, L = D / 2 blocks.
pair_N2 holds the places of (chosen, rejected) among the U rows.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reward.head_settings import HeadTrainingSettings
from reward.heads import PreferenceHeads
from reward.hidden_cache import RowStates
from reward.pair_model import PairOutput, loss_of_pairs
from reward.pairs import PreferencePair
from reward.preference import preference_score


def fit_heads(
    heads: PreferenceHeads,
    states: RowStates,
    pair_N2: Tensor,
    pairs: Sequence[PreferencePair],
    settings: HeadTrainingSettings,
    tau: float,
    goes_on: bool,
) -> None:
    """AdamW over shuffled batches, from where the heads are if `goes_on`; they take the backbone's own states."""
    # Spread about 1 makes one learning rate fit all backbones; without a spread there is nothing to scale.
    scale = float(states.answer_UH[pair_N2.unique()].std(0, correction=0).mean()) or 1.0
    scaled = RowStates(states.answer_UH / scale, states.prompt_UH / scale)
    if goes_on:
        _multiply(heads, scale)
    else:
        _widen_start(heads)
    target_N, margin_N = _labels(pairs)
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * math.ceil(len(pairs) / settings.batch_pairs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(pairs), generator=generator).split(settings.batch_pairs):
            v_N2D, gate_NL = _embedded(heads, scaled, pair_N2[batch])
            score_N = preference_score(v_N2D[:, 0], v_N2D[:, 1], gate_NL)
            optimizer.zero_grad()
            loss_of_pairs(score_N, tau, target_N[batch], margin_N[batch], settings).mean().backward()
            optimizer.step()
            schedule.step()
    # The published layout has no place for a scale; in the weights it is exact up to rounding.
    _multiply(heads, 1 / scale)


@torch.no_grad()
def _multiply(heads: PreferenceHeads, factor: float) -> None:
    for weight in heads.parameters():
        weight.mul_(factor)


@torch.no_grad()
def _widen_start(heads: PreferenceHeads) -> None:
    """From the published 1 / (H + 1) to 1 / sqrt(H), so that embeddings start with a spread of about 1.

    The published start is smaller than one step of AdamW at this learning rate, so that the first steps wipe
    it out; on the quick start's data far fewer cycles were learned from it. Length 1 hides the change from
    the scores; without it the small start is the right one (a random reward is only noise).
    """
    if heads.l2_normalize:
        hidden_size = heads.value_head.in_features
        heads.value_head.weight.mul_((hidden_size + 1) / math.sqrt(hidden_size))


def _embedded(heads: PreferenceHeads, states: RowStates, pair_N2: Tensor) -> tuple[Tensor, Tensor | None]:
    row_M = pair_N2.flatten()
    v_MD, gate_ML = heads(states.answer_UH[row_M], states.prompt_UH[row_M])
    # As in the scorer's tables: the mean of the two gates, which differ only if truncation cut the prompt.
    return v_MD.unflatten(0, (-1, 2)), None if gate_ML is None else gate_ML.unflatten(0, (-1, 2)).mean(1)


@torch.no_grad()
def pair_output(heads: PreferenceHeads, states: RowStates, pair_N2: Tensor, tau: float) -> PairOutput:
    """What a model in training would give for these pairs; every row is embedded once."""
    v_UD, gate_UL = heads(states.answer_UH, states.prompt_UH)
    norm_U = F.linear(states.answer_UH, heads.value_head.weight).norm(dim=-1)
    v_N2D, gate_NL = v_UD[pair_N2], None if gate_UL is None else gate_UL[pair_N2].mean(1)
    score_N = preference_score(v_N2D[:, 0], v_N2D[:, 1], gate_NL)
    return PairOutput(score_N, torch.tensor([tau]), v_N2D, gate_NL, norm_U[pair_N2], torch.zeros(()))


def loss_of_heads(
    score_N: Tensor, pairs: Sequence[PreferencePair], settings: HeadTrainingSettings, tau: float
) -> Tensor:
    """The loss of each pair, in nats."""
    return loss_of_pairs(score_N, tau, *_labels(pairs), settings)


def _labels(pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
    target_N = torch.tensor([pair.target_prob for pair in pairs])
    return target_N, torch.tensor([pair.margin or 0.0 for pair in pairs])
