"""Who says which answer is better: one interface through which a run fills a table of preferences.
What it is: a reward model (`gpm:DIR`), a Python function (`python:FILE.py:FUNCTION`) or a judge at a URL
(`url:http://…`, in `reward.source_url`) behind `read`, which looks at every answer once, and `compare`, which
fills a table of what was read. What it is not: it makes no targets of the tables.

torch is imported where a table is filled and not before: command lines and oracles import this module too.
Shape suffixes: K answers, M answers of an opponent, D embedding width, L = D / 2 blocks.
"""

import importlib.util
import math
import numbers
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from reward.errors import RewardInputError
from reward.source_check import check_source, parse_function_spec

if TYPE_CHECKING:
    from torch import Tensor

    from reward.scorer import PreferenceScorer

Message = dict[str, str]

FUNCTION_TAU = 0.1
"""As of a GPM, so that a function's 1 is near certainty: sigmoid(1 / 0.1) = 0.99995."""


@dataclass(frozen=True)
class Answer:
    """One answer's text."""

    text: str
    finished: bool
    """It ended by itself and was not cut by the token limit."""


@dataclass(frozen=True)
class AnswerGroup:
    """Answers to one prompt."""

    messages: list[Message]
    answers: list[Answer]


@dataclass(frozen=True)
class ReadGroup:
    """What a source keeps of a group so that comparing needs no forward pass."""

    group: AnswerGroup
    emb_KD: "Tensor | None"
    """float32; None for a function."""
    gate_L: "Tensor | None"
    """float32; None without a gate."""


class PreferenceSource(Protocol):
    """Scores are raw and positive when the row's answer is preferred; score / tau are log-odds."""

    tau: float

    def read(self, groups: list[AnswerGroup]) -> list[ReadGroup]:
        """Each answer is looked at once, all groups together."""
        ...

    def compare(self, group: ReadGroup, other: ReadGroup | None = None) -> "Tensor":
        """Score_KM over another group's answers to the same prompt; None: score_KK. Skew, whichever comes first."""
        ...

    def tables(self, groups: list[ReadGroup], others: list[ReadGroup] | None = None) -> "list[Tensor]":
        """`compare` of many groups, each with the other at its place, in whatever way is fast."""
        ...


PreferFunction = Callable[[list[Message], Answer, Answer], float]


class ModelSource:
    """A reward model: one forward pass an answer, then products of embeddings."""

    def __init__(self, scorer: "PreferenceScorer") -> None:
        self.scorer = scorer
        self.tau = scorer.tau

    def read(self, groups: list[AnswerGroup]) -> list[ReadGroup]:
        if not groups:
            return []
        check_groups(groups)
        found = self.scorer.embed(
            [
                [*group.messages, {"role": "assistant", "content": answer.text}]
                for group in groups
                for answer in group.answers
            ]
        )
        counts = [len(group.answers) for group in groups]
        # The rows' gates agree unless truncation cut the prompt differently; the mean favours no answer.
        gates = [None] * len(groups) if found.gate_NL is None else _means(found.gate_NL, counts)
        return [
            ReadGroup(group, emb_KD, gate_L)
            for group, emb_KD, gate_L in zip(groups, found.v_ND.split(counts), gates, strict=True)
        ]

    def compare(self, group: ReadGroup, other: ReadGroup | None = None) -> "Tensor":
        from reward.preference import preference_table

        emb_KD, gate_L = _embeddings(group), group.gate_L
        if other is None:
            return preference_table(emb_KD, gate_L=gate_L)
        check_same_prompt(group, other)
        if gate_L is not None and other.gate_L is not None:
            gate_L = (gate_L + other.gate_L) / 2
        return preference_table(emb_KD, _embeddings(other), gate_L)

    def tables(self, groups: list[ReadGroup], others: list[ReadGroup] | None = None) -> "list[Tensor]":
        """One product for all groups of the same sizes; the same numbers as `compare`, up to rounding."""
        import torch

        from reward.preference import preference_table

        alike: dict[tuple[int, int], list[int]] = {}
        for index, group in enumerate(groups):
            other = group if others is None else others[index]
            check_same_prompt(group, other)
            alike.setdefault((len(group.group.answers), len(other.group.answers)), []).append(index)
        found: dict[int, Tensor] = {}
        for chosen in alike.values():
            emb_BKD = torch.stack([_embeddings(groups[index]) for index in chosen])
            gate_B1L = _stacked_gates([groups[index] for index in chosen])
            other_BMD = None
            if others is not None:
                other_BMD = torch.stack([_embeddings(others[index]) for index in chosen])
                other_gate_B1L = _stacked_gates([others[index] for index in chosen])
                if gate_B1L is not None and other_gate_B1L is not None:
                    gate_B1L = (gate_B1L + other_gate_B1L) / 2
            found.update(zip(chosen, preference_table(emb_BKD, other_BMD, gate_B1L), strict=True))
        return [found[index] for index in range(len(groups))]


