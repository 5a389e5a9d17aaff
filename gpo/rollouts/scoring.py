"""The actor that scores: it holds the preference sources, turns sampled answers into rows with targets, writes shards.

Samples come straight from a sampler through the object store and leave as a file; the driver sees a summary. The same
actor judges held-out answers, because it has the models.
"""

import logging
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpo.config import RunConfig
from gpo.cpu import keep_from_collections, prepare_process
from gpo.evaluation.heldout_judge import HeldoutJudge, Judgement, answer_group, write_answers
from gpo.logs import log_to_file
from gpo.modelfiles import longest_of_source
from gpo.rollouts.embedding_cache import EmbeddingCache
from gpo.rollouts.summary import ShardSummary, summarise, summarise_file
from rollout.cores import claim_cores
from rollout.engine_settings import cuda_devices_present
from rollout.records import (
    SAMPLED_FIELDS,
    BaselineRow,
    RolloutRow,
    SampledPrompt,
    read_baseline,
    write_baseline,
    write_shard,
)
from rollout.weights import content_hash

if TYPE_CHECKING:
    from gpo.rollouts.shard_rows import BaselineGroup
    from reward.source import PreferenceSource, ReadGroup

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BaselinePart:
    """A file of baseline answers to the prompts of a shard, and its share in the baseline."""

    path: str
    weight: float


