"""The cheap way to a reward model: the backbone stays as it is, only the heads are trained.
What it is: one forward pass over every conversation (`reward.hidden_cache`), then seconds of AdamW on two
small matrices, fresh ones or those of a reward model that goes on; the result is a whole checkpoint in the
published layout with `training_metrics.json` beside the weights. What it is not: it changes nothing in the
backbone, so it reaches only what the last layer's states tell already.

Shape suffixes: N pairs, U different token rows. pair_N2 holds the places of (chosen, rejected) among the U rows.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward.backend_transformers import Progress
from reward.checkpoint import load_tokenizer
from reward.checkpoint_files import METRICS_FILE, write_object
from reward.compute_type import compute_type
from reward.encoded_pairs import EncodedPair, EncodingCounts, PairEncoder, encode_all
from reward.encoding import ConversationEncoder, EncodedConversation
from reward.errors import RewardInputError
from reward.head_fitting import fit_heads, loss_of_heads, pair_output
from reward.head_settings import HeadTrainingSettings
from reward.heads import PreferenceHeads
from reward.hidden_cache import HiddenStateCache, RowStates
from reward.model import GeneralPreferenceModel
from reward.pair_evaluation import evaluation_metrics, pair_values, reported
from reward.pair_metrics import Pairs, SplitMetrics, correct_pairs, pair_list, split_metrics
from reward.pairs import LoadedPairs, PreferencePair
from reward.placement import choose_device
from reward.starting_model import continued_settings, has_heads
from reward.training_data import check_margins

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1


@dataclass(frozen=True)
class HeadTrainingReport:
    """The content of `training_metrics.json`."""

    format_version: int
    output_dir: str
    backbone: str
    settings: dict[str, Any]
    train: SplitMetrics
    heldout: SplitMetrics
    data: dict[str, dict[str, int]]
    """What max_length did to each split."""
    conversations: int
    """Different token rows; each was computed once."""
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
    _check(pair_list(train_pairs), pair_list(heldout_pairs), Path(backbone_dir), Path(output_dir), settings)
    goes_on = has_heads(backbone_dir) and not settings.new_heads
    model = _open_model(Path(backbone_dir), settings, goes_on)
    tau = model.settings.tau
    tokenizer = load_tokenizer(backbone_dir)
    encoder = PairEncoder(ConversationEncoder(tokenizer, model.settings, settings.max_length, model.vocabulary))
    train, train_pairs, train_counts = _encoded(encoder, train_pairs, settings)
    heldout, heldout_pairs, heldout_counts = _encoded(encoder, heldout_pairs, settings)
    rows, pair_N2 = different_rows([*train, *heldout])
    train_N2, heldout_N2 = pair_N2.split([len(train), len(heldout)])
    states = _states(model, backbone_dir, rows, settings.batch_tokens, HiddenStateCache(cache_dir), progress)
    heads = model.heads.cpu()
    fitting = time.perf_counter()
    fit_heads(heads, states, train_N2, pair_list(train_pairs), settings, tau, goes_on)
    head_seconds = time.perf_counter() - fitting
    score_N = pair_output(heads, states, train_N2, tau).score_N
    loss = float(loss_of_heads(score_N, pair_list(train_pairs), settings, tau).mean())
    if not math.isfinite(loss):
        raise RewardInputError(f"the loss ended at {loss}; lower learning_rate ({settings.learning_rate})")
    model.save_pretrained(output_dir, tokenizer)
    heldout_score_N, evaluation = _evaluated(heads, states, heldout_N2, heldout, settings, tau)
    correct = correct_pairs(pair_list(heldout_pairs), heldout_score_N)
    report = HeadTrainingReport(
        format_version=FORMAT_VERSION,
        output_dir=str(output_dir),
        backbone=str(backbone_dir),
        settings=dataclasses.asdict(settings) | model.settings.to_config(),
        train=split_metrics(train_pairs, score_N),
        heldout=split_metrics(heldout_pairs, heldout_score_N),
        data={"train": train_counts, "heldout": heldout_counts},
        conversations=len(rows),
        loss=loss,
        seconds=time.perf_counter() - started,
        head_seconds=head_seconds,
        heldout_correct=[{"group": one.pair.group, "correct": c} for one, c in zip(heldout, correct, strict=True)],
    )
    write_object(Path(output_dir) / METRICS_FILE, _as_json(report, evaluation))
    return report


def _encoded(
    encoder: PairEncoder, pairs: Pairs, settings: HeadTrainingSettings
) -> tuple[list[EncodedPair], Pairs, dict[str, int]]:
    """The pairs that max_length leaves, encoded and as they were given, and what it did."""
    listed = pair_list(pairs)
    found: list[EncodedPair] = []
    counts = EncodingCounts(0, 0, 0, 0)
    if listed:
        found, counts = encode_all(encoder, listed, settings.cut_pairs)
    kept = tuple(one.pair for one in found)
    told = {"truncated_rows": counts.truncated_rows, "alike_when_cut": counts.alike}
    told |= {"answer_cut_away": counts.no_answer}
    return found, replace(pairs, pairs=kept) if isinstance(pairs, LoadedPairs) else kept, {"used": len(kept)} | told


def _evaluated(
    heads: PreferenceHeads,
    states: RowStates,
    pair_N2: Tensor,
    heldout: Sequence[EncodedPair],
    settings: HeadTrainingSettings,
    tau: float,
) -> tuple[Tensor, dict[str, Any]]:
    """Score_N of the held-out pairs, and what a whole training would tell of them."""
    if not heldout:
        return torch.zeros(0), {}
    pairs = [one.pair for one in heldout]
    output = pair_output(heads, states, pair_N2, tau)
    value_N6 = pair_values(output, heldout, loss_of_heads(output.score_N, pairs, settings, tau))
    return output.score_N, reported(evaluation_metrics(heldout, value_N6, tau), pairs)


def _as_json(report: HeadTrainingReport, evaluation: dict[str, Any]) -> dict[str, Any]:
    """The report, and beside its held-out numbers what an evaluation of a whole training tells."""
    values = dataclasses.asdict(report)
    return values | {"heldout": evaluation | values["heldout"]}


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
    check_margins(settings, train)
    soft = [place for place, pair in enumerate(train) if pair.target_prob != 1.0]
    if settings.loss == "margin" and soft:
        raise RewardInputError(
            f"training pair {soft[0] + 1} has target_prob {train[soft[0]].target_prob}, and a margin loss knows no "
            "soft labels; choose another loss, or leave target_prob out"
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


def different_rows(pairs: Sequence[EncodedPair]) -> tuple[list[EncodedConversation], Tensor]:
    """The different rows, in an order that does not depend on the pairs', and pair_N2."""
    keys = [(end, *ids) for pair in pairs for ids, end in zip(pair.rows, pair.prompt_ends, strict=True)]
    # Sorted, the rows of the same conversations are the same file in the cache whatever the pairs' order.
    place = {key: number for number, key in enumerate(sorted(set(keys)))}
    rows = [EncodedConversation(list(ids), end, 0, False, True) for end, *ids in place]
    return rows, torch.tensor([place[key] for key in keys]).reshape(-1, 2)
