"""What a judge of held-out answers looks at, and what it keeps.

Run: python -m pytest tests/gpo/evaluation/test_heldout_judge.py
"""

from pathlib import Path
from typing import Any

import torch

from gpo.evaluation.heldout_judge import HeldoutJudge, write_answers
from reward.source import AnswerGroup, ReadGroup
from rollout.records import SampledPrompt


class LongerIsBetter:
    """A source that keeps what it was asked to read."""

    tau = 1.0

    def __init__(self) -> None:
        self.read_texts: list[str] = []

    def read(self, groups: list[AnswerGroup]) -> list[ReadGroup]:
        self.read_texts += [answer.text for group in groups for answer in group.answers]
        return [ReadGroup(group, None, None) for group in groups]

    def compare(self, group: ReadGroup, other: ReadGroup | None = None) -> torch.Tensor:
        sizes_K, sizes_M = (
            torch.tensor([float(len(answer.text)) for answer in one.group.answers]) for one in (group, other or group)
        )
        return sizes_K[:, None] - sizes_M

    def tables(self, groups: Any, others: Any = None) -> Any:
        raise NotImplementedError


def answers(folder: Path, text: str) -> str:
    path = str(folder / f"{text}.json")
    sample = SampledPrompt(
        prompt_id="p",
        prompt=[{"role": "user", "content": "?"}],
        prompt_ids=[1],
        seed=0,
        weight_version="start",
        completion=[text],
        completion_ids=[[1]],
        finish_reason=["stop"],
    )
    write_answers(path, [sample])
    return path


def test_each_judgement_reads_new_answers_only_and_forgets_those_that_are_no_longer_asked_for(tmp_path: Path) -> None:
    source = LongerIsBetter()
    judge = HeldoutJudge(lambda: source)
    start, one, two, three = (answers(tmp_path, text) for text in ("0", "1a", "2ab", "3abc"))
    judge.judge(one, {"start": start, "previous": start})
    judged = judge.judge(two, {"start": start, "previous": one})
    assert sorted(source.read_texts) == ["0", "1a", "2ab"]
    assert judged.probabilities["start"][0].item() > judged.probabilities["previous"][0].item() > 0.5
    judge.judge(three, {"start": start, "previous": two})
    judge.judge(three, {"start": start, "previous": one})
    assert sorted(source.read_texts) == ["0", "1a", "1a", "2ab", "3abc"]