class FunctionSource:
    """A Python function that says in [-1, 1] how much it prefers its first answer."""

    def __init__(self, prefer: PreferFunction, name: str, tau: float = FUNCTION_TAU) -> None:
        if not (tau > 0 and math.isfinite(tau)):
            raise RewardInputError(f"tau is {tau!r}, expected a finite number above 0")
        self.prefer = prefer
        self.name = name
        self.tau = tau

    def read(self, groups: list[AnswerGroup]) -> list[ReadGroup]:
        check_groups(groups)
        return [ReadGroup(group, None, None) for group in groups]

    def compare(self, group: ReadGroup, other: ReadGroup | None = None) -> "Tensor":
        import torch

        messages, answers = group.group.messages, group.group.answers
        if other is not None:
            check_same_prompt(group, other)
            # In both orders: a taste for whatever comes first would go straight into a policy's win rate.
            rows = [
                [self._score(messages, a, b) - self._score(messages, b, a) for b in other.group.answers]
                for a in answers
            ]
            return torch.tensor(rows) / 2
        table_KK = torch.zeros(len(answers), len(answers))
        for i, first in enumerate(answers):
            for j in range(i):
                # Asked once for both orders, so that the table is skew whatever the function does.
                score = self._score(messages, first, answers[j])
                table_KK[i, j], table_KK[j, i] = score, -score
        return table_KK

    def tables(self, groups: list[ReadGroup], others: list[ReadGroup] | None = None) -> "list[Tensor]":
        """One after the other."""
        if others is None:
            return [self.compare(group) for group in groups]
        return [self.compare(group, other) for group, other in zip(groups, others, strict=True)]

    def _score(self, messages: list[Message], a: Answer, b: Answer) -> float:
        score = self.prefer(messages, a, b)
        if isinstance(score, bool) or not isinstance(score, numbers.Real) or not -1 <= score <= 1:
            raise RewardInputError(
                f"{self.name} returned {score!r:.60} for the answers {a.text!r:.40} and {b.text!r:.40}, "
                "expected a number in [-1, 1], positive when the first is preferred"
            )
        return float(score)


def open_source(spec: str, *, max_length: int, batch_tokens: int, tau: float | None = None) -> PreferenceSource:
    """The source that `spec` names; `tau` overrides the one of the model, or of functions (0.1)."""
    check_source(spec)
    kind, _, rest = spec.partition(":")
    if kind == "python":
        prefer = _load_function(*parse_function_spec(rest))
        return FunctionSource(prefer, spec, FUNCTION_TAU if tau is None else tau)
    if kind == "url":
        from reward.source_url import UrlSource

        return UrlSource(rest, FUNCTION_TAU if tau is None else tau)
    from reward.scorer import PreferenceScorer

    policies: dict[str, Any] = {} if tau is None else {"tau": tau}
    # Not `auto`: a run's scorer shares its devices with the samplers' engines; a second vLLM would take their memory.
    scorer = PreferenceScorer.from_pretrained(
        rest, backend="transformers", max_length=max_length, tokens_per_batch=batch_tokens, **policies
    )
    return ModelSource(scorer)


def _load_function(file: Path, function: str) -> PreferFunction:
    spec = importlib.util.spec_from_file_location(f"preference_source_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise RewardInputError(f"{file} cannot be imported, expected a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses and pickle look their module up by name.
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # The user's own code may raise anything.
        raise RewardInputError(
            f"{file} cannot be imported ({type(error).__name__}: {error}), expected a function {function!r}"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise RewardInputError(f"{file}: {function} is {found!r:.60}, expected prefer(messages, a, b)")
    prefer: PreferFunction = found
    return prefer


def _means(rows_NL: "Tensor", counts: list[int]) -> "list[Tensor]":
    """Mean [L] of each run of rows; all runs in one go, as thousands of small means cost more than scoring."""
    import torch

    return list(torch.segment_reduce(rows_NL, "mean", lengths=torch.tensor(counts)))


def _embeddings(group: ReadGroup) -> "Tensor":
    if group.emb_KD is None:
        raise RewardInputError("the group has no embeddings, expected one that this source has read")
    return group.emb_KD


def _stacked_gates(groups: list[ReadGroup]) -> "Tensor | None":
    """Gate_B1L, which fits tables of every group; None where the model has none."""
    import torch

    gates = [group.gate_L for group in groups if group.gate_L is not None]
    return torch.stack(gates).unsqueeze(-2) if len(gates) == len(groups) else None


def check_groups(groups: list[AnswerGroup]) -> None:
    """Refuse a group without answers."""
    for number, group in enumerate(groups):
        if not group.answers:
            raise RewardInputError(f"group {number} has no answers, expected at least one")


def check_same_prompt(group: ReadGroup, other: ReadGroup) -> None:
    """Refuse to compare answers to different prompts."""
    if group.group.messages != other.group.messages:
        raise RewardInputError(
            f"answers to {group.group.messages!r:.80} are compared with answers to "
            f"{other.group.messages!r:.80}, expected the same prompt"
        )
