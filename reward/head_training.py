"""The cheap way to a reward model: the backbone stays as it is, only the heads are trained.
What it is: one forward pass over every conversation (`reward.hidden_cache`), then seconds of AdamW on two
small matrices, fresh ones or those of a reward model that goes on; the result is a whole checkpoint in the
published layout with `training_metrics.json` beside the weights. What it is not: it changes nothing in the
backbone, so it reaches only what the last layer's states tell already.

Shape suffixes: N pairs, U different token rows, H hidden size, D embedding width, L = D / 2 blocks.
pair_N2 holds the places of (chosen, rejected) among the U rows.
"""

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from reward.backend_transformers import Progress
from reward.compute_type import compute_type
from reward.encoding import ConversationEncoder, EncodedConversation
from reward.errors import RewardInputError
from reward.head_settings import HeadTrainingSettings
from reward.heads import PreferenceHeads
from reward.hidden_cache import HiddenStateCache, RowStates
from reward.losses import logistic_loss, soft_label_loss
from reward.model import GeneralPreferenceModel
from reward.pair_metrics import Pairs, SplitMetrics, correct_pairs, pair_list, split_metrics
from reward.pairs import PreferencePair
from reward.placement import choose_device
from reward.preference import preference_score
from reward.starting_model import continued_settings, has_heads

logger = logging.getLogger(__name__)

METRICS_FILE = "training_metrics.json"
FORMAT_VERSION = 1
_PAIRS_AT_ONCE = 4096


@dataclass(frozen=True)
class HeadTrainingReport:
    """The content of `training_metrics.json`."""

    format_version: int
    output_dir: str
    backbone: str
    settings: dict[str, Any]
    train: SplitMetrics
    heldout: SplitMetrics
    conversations: int
    """Different token rows; each was computed once."""
    truncated: int
    """Rows that were longer than max_length."""
    loss: float
    """Mean over the training pairs with the final heads, in nats."""
    seconds: float
    head_seconds: float
    """The heads' share of `seconds`; the rest went to encoding, the forward pass and saving."""
    heldout_correct: list[dict[str, Any]]
    """{"group", "correct"} of each held-out pair, in order; correct is 1.0, 0.0 or, undecided, 0.5."""


def train_heads(
    backbone_dir: str | Path,
    train_pairs: Pairs,
    heldout_pairs: Pairs,
    output_dir: str | Path,
    settings: HeadTrainingSettings,
    cache_dir: str | Path,
    progress: Progress | None = None,
) -> HeadTrainingReport:
    """Train heads on `train_pairs` and save a whole checkpoint; the same seed gives the same weights.

    Raises RewardInputError for pairs, directories and settings that cannot be used, and for a loss that is not finite.
    """
    started = time.perf_counter()
    train, heldout = pair_list(train_pairs), pair_list(heldout_pairs)
    _check(train, heldout, Path(backbone_dir), Path(output_dir), settings)
    goes_on = has_heads(backbone_dir) and not settings.new_heads
    model = _open_model(Path(backbone_dir), settings, goes_on)
    tokenizer = AutoTokenizer.from_pretrained(backbone_dir)
    encoder = ConversationEncoder(tokenizer, model.settings, settings.max_length)
    rows, pair_N2 = encode_pairs(encoder, [*train, *heldout])
    states = _states(model, backbone_dir, rows, settings.batch_tokens, HiddenStateCache(cache_dir), progress)
    heads = model.heads.cpu()
    fitting = time.perf_counter()
    fit_heads(heads, states, pair_N2[: len(train)], train, settings, model.settings.tau, goes_on)
    head_seconds = time.perf_counter() - fitting
    score_N = pair_scores(heads, states, pair_N2)
    loss = float(_loss(score_N[: len(train)], *_targets(train, settings), model.settings.tau))
    if not math.isfinite(loss):
        raise RewardInputError(f"the loss ended at {loss}; lower learning_rate ({settings.learning_rate})")
    model.save_pretrained(output_dir, tokenizer)
    correct = correct_pairs(heldout, score_N[len(train) :])
    report = HeadTrainingReport(
        format_version=FORMAT_VERSION,
        output_dir=str(output_dir),
        backbone=str(backbone_dir),
        settings=dataclasses.asdict(settings) | model.settings.to_config(),
        train=split_metrics(train_pairs, score_N[: len(train)]),
        heldout=split_metrics(heldout_pairs, score_N[len(train) :]),
        conversations=len(rows),
        truncated=sum(row.truncated for row in rows),
        loss=loss,
        seconds=time.perf_counter() - started,
        head_seconds=head_seconds,
        heldout_correct=[{"group": pair.group, "correct": c} for pair, c in zip(heldout, correct, strict=True)],
    )
    _write_json(Path(output_dir) / METRICS_FILE, dataclasses.asdict(report))
    return report


