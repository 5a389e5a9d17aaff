"""Cyclic preference data: plain n-cycles, win tables, and what a file given by the user holds.
What it is: preference pairs of one prompt (or several) with a name. What it is not: the builder from ratings
(`reward.cyclic_ratings`), and it trains nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward.cyclic_ratings import CycleRule, cycles_of_ratings
from reward.errors import RewardInputError
from reward.pairs import PreferencePair, read_pairs

_WORDS = ("amber", "birch", "copper", "dune", "ember", "fjord", "grove", "harbour", "iris", "jasper")
_PROMPT = "Name one."
_TYPE_PROMPT = "Choose a type for the fight."
_SHOWDOWN = {0: 1.0, 1: 2.0, 2: 0.5, 3: 0.0}
"""Codes of `damageTaken` -> factor of the damage."""


@dataclass(frozen=True)
class CyclicData:
    """A data set of the experiment."""

    name: str
    pairs: tuple[PreferencePair, ...]


def n_cycle(length: int) -> CyclicData:
    """Each answer beats the next, the last beats the first."""
    if not 3 <= length <= len(_WORDS):
        raise RewardInputError(f"a cycle of {length} answers; expected 3 to {len(_WORDS)}")
    words = _WORDS[:length]
    wins = [(word, words[(place + 1) % length]) for place, word in enumerate(words)]
    return CyclicData(f"{length}-cycle", wins_to_pairs(wins, _PROMPT))


def wins_to_pairs(wins: Sequence[tuple[str, str]], prompt: str) -> tuple[PreferencePair, ...]:
    """A pair for each (winner, loser)."""
    ask = {"role": "user", "content": prompt}
    talks = [[[ask, {"role": "assistant", "content": text}] for text in edge] for edge in wins]
    return tuple(PreferencePair(chosen, rejected) for chosen, rejected in talks)


def read_cyclic(path: Path, rule: CycleRule) -> CyclicData:
    """A win table, a type chart, ratings or preference pairs, told apart by what is in the file."""
    if path.suffix == ".json":
        try:
            value = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RewardInputError(f"{path}: cannot be read ({error}); expected a win table or pairs as JSON") from None
        if isinstance(value, dict) and "wins" in value:
            return CyclicData(path.stem, _win_table(path, value))
        if isinstance(value, dict) and any(_is_type(row) for row in value.values()):
            return CyclicData(path.stem, _type_chart(path, value))
    ratings = cycles_of_ratings(path, rule)
    return CyclicData(path.stem, ratings if ratings is not None else read_pairs(path).pairs)


def _win_table(path: Path, value: Mapping[str, Any]) -> tuple[PreferencePair, ...]:
    """{"prompt": text, "answers": {name: text}, "wins": [[winner, loser], …]}; answers and prompt may be left out."""
    answers = _answers(path, value.get("answers"))
    prompt = _PROMPT if value.get("prompt") in (None, "") else value["prompt"]
    if not isinstance(prompt, str):
        raise RewardInputError(f"{path}: prompt is {prompt!r:.60}, expected text")
    if not isinstance(value["wins"], list):
        raise RewardInputError(f"{path}: wins is {value['wins']!r:.60}, expected a list of [winner, loser]")
    wins = []
    for number, edge in enumerate(value["wins"], 1):
        named = isinstance(edge, list) and len(edge) == 2 and all(isinstance(name, str) for name in edge)
        if not named or edge[0] == edge[1]:
            raise RewardInputError(f"{path}, wins {number}: found {edge!r:.80}, expected [winner, loser], two names")
        unknown = [name for name in edge if answers and name not in answers]
        if unknown:
            raise RewardInputError(f"{path}, wins {number}: {unknown[0]!r} is not among the answers")
        wins.append((answers.get(edge[0], edge[0]), answers.get(edge[1], edge[1])))
    if not wins:
        raise RewardInputError(f"{path}: wins is empty, expected at least one [winner, loser]")
    return wins_to_pairs(wins, prompt)


def _answers(path: Path, given: Any) -> dict[str, str]:
    """Name -> text; empty where names are the answers themselves."""
    listed = dict(zip(given, given, strict=True)) if _texts(given) else {} if given is None else given
    if not isinstance(listed, dict) or not _texts(list(listed.values())):
        raise RewardInputError(f"{path}: answers is {given!r:.80}, expected texts by name, or a list of texts")
    return listed


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_type(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("damageTaken"), dict)


def _type_chart(path: Path, chart: Mapping[str, Any]) -> tuple[PreferencePair, ...]:
    for name, row in chart.items():
        if not _is_type(row):
            raise RewardInputError(f"{path}: {name} is {row!r:.60}, expected a type with `damageTaken`, as the others")
        for other, code in row["damageTaken"].items():
            if isinstance(code, bool) or code not in (*_SHOWDOWN, *map(str, _SHOWDOWN)):
                raise RewardInputError(f"{path}: {name}.damageTaken.{other} is {code!r:.60}, expected 0, 1, 2 or 3")
    wins = type_chart_wins(chart)
    if not wins:
        raise RewardInputError(f"{path}: no type of the chart beats another, expected one at least")
    return wins_to_pairs(wins, _TYPE_PROMPT)


def type_chart_wins(chart: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(winner, loser) of every two types of which one does more damage to the other than the other way round."""
    taken = {name: {other.lower(): code for other, code in row["damageTaken"].items()} for name, row in chart.items()}
    wins = []
    for one in sorted(taken):
        for other in sorted(taken):
            done, suffered = (_SHOWDOWN[int(taken[b].get(a, 0))] for a, b in ((one, other), (other, one)))
            if done > suffered:
                wins.append((one.capitalize(), other.capitalize()))
    return wins
