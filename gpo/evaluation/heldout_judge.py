"""Held-out answers in a file, and what a judge makes of one checkpoint's against another's."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpo.errors import StageError
from gpo.files import read_json, write_json
from rollout.records import SampledPrompt

if TYPE_CHECKING:
    from reward.source import AnswerGroup, PreferenceSource, ReadGroup


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge makes of one checkpoint's held-out answers; B prompts, K answers, M answers of the opponent."""

    probabilities: dict[str, list[np.ndarray]]
    """For each opponent: [B] arrays [K, M], the probability that the candidate's answer is preferred."""
    tables: list[np.ndarray]
    """[B] arrays [K, K] of raw scores among the candidate's own answers."""


class HeldoutJudge:
    """A preference source that compares files of held-out answers, which never change.

    What a judgement read is kept for the next one, where the candidate is an opponent and the start is one again;
    older files are forgotten. `source` is asked for each time: between two judgements it may give its memory to others.
    """

    def __init__(self, source: "Callable[[], PreferenceSource]") -> None:
        self._source = source
        self._read: dict[str, list[ReadGroup]] = {}

    def judge(self, candidate: str, opponents: dict[str, str]) -> Judgement:
        """The answers of a file against those of other files (name -> path) to the same prompts."""
        source = self._source()
        self._read = {path: self._answers(path) for path in dict.fromkeys((candidate, *opponents.values()))}
        own = self._read[candidate]
        against = {name: self._read[path] for name, path in opponents.items()}
        return Judgement(
            probabilities={
                name: [_probability(source, one, other) for one, other in zip(own, read, strict=True)]
                for name, read in against.items()
            },
            tables=[source.compare(group).double().numpy() for group in own],
        )

    def _answers(self, path: str) -> "list[ReadGroup]":
        if path in self._read:
            return self._read[path]
        return self._source().read([answer_group(sample) for sample in read_answers(path)])


def _probability(source: "PreferenceSource", own: "ReadGroup", other: "ReadGroup") -> np.ndarray:
    from reward.preference import preference_probability

    table_KM = source.compare(own, other)
    return preference_probability(table_KM, source.tau).double().numpy()


def write_answers(path: str, samples: list[SampledPrompt]) -> int:
    """Write held-out answers whole; returns how many there are."""
    write_json(Path(path), {"format_version": 1, "prompts": [asdict(sample) for sample in samples]})
    return sum(len(sample.completion) for sample in samples)


def read_answers(path: str) -> list[SampledPrompt]:
    """Held-out answers as `write_answers` wrote them; raises StageError naming a file that is damaged."""
    found = read_json(Path(path))
    try:
        return [SampledPrompt(**values) for values in found["prompts"]]
    except (KeyError, TypeError) as error:
        raise StageError(f"{path} does not hold held-out answers ({error}); put a copy of it in its place") from None


def answer_group(sample: SampledPrompt) -> "AnswerGroup":
    """Raw messages and answers, for a source to render with its own template."""
    from reward.source import Answer, AnswerGroup

    answers = [
        Answer(text=text, finished=reason == "stop")
        for text, reason in zip(sample.completion, sample.finish_reason, strict=True)
    ]
    return AnswerGroup(messages=sample.prompt, answers=answers)