def _check(
    train: Sequence[PreferencePair],
    heldout: Sequence[PreferencePair],
    backbone: Path,
    output: Path,
    settings: HeadTrainingSettings,
) -> None:
    if not train:
        raise RewardInputError("there are no training pairs, expected at least one")
    if backbone.resolve() == output.resolve():
        raise RewardInputError(f"the output {output} is the backbone itself; expected another directory")
    soft = [place for place, pair in enumerate(train) if pair.target_prob != 1.0]
    if settings.margin_loss and soft:
        raise RewardInputError(
            f"training pair {soft[0] + 1} has target_prob {train[soft[0]].target_prob}, and margin_loss is "
            "on: a margin loss knows no soft labels; switch it off, or leave target_prob out"
        )
    shared = {pair.group for pair in train} & {pair.group for pair in heldout}
    if shared:
        logger.warning("%d held-out groups are also trained on: that accuracy is too good", len(shared))


def _open_model(source: Path, settings: HeadTrainingSettings, goes_on: bool) -> GeneralPreferenceModel:
    if not goes_on:
        return GeneralPreferenceModel.from_backbone(source, settings.reward_settings(), seed=settings.seed)
    model = GeneralPreferenceModel.from_pretrained(source)
    model.settings = continued_settings(source, model.settings, settings)
    model.heads.l2_normalize = model.settings.l2_normalize
    return model


def _states(
    model: GeneralPreferenceModel,
    backbone_dir: str | Path,
    rows: Sequence[EncodedConversation],
    batch_tokens: int,
    cache: HiddenStateCache,
    progress: Progress | None,
) -> RowStates:
    """States by the backbone as the scorer will run it on this machine; `model` keeps the type it is stored in."""
    device, reason = choose_device(None)
    logger.info("%s", reason)
    stored = str(model.backbone.dtype).removeprefix("torch.")
    computed = compute_type(stored, device)
    if computed != stored:
        # Opened anew: a cast, there or back, would take float32 buffers such as rotary frequencies along.
        model = GeneralPreferenceModel.from_backbone(backbone_dir, model.settings, dtype=computed)
    return cache.states(model, rows, device, batch_tokens, progress)


def encode_pairs(
    encoder: ConversationEncoder, pairs: Sequence[PreferencePair]
) -> tuple[list[EncodedConversation], Tensor]:
    """The different rows, in an order that does not depend on the pairs', and pair_N2."""
    try:
        rows = encoder.encode([messages for pair in pairs for messages in (pair.chosen, pair.rejected)])
    except RewardInputError as error:
        raise RewardInputError(
            f"{error} (rows 0 and 1 are chosen and rejected of the first pair, and so on)"
        ) from error
    keys = [(row.prompt_end, *row.input_ids) for row in rows]
    # Sorted, the rows of the same conversations are the same file in the cache whatever the pairs' order.
    different = dict(sorted(zip(keys, rows, strict=True), key=lambda item: item[0]))
    place = {key: number for number, key in enumerate(different)}
    pair_N2 = torch.tensor([place[key] for key in keys]).reshape(-1, 2)
    alike = int((pair_N2[:, 0] == pair_N2[:, 1]).sum())
    if alike:
        logger.warning("%d pairs are alike once cut to max_length = %d ids", alike, encoder.max_length)
    return list(different.values()), pair_N2


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
    target_N, margin_N = _targets(pairs, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * math.ceil(len(pairs) / settings.batch_pairs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(pairs), generator=generator).split(settings.batch_pairs):
            score_N = _scores(heads, scaled, pair_N2[batch])
            optimizer.zero_grad()
            _loss(score_N, target_N[batch], None if margin_N is None else margin_N[batch], tau).backward()
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


def _scores(heads: PreferenceHeads, states: RowStates, pair_N2: Tensor) -> Tensor:
    row_M = pair_N2.flatten()
    v_MD, gate_ML = heads(states.answer_UH[row_M], states.prompt_UH[row_M])
    v_N2D = v_MD.unflatten(0, (-1, 2))
    # As in the scorer's tables: the mean of the two gates, which differ only if truncation cut the prompt.
    gate_NL = None if gate_ML is None else gate_ML.unflatten(0, (-1, 2)).mean(1)
    return preference_score(v_N2D[:, 0], v_N2D[:, 1], gate_NL)


@torch.no_grad()
def pair_scores(heads: PreferenceHeads, states: RowStates, pair_N2: Tensor) -> Tensor:
    """Score_N of chosen over rejected."""
    return torch.cat([_scores(heads, states, part_N2) for part_N2 in pair_N2.split(_PAIRS_AT_ONCE)])


def _targets(pairs: Sequence[PreferencePair], settings: HeadTrainingSettings) -> tuple[Tensor, Tensor | None]:
    target_N = torch.tensor([pair.target_prob for pair in pairs])
    if not settings.margin_loss:
        return target_N, None
    return target_N, torch.tensor([pair.margin or 0.0 for pair in pairs])


def _loss(score_N: Tensor, target_N: Tensor, margin_N: Tensor | None, tau: float) -> Tensor:
    if margin_N is not None:
        return logistic_loss(score_N, tau, margin_N).mean()
    return soft_label_loss(score_N, tau, target_N).mean()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    part.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")
    part.replace(path)
