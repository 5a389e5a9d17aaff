"""Embeddings of answer files: each answer of a file is read once by a reward model, and kept on disk.

A file's embeddings depend on that file and the model alone, never on what it is compared with. So swapping two files
turns every preference into one minus itself, a tournament's numbers are those of its pairs, and a further checkpoint
costs one more file. Kept below the cache folder under a name made of all that decides them.

Shape suffixes: N answers of a file, D embedding width, L = D / 2 blocks.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpo.errors import StageError
from gpo.evaluation.folders import make_folder
from gpo.evaluation.outputs import OutputFile
from gpo.evaluation.row_numbers import named_rows
from gpo.logs import Progress
from gpo.modelfiles import longest_conversation
from reward.part_file import Line, PartFile
from reward.source_check import check_source

if TYPE_CHECKING:
    from torch import Tensor

    from reward.scorer import PreferenceScorer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderSettings:
    """All that, besides model and answers, decides the embeddings to the last bit."""

    model: Path
    system: str | None = None
    """Put before prompts without a system message."""
    backend: str = "auto"
    dtype: str = "auto"
    max_length: int | None = None
    """Tokens kept; None: 4096, or the model's context where that is shorter."""
    batch_rows: int = 64


@dataclass(frozen=True, slots=True)
class EmbeddedFile:
    """One row an answer, in the file's order; float64 values of float32 results."""

    v_ND: "Tensor"
    gate_NL: "Tensor | None"
    truncated: int
    """Answers that were longer than max_length."""


class EmbeddingReader:
    """Reads files with one reward model, which is opened when first needed."""

    def __init__(self, settings: ReaderSettings, cache: Path) -> None:
        """Raises RewardInputError when the directory is no reward model."""
        check_source(f"gpm:{settings.model}")
        self._settings = settings
        self._max_length = longest_conversation(settings.model, settings.max_length)
        self._folder = cache / "embeddings"
        self._scorer: PreferenceScorer | None = None
        self._of_model: dict[str, str] | None = None

    @property
    def tau(self) -> float:
        """Score units a log-odd, as saved with the model."""
        from transformers import AutoConfig

        from reward.heads import open_heads

        config = AutoConfig.from_pretrained(self._settings.model)
        return open_heads(self._settings.model, int(config.get_text_config().hidden_size))[1].tau

    def made_from(self, file: OutputFile) -> dict[str, str]:
        """All that decides a file's embeddings, by name; the model by its content."""
        from reward.batch import BatchSettings, made_from

        settings = self._settings
        if self._of_model is None:
            # Once for all files.
            chosen = BatchSettings(settings.backend, settings.dtype, self._max_length, settings.batch_rows)
            self._of_model = made_from(settings.model, file.path, chosen)
        return {**self._of_model, "data": file.sha256, "system": settings.system or ""}

    def read(self, file: OutputFile) -> EmbeddedFile:
        """Embeddings of a file, from disk where they are complete.

        Raises UserError when the cache folder cannot be made, StageError naming the rows whose embedding is not finite.
        """
        made_from = self.made_from(file)
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
        path = self._folder / f"{file.path.stem}-{key}.jsonl"
        if not path.is_file():
            make_folder("--cache", path.parent)
            self._embed(file, path, made_from)
        return _load(path)

    def _embed(self, file: OutputFile, path: Path, made_from: dict[str, str]) -> None:
        with PartFile(path, made_from) as part:
            done = sum(1 for _ in part.lines())
            if done:
                logger.info("%s: going on after %d answers of an earlier start", file.path.name, done)
            progress = Progress(f"{file.generator}: read by the GPM", len(file.rows), "answers")
            size = self._settings.batch_rows
            bad: list[int] = []
            # Rounding depends on what is computed together, so a chunk that was begun is computed whole again.
            for start in range(done - done % size, len(file.rows), size):
                lines = self._lines(file, start)
                bad += [number for number, line in enumerate(lines, start=start + 1) if not _is_finite(line)]
                # Behind a bad row nothing can be kept; the rest is read so that all bad ones are told at once.
                if not bad:
                    part.append(lines[max(done - start, 0) :])
                progress.update(min(start + size, len(file.rows)))
            if bad:
                raise StageError(
                    f"{file.path}, {named_rows(bad)}: {self._settings.model} gives an embedding that is not finite; "
                    "try --dtype float32, or another model. What was read before is kept"
                )
            part.finish()

    def _lines(self, file: OutputFile, start: int) -> list[Line]:
        rows = file.rows[start : start + self._settings.batch_rows]
        found = self._open().embed([row.conversation(self._settings.system) for row in rows])
        gates = [None] * len(rows) if found.gate_NL is None else found.gate_NL.tolist()
        return [
            {"v": v, "gate": gate, "truncated": truncated}
            for v, gate, truncated in zip(found.v_ND.tolist(), gates, found.truncated_N.tolist(), strict=True)
        ]

    def _open(self) -> "PreferenceScorer":
        if self._scorer is None:
            from gpo.cpu import prepare_process

            prepare_process(len(os.sched_getaffinity(0)))
            from reward.scorer import PreferenceScorer

            settings = self._settings
            self._scorer = PreferenceScorer.from_pretrained(
                settings.model, settings.backend, settings.dtype, self._max_length
            )
        return self._scorer


def _is_finite(line: Line) -> bool:
    return all(map(math.isfinite, [*line["v"], *(line["gate"] or [])]))


def _load(path: Path) -> EmbeddedFile:
    import torch

    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    v_ND = torch.tensor([line["v"] for line in lines], dtype=torch.float64)
    gated = lines[0]["gate"] is not None
    gate_NL = torch.tensor([line["gate"] for line in lines], dtype=torch.float64) if gated else None
    return EmbeddedFile(v_ND, gate_NL, sum(line["truncated"] for line in lines))


def win_probability(
    first: EmbeddedFile, second: EmbeddedFile, pairs: Sequence[tuple[int, int]], tau: float
) -> "Tensor":
    """Chance_N in float64 that the second file's answer is preferred, for pairs (row of first, row of second).

    Exactly skew: with the files swapped each score changes its sign and nothing else.
    """
    import torch

    from reward.preference import preference_probability, preference_score

    one_N, other_N = torch.tensor(pairs).unbind(-1)
    gate_NL = None
    if first.gate_NL is not None and second.gate_NL is not None:
        # The gate depends on the prompt alone, so the two agree but for rounding and truncation.
        gate_NL = (first.gate_NL[one_N] + second.gate_NL[other_N]) / 2
    score_N = preference_score(second.v_ND[other_N], first.v_ND[one_N], gate_NL)
    return preference_probability(score_N, tau)
