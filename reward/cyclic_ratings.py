"""Cycles from answers that were rated by several criteria, after the paper's rule (arXiv 2410.02197, appendix E).
What it is: for each prompt, runs of answers in which each beats the next by a criterion of its own and the last beats
the first. The paper leaves open which criterion judges which edge, how large a difference must be and how many cycles
of a prompt count; `CycleRule` names each of these choices. What it is not: it trains nothing.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward.errors import RewardInputError
from reward.pairs import PreferencePair, finite_number
from reward.row_files import read_rows

FORM = (
    '{"prompt": text, "responses": [{"text": text, "ratings": {criterion: number}}, …]}, or UltraFeedback\'s columns '
    "instruction and completions"
)


@dataclass(frozen=True, kw_only=True)
class CycleRule:
    """Every choice that the paper leaves open."""

    criteria: tuple[str, ...] = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    """Those that may judge, in the order in which edges take them; the paper drops one of four."""
    edges: str = "ordered"
    """ordered: edge k is judged by criterion k (again from the first after the last); any: by any of them."""
    distinct: bool = True
    """any: neighbouring edges are judged by different criteria, as in the paper's examples."""
    length: int = 3
    """Answers in a cycle."""
    least_difference: float = 1e-9
    """By how much the winner's rating must be higher."""
    per_prompt: int = 1
    """Cycles of one prompt that are kept, drawn at random."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.edges not in ("ordered", "any"):
            raise RewardInputError(f"edges is {self.edges!r}, expected ordered or any")
        if self.length < 3 or self.per_prompt < 1 or not self.criteria or self.least_difference <= 0:
            raise RewardInputError(
                f"length is {self.length}, per_prompt {self.per_prompt}, least_difference {self.least_difference} and "
                f"criteria {self.criteria}; expected at least 3, at least 1, above 0, and some"
            )


@dataclass(frozen=True)
class _Rated:
    text: str
    ratings: Mapping[str, float]


def cycles_of_ratings(path: Path, rule: CycleRule) -> tuple[PreferencePair, ...] | None:
    """Pairs of all cycles found, those of a cycle in one group; None when the file holds no ratings."""
    pairs: list[PreferencePair] = []
    draw = random.Random(rule.seed)
    for row in read_rows(path):
        if row.value is None or not _has_ratings(row.value):
            if row.number == 1 or row.value is None:
                return None
            raise RewardInputError(f"{path}, row {row.number}: no ratings in it; expected {FORM}")
        where = f"{path}, row {row.number}"
        prompt, answers = _prompt(row.value, where), [_rated(one, where) for one in _responses(row.value)]
        found = list(find_cycles(answers, rule))
        for number, cycle in enumerate(draw.sample(found, min(len(found), rule.per_prompt))):
            pairs += _pairs(prompt, cycle, f"{row.number}-{number}")
    if not pairs:
        raise RewardInputError(f"{path}: no cycle by criteria {', '.join(rule.criteria)}; try edges = any")
    return tuple(pairs)


def _prompt(row: Mapping[str, Any], where: str) -> str:
    found = row.get("prompt", row.get("instruction", ""))
    if not isinstance(found, str):
        raise RewardInputError(f"{where}: prompt is {found!r:.60}, expected text")
    return found


def _has_ratings(row: Mapping[str, Any]) -> bool:
    answers = _responses(row)
    return bool(answers) and isinstance(answers[0], dict) and "ratings" in answers[0]


def _responses(row: Mapping[str, Any]) -> list[Any]:
    """Rated answers in our form or, of UltraFeedback, in its own: `completions` with `response` and `annotations`."""
    if isinstance(row.get("responses"), list):
        return list(row["responses"])
    found = row.get("completions")
    return [_of_ultrafeedback(one) for one in found] if isinstance(found, list) else []


def _of_ultrafeedback(answer: Any) -> Any:
    notes = answer.get("annotations") if isinstance(answer, dict) else None
    if not isinstance(notes, dict):
        return answer
    said = {name: note["Rating"] for name, note in notes.items() if isinstance(note, dict) and "Rating" in note}
    # A criterion that was not rated says N/A.
    ratings = {name: float(text) for name, text in said.items() if str(text).replace(".", "", 1).isdecimal()}
    return {"text": answer.get("response"), "ratings": ratings}


def _rated(value: Any, where: str) -> _Rated:
    ratings = value.get("ratings") if isinstance(value, dict) else None
    if not isinstance(ratings, dict) or not isinstance(value.get("text"), str):
        raise RewardInputError(f"{where}: {value!r:.80} is no rated answer; expected {FORM}")
    numbers = {name: finite_number(rating) for name, rating in ratings.items()}
    wrong = [name for name, number in numbers.items() if number is None]
    if wrong:
        raise RewardInputError(f"{where}: rating {wrong[0]} is {ratings[wrong[0]]!r:.60}, expected a finite number")
    return _Rated(value["text"], {name: number for name, number in numbers.items() if number is not None})


def find_cycles(answers: Sequence[_Rated], rule: CycleRule) -> Iterator[tuple[_Rated, ...]]:
    """Every cycle once: as what it is, and not once for each answer to begin with."""
    for order in itertools.permutations(range(len(answers)), rule.length):
        cycle = tuple(answers[place] for place in order)
        if len({one.text for one in cycle}) < rule.length:
            continue
        turns = [order[turn:] + order[:turn] for turn in range(rule.length)]
        if rule.edges == "ordered":
            # Which edge takes the first criterion matters; the same cycle may come from several turns.
            earlier = any(turn < order and _holds([answers[place] for place in turn], rule) for turn in turns)
            if _holds(cycle, rule) and not earlier:
                yield cycle
        elif order == min(turns) and _holds(cycle, rule):
            yield cycle


def _holds(cycle: Sequence[_Rated], rule: CycleRule) -> bool:
    edges = list(zip(cycle, (*cycle[1:], cycle[0]), strict=True))
    if rule.edges == "ordered":
        return all(
            rule.criteria[number % len(rule.criteria)] in _winning(edge, rule) for number, edge in enumerate(edges)
        )
    choices = [_winning(edge, rule) for edge in edges]
    if not rule.distinct:
        return all(choices)
    return any(
        all(one != other for one, other in zip(picked, (*picked[1:], picked[0]), strict=True))
        for picked in itertools.product(*choices)
    )


def _winning(edge: tuple[_Rated, _Rated], rule: CycleRule) -> list[str]:
    """Criteria by which the first answer is better."""
    one, other = edge
    both = [name for name in rule.criteria if name in one.ratings and name in other.ratings]
    return [name for name in both if one.ratings[name] - other.ratings[name] >= rule.least_difference]


def _pairs(prompt: str, cycle: Sequence[_Rated], group: str) -> list[PreferencePair]:
    ask = {"role": "user", "content": prompt}
    talks = [[ask, {"role": "assistant", "content": one.text}] for one in cycle]
    return [
        PreferencePair(winner, loser, group=group) for winner, loser in zip(talks, (*talks[1:], talks[0]), strict=True)
    ]
