"""Who judges a pair of answers in `gpo eval`: one interface, and the reward model behind it.

A judge is named `gpm:DIR` (a GPM or Bradley-Terry model, soft preference) or `openai:MODEL` (a chat model at any
OpenAI-compatible URL, `gpo.evaluation.openai_judge`). A judgement that could not be had is a verdict too, with its
reason, so that no row silently goes missing.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from gpo.evaluation.embedded import EmbeddingReader, ReaderSettings, win_probability
from gpo.evaluation.outputs import OutputFile


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of one pair."""

    preference: float | None
    """Chance in [0, 1] that the evaluated model's answer is better than the baseline's; None when it failed."""
    failure: str = ""
    raw: Any = None
    """What the judge answered, for the record."""
    seconds: float | None = None
    price: float | None = None
    """US dollars."""


class Judge(Protocol):
    """What `gpo eval` needs of a judge."""

    annotator: str
    """AlpacaEval's name for it."""

    def judge(self, baseline: OutputFile, outputs: OutputFile, pairs: list[tuple[int, int]]) -> list[Verdict]:
        """A verdict for each pair (row of baseline, row of outputs), in order."""
        ...

    def record(self) -> dict[str, Any]:
        """How the numbers were made: model, versions, templates, settings, costs."""
        ...


class GpmJudge:
    """A reward model: one embedding an answer, then products."""

    def __init__(self, settings: ReaderSettings, cache: Path) -> None:
        """Raises RewardInputError when the directory is no reward model."""
        self._settings = settings
        self._reader = EmbeddingReader(settings, cache)
        self._record: dict[str, Any] = {}
        self.annotator = f"gpm:{settings.model.resolve().name}"

    def judge(self, baseline: OutputFile, outputs: OutputFile, pairs: list[tuple[int, int]]) -> list[Verdict]:
        """Never fails for a single row: what a reward model can read at all, it scores."""
        started = time.monotonic()
        first, second = self._reader.read(baseline), self._reader.read(outputs)
        tau = self._reader.tau
        probabilities = win_probability(first, second, pairs, tau).tolist()
        seconds = (time.monotonic() - started) / len(pairs)
        settings = {
            key: str(value) if isinstance(value, Path) else value for key, value in asdict(self._settings).items()
        }
        self._record = {
            "kind": "gpm",
            **settings,
            "tau": tau,
            "made_from": {"baseline": self._reader.made_from(baseline), "outputs": self._reader.made_from(outputs)},
            "truncated": {"baseline": first.truncated, "outputs": second.truncated},
        }
        return [Verdict(preference=probability, seconds=seconds) for probability in probabilities]

    def record(self) -> dict[str, Any]:
        """Of the last judging."""
        return self._record