class ShardScorer:
    """Preference sources of a run, each opened when first needed."""

    def __init__(self, config: dict[str, Any], logs: str, threads: int) -> None:
        log_to_file(Path(logs), f"scorer-{os.getpid()}")
        self._began = time.time()
        """What lies where a shard is to go and is older, on a node's own disk, is left over from another run."""
        self._config = RunConfig.model_validate(config)
        if self._config.cluster.shape == "split" and not cuda_devices_present():
            claim_cores(threads)  # Beside an engine at work, whose threads bear no company on its cores.
        prepare_process(threads)
        self._preference = self._config.preference
        self._sources: dict[str, PreferenceSource] = {}
        self._judges: dict[str, HeldoutJudge] = {}
        self._cache: EmbeddingCache | None = None
        self._fingerprint: str | None = None

    def source(self, name: str) -> "PreferenceSource":
        """The opened source of that name in `preference.sources`."""
        if name not in self._sources:
            from reward.source import open_source

            spec, longest = self._preference.sources[name], self._preference.max_length
            self._sources[name] = open_source(
                spec,
                max_length=longest_of_source(spec, longest) or longest,
                batch_tokens=self._preference.batch_tokens,
                tau=self._config.target.tau if name == self._preference.train_on else None,
            )
            keep_from_collections()
        return self._sources[name]

    def rest(self) -> None:
        """Free the GPU for others: the models are forgotten, and opened again when next needed."""
        if not cuda_devices_present():
            return
        import gc

        import torch

        self._sources.clear()
        gc.unfreeze()  # Models hold each other in circles, which only a collection that looks at them frees.
        gc.collect()
        torch.cuda.empty_cache()

    def score_shard(self, samples: list[SampledPrompt], path: str, parts: list[BaselinePart]) -> ShardSummary:
        """Score each prompt's K answers against the baseline, compute targets, write the shard whole.

        Where a process that was given up as lost wrote it meanwhile, its rows are the shard.
        """
        started = time.perf_counter()
        rows = self._rows(samples, parts)
        if not write_shard(Path(path), rows, since=self._began):
            return summarise_file(Path(path))
        return summarise(rows, time.perf_counter() - started)

    def try_to_score(self, samples: list[SampledPrompt], parts: list[BaselinePart]) -> None:
        """Score and forget: does it end this process?"""
        self._rows(samples, parts)

    def _rows(self, samples: list[SampledPrompt], parts: list[BaselinePart]) -> list[RolloutRow]:
        from gpo.rollouts.baselines import includes_own
        from gpo.rollouts.shard_rows import rows_with_targets, scored_prompt

        source = self.source(self._preference.train_on)
        read = source.read([answer_group(sample) for sample in samples])
        others = [self._baseline_groups(part, samples, source) for part in parts]
        baseline = self._config.baseline

        own = [source.tables(read)] if includes_own(baseline) else []
        against = [source.tables(read, [one.group for one in groups]) for groups in others]
        scored = [
            scored_prompt(
                samples[index],
                read[index],
                [tables[index] for tables in [*own, *against]],
                [groups[index] for groups in others],
                baseline,
            )
            for index in range(len(samples))
        ]
        target = self._config.target
        if self._config.train.standardise is not None:
            # The trainer scales the targets of all shards together and clamps behind that what it trains on.
            target = target.model_copy(update={"clamp": None})
        return rows_with_targets(
            scored,
            tau=source.tau,
            target=target,
            baseline=baseline,
            leave_out=self._config.rollout.leave_out,
        )

    def _baseline_groups(
        self, part: BaselinePart, samples: list[SampledPrompt], source: "PreferenceSource"
    ) -> "list[BaselineGroup]":
        """The baseline answers to each sample's prompt, with the embeddings that the file holds."""
        from gpo.rollouts.shard_rows import BaselineGroup

        rows = {row.prompt_id: row for row in read_baseline(Path(part.path))}
        return [
            BaselineGroup(row.weight_version, part.weight, self._read_group(row, source))
            for row in (rows[sample.prompt_id] for sample in samples)
        ]

    def _read_group(self, row: BaselineRow, source: "PreferenceSource") -> "ReadGroup":
        import torch

        from reward.source import ReadGroup

        if row.embedding is None or row.source != self._source_id():
            return source.read([answer_group(row)])[0]
        gate_L = None if row.gate is None else torch.tensor(row.gate)
        return ReadGroup(answer_group(row), torch.tensor(row.embedding), gate_L)

    def try_to_embed(self, samples: list[SampledPrompt]) -> None:
        """Read and forget: does it end this process?"""
        self.source(self._preference.train_on).read([answer_group(sample) for sample in samples])

    def keep_baseline(self, samples: list[SampledPrompt], path: str) -> int:
        """Embed baseline answers and write them whole; returns how many there are.

        Embeddings of the data set's answers are taken from earlier iterations where they are the same.
        """
        known = self._embedded_before(samples, Path(path).parent)
        fresh = [index for index in range(len(samples)) if index not in known]
        read = self.source(self._preference.train_on).read([answer_group(samples[index]) for index in fresh])
        found = known | {index: (group.emb_KD, group.gate_L) for index, group in zip(fresh, read, strict=True)}
        rows = [
            BaselineRow(
                **{name: getattr(sample, name) for name in SAMPLED_FIELDS},
                embedding=None if found[index][0] is None else found[index][0].tolist(),
                gate=None if found[index][1] is None else found[index][1].tolist(),
                source=self._source_id(),
            )
            for index, sample in enumerate(samples)
        ]
        if known:
            logger.info("%d of %d groups of baseline answers were embedded before", len(known), len(samples))
        write_baseline(Path(path), rows, since=self._began)
        return sum(len(sample.completion) for sample in samples)

    def _embedded_before(self, samples: list[SampledPrompt], folder: Path) -> dict[int, tuple[Any, Any]]:
        """Place in `samples` -> embeddings and gate, for answers that an earlier iteration's `folder` holds."""
        if self._config.baseline.kind != "answers" or self._config.prompts.split == "disjoint":
            return {}  # Each iteration has other answers, or other prompts.
        if self._cache is None:
            self._cache = EmbeddingCache(self._source_id())
        self._cache.read_before(folder)
        found = (self._cache.find(sample.prompt_id, sample.completion) for sample in samples)
        return {index: one for index, one in enumerate(found) if one is not None}

    def _source_id(self) -> str:
        """Names the reward model by what is in it; a function by its place."""
        spec = self._preference.sources[self._preference.train_on]
        kind, _, place = spec.partition(":")
        if kind != "gpm":
            return spec
        if self._fingerprint is None:
            self._fingerprint = f"gpm:{content_hash(Path(place))[:16]}"
        return self._fingerprint

    def keep_answers(self, path: str, *parts: list[SampledPrompt]) -> int:
        """Write held-out answers whole; returns how many there are."""
        return write_answers(path, [sample for part in parts for sample in part])

    def judge(self, judge: str, candidate: str, opponents: dict[str, str]) -> Judgement:
        """Held-out answers of a file against those of other files."""
        if judge not in self._judges:
            self._judges[judge] = HeldoutJudge(partial(self.source, judge))
        return self._judges[judge].judge(candidate, opponents)
