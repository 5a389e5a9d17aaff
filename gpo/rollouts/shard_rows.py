"""From sampled answers and what a preference source read of them to rollout rows with scores and targets.

No I/O. Shapes: K samples of a prompt, M baseline answers to it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpo.config import BaselineConfig, TargetConfig
from gpo.rollouts.baselines import column_weights, includes_own
from gpo.targets import preference_targets
from rollout.degenerate import degenerate_kinds
from rollout.records import SAMPLED_FIELDS, RolloutRow, SampledPrompt

if TYPE_CHECKING:
    from reward.source import ReadGroup

_same_weights = lru_cache(column_weights)
"""Nearly all prompts of a run have the same."""


@dataclass(frozen=True, slots=True)
class BaselineGroup:
    """Answers to one prompt by one older policy, or of the data set, as the source read them."""

    version: str
    weight: float
    group: "ReadGroup"


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """The table of one prompt, its columns' weights and names."""

    sample: SampledPrompt
    read: "ReadGroup"
    table_KM: Tensor
    weight_M: Tensor
    baseline_ids: list[str]


def scored_prompt(
    sample: SampledPrompt,
    read: "ReadGroup",
    tables: Sequence[Tensor],
    others: Sequence[BaselineGroup],
    baseline: BaselineConfig,
) -> ScoredPrompt:
    """Join the tables of a prompt: against its own samples, where the kind says so, and against those of others."""
    own = includes_own(baseline)
    samples = len(sample.completion)
    counts = [len(other.group.group.answers) for other in others]
    ids = [f"{sample.prompt_id}/{k}" for k in range(samples)] if own else []
    for other, count in zip(others, counts, strict=True):
        ids += [f"{other.version}:{sample.prompt_id}/{m}" for m in range(count)]
    return ScoredPrompt(
        sample=sample,
        read=read,
        table_KM=tables[0] if len(tables) == 1 else torch.cat(list(tables), dim=1),
        weight_M=_same_weights(samples, tuple(counts), tuple(other.weight for other in others), own),
        baseline_ids=ids,
    )


def rows_with_targets(
    scored: Sequence[ScoredPrompt],
    *,
    tau: float,
    target: TargetConfig,
    baseline: BaselineConfig,
    leave_out: Sequence[str],
) -> list[RolloutRow]:
    """Rows in order; tables of one shape and weights are computed together."""
    alike: dict[tuple[int, tuple[float, ...]], list[int]] = defaultdict(list)
    for index, prompt in enumerate(scored):
        alike[prompt.table_KM.shape[0], tuple(prompt.weight_M.tolist())].append(index)
    rows: dict[int, RolloutRow] = {}
    for chosen in alike.values():
        weight_M = scored[chosen[0]].weight_M
        table_BKM = torch.stack([scored[index].table_KM for index in chosen])
        target_BK = preference_targets(
            table_BKM,
            method=target.method,
            tau=tau,
            beta=target.beta,
            clamp=target.clamp,
            # The plain mean of the paper takes no weights; `exclude_self` needs the square table.
            weight_M=None if baseline.kind == "self" else weight_M,
            exclude_self=target.exclude_self,
            log_z=target.log_z_for(baseline.kind),
        )
        score_BK = (table_BKM.double() * weight_M).sum(-1)
        numbers = zip(score_BK.tolist(), target_BK.tolist(), table_BKM.tolist(), strict=True)
        for index, (score_K, target_K, table_KM) in zip(chosen, numbers, strict=True):
            rows[index] = _row(scored[index], score_K, target_K, table_KM, baseline, leave_out)
    return [rows[index] for index in range(len(scored))]


def _row(
    prompt: ScoredPrompt,
    score_K: list[float],
    target_K: list[float],
    table_KM: list[list[float]],
    baseline: BaselineConfig,
    leave_out: Sequence[str],
) -> RolloutRow:
    sample, read = prompt.sample, prompt.read
    kinds = degenerate_kinds(sample.completion, sample.completion_ids) if leave_out else [""] * len(score_K)
    return RolloutRow(
        **{name: getattr(sample, name) for name in SAMPLED_FIELDS},
        embedding=None if read.emb_KD is None else read.emb_KD.tolist(),
        gate=None if read.gate_L is None else read.gate_L.tolist(),
        score=score_K,
        target=target_K,
        table=table_KM,
        baseline_kind=baseline.kind,
        baseline_ids=prompt.baseline_ids,
        baseline_weight=prompt.weight_M.tolist(),
        left_out=[kind if kind in leave_out else "" for kind in kinds],
    )
