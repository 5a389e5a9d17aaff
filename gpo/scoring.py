"""The actor that scores: it holds the preference sources, turns sampled answers into rows with targets, writes shards.

Samples come straight from a sampler through the object store and leave as a file; the driver sees a summary. The same
actor judges held-out answers, because it has the models.
"""

import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpo.config import PreferenceConfig, TargetConfig
from gpo.cpu import use_threads
from gpo.evaluation.winrate import cyclic_share
from gpo.files import write_json
from gpo.logs import log_to_file
from rollout.records import RolloutRow, SampledPrompt, read_shard, write_shard

if TYPE_CHECKING:
    from reward.source import AnswerGroup, PreferenceSource, ReadGroup

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What the driver learns of a finished shard."""

    prompts: int
    answers: int
    tokens: int
    smallest_target: float
    largest_target: float
    cyclic_share: float | None
    seconds: float


class ShardScorer:
    """Preference sources of a run, each opened when first needed."""

    def __init__(self, preference: dict[str, Any], target: dict[str, Any], logs: str, threads: int) -> None:
        log_to_file(Path(logs), f"scorer-{os.getpid()}")
        use_threads(threads)
        self._preference = PreferenceConfig.model_validate(preference)
        self._target = TargetConfig.model_validate(target)
        self._sources: dict[str, PreferenceSource] = {}
        self._heldout: dict[tuple[str, str], list[ReadGroup]] = {}

    def source(self, name: str) -> "PreferenceSource":
        """The opened source of that name in `preference.sources`."""
        if name not in self._sources:
            from reward.source import open_source

            self._sources[name] = open_source(
                self._preference.sources[name],
                max_length=self._preference.max_length,
                batch_tokens=self._preference.batch_tokens,
                tau=self._target.tau if name == self._preference.train_on else None,
            )
        return self._sources[name]

    def score_shard(self, samples: list[SampledPrompt], path: str) -> ShardSummary:
        """Score each prompt's K answers against themselves, compute targets, write the shard whole."""
        started = time.perf_counter()
        source = self.source(self._preference.train_on)
        read = source.read([answer_group(sample) for sample in samples])
        rows = [self._row(sample, group, source) for sample, group in zip(samples, read, strict=True)]
        write_shard(Path(path), rows)
        return summarise(rows, time.perf_counter() - started)

    def _row(self, sample: SampledPrompt, group: "ReadGroup", source: "PreferenceSource") -> RolloutRow:
        from gpo.targets import preference_targets

        table_KM = source.compare(group)
        target_K = preference_targets(
            table_KM,
            method=self._target.method,
            tau=source.tau,
            beta=self._target.beta,
            clamp=self._target.clamp,
            exclude_self=self._target.exclude_self,
            log_z=self._target.log_z,
        )
        return RolloutRow(
            **asdict(sample),
            embedding=None if group.emb_KD is None else group.emb_KD.tolist(),
            score=table_KM.mean(-1).tolist(),
            target=target_K.tolist(),
            gate=None if group.gate_L is None else group.gate_L.tolist(),
            table=table_KM.tolist(),
            baseline_kind="self",
            baseline_ids=[f"{sample.prompt_id}/{k}" for k in range(len(sample.completion))],
        )

    def keep_answers(self, samples: list[SampledPrompt], path: str) -> int:
        """Write held-out answers whole; returns how many there are."""
        write_json(Path(path), {"format_version": 1, "prompts": [asdict(sample) for sample in samples]})
        return sum(len(sample.completion) for sample in samples)

    def _read(self, judge: str, path: str) -> "list[ReadGroup]":
        """Held-out answers as a judge reads them; the files never change, so each is read once."""
        if (judge, path) not in self._heldout:
            groups = [answer_group(sample) for sample in read_answers(path)]
            self._heldout[judge, path] = self.source(judge).read(groups)
        return self._heldout[judge, path]

    def judge(self, judge: str, candidate: str, opponents: dict[str, str]) -> "Judgement":
        """Held-out answers of a file against those of other files; each answer is read once."""
        source = self.source(judge)
        own = self._read(judge, candidate)
        against = {name: self._read(judge, path) for name, path in opponents.items()}
        return Judgement(
            probabilities={
                name: [_probability(source, one, other) for one, other in zip(own, read, strict=True)]
                for name, read in against.items()
            },
            tables=[source.compare(group).double().numpy() for group in own],
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge makes of one checkpoint's held-out answers; B prompts, K answers, M answers of the opponent."""

    probabilities: dict[str, list[np.ndarray]]
    """For each opponent: [B] arrays [K, M], the probability that the candidate's answer is preferred."""
    tables: list[np.ndarray]
    """[B] arrays [K, K] of raw scores among the candidate's own answers."""


def read_answers(path: str) -> list[SampledPrompt]:
    """Held-out answers as `keep_answers` wrote them."""
    return [SampledPrompt(**values) for values in json.loads(Path(path).read_text(encoding="utf-8"))["prompts"]]


def answer_group(sample: SampledPrompt) -> "AnswerGroup":
    """Raw messages and answers, for a source to render with its own template."""
    from reward.source import Answer, AnswerGroup

    answers = [
        Answer(text=text, finished=reason == "stop")
        for text, reason in zip(sample.completion, sample.finish_reason, strict=True)
    ]
    return AnswerGroup(messages=sample.prompt, answers=answers)


def _probability(source: "PreferenceSource", own: "ReadGroup", other: "ReadGroup") -> np.ndarray:
    from reward.preference import preference_probability

    table_KM = source.compare(own, other)
    return preference_probability(table_KM, source.tau).double().numpy()


def summarise(rows: list[RolloutRow], seconds: float) -> ShardSummary:
    """Counts and ranges of a shard."""
    targets = [target for row in rows for target in row.target]
    return ShardSummary(
        prompts=len(rows),
        answers=len(targets),
        tokens=sum(len(ids) for row in rows for ids in row.completion_ids),
        smallest_target=min(targets),
        largest_target=max(targets),
        cyclic_share=cyclic_share([np.array(row.table) for row in rows]),
        seconds=seconds,
    )


def summarise_file(path: Path) -> ShardSummary:
    """Summary of a shard that an earlier start finished."""
    return summarise(read_shard(path), 0.0)
