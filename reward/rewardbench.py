"""RewardBench's subsets, sections and weights, and where its pairs come from.
What it is: pure sums over per-pair results, with the published constants, quirks included; rows of the benchmark's
data, of LLMBar or of any pair file. What it is not: it scores nothing (`reward.bench`).

The quirks that are kept, because numbers are compared with them: math-prm counts as 984 pairs though it has 447 (so
that mathematics weighs as much as code), and the constants of xstest's two subsets are the wrong way round (250 and
154; the data has 154 and 250). Accuracies of subsets are of the pairs that are there.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reward.errors import RewardInputError
from reward.pair_sources import PairSource, file_rows
from reward.pairs import PreferencePair, pair_of_row

logger = logging.getLogger(__name__)

SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 250,
        "xstest-should-respond": 154,
        "donotanswer": 136,
    },
    "Reasoning": {"math-prm": 984, **{f"hep-{name}": 164 for name in ("cpp", "go", "java", "js", "python", "rust")}},
}
"""Section -> subset -> the number that weighs it."""
_LLMBAR = {
    "Natural": "llmbar-natural",
    "Adversarial_Neighbor": "llmbar-adver-neighbor",
    "Adversarial_GPTInst": "llmbar-adver-GPTInst",
    "Adversarial_GPTOut": "llmbar-adver-GPTOut",
    "Adversarial_Manual": "llmbar-adver-manual",
}


@dataclass(frozen=True)
class BenchPair:
    """One comparison of the benchmark."""

    id: str
    subset: str
    pair: PreferencePair


def section_scores(accuracy: Mapping[str, float]) -> dict[str, float]:
    """Accuracy of each section that has a subset, from those of subsets; `Average` only where all four are there.

    A section is the mean of its subsets weighed by SECTIONS; the average counts the sections alike.
    """
    found = {}
    for section, weights in SECTIONS.items():
        here = [name for name in weights if name in accuracy]
        if here:
            found[section] = sum(accuracy[name] * weights[name] for name in here) / sum(weights[name] for name in here)
    if len(found) == len(SECTIONS):
        found["Average"] = sum(found.values()) / len(SECTIONS)
    return found


def missing_subsets(names: Sequence[str]) -> list[str]:
    """Subsets of sections that are begun but not whole, so that a reader knows the score is of a part."""
    begun = [weights for weights in SECTIONS.values() if set(weights) & set(names)]
    return [name for weights in begun for name in weights if name not in names]


def read_bench(path: str) -> list[BenchPair]:
    """Every pair of a file, a folder or hub:NAME[:SPLIT]; raises RewardInputError that names the row."""
    pairs = [_bench_pair(row, where, default) for default, where, row in _named_rows(path)]
    decided = [one for one in pairs if one.pair.label]
    if len(decided) < len(pairs):
        logger.warning(
            "%s: %d pairs with a target_prob of one half are left out: neither answer is the better one",
            path,
            len(pairs) - len(decided),
        )
    if not decided:
        raise RewardInputError(f"{path}: no pairs in it; expected RewardBench rows, LLMBar or preference pairs")
    return decided


def _named_rows(path: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(name of a subset for rows without one, where, row)."""
    folder = Path(path)
    files = sorted(folder.iterdir()) if not path.startswith("hub:") and folder.is_dir() else []
    for file in files:
        if file.suffix in (".json", ".jsonl", ".parquet"):
            yield from ((file.stem, where, row) for where, row in file_rows(str(file)))
    if not files:
        name = PairSource(path=path).label
        yield from ((name, where, row) for where, row in file_rows(path))


def _bench_pair(row: Mapping[str, Any], where: str, default: str) -> BenchPair:
    subset = str(row.get("subset") or _LLMBAR.get(default, default))
    name = str(row.get("id") if row.get("id") is not None else where.rpartition(" ")[2])
    if row.get("output_1") is not None:
        return BenchPair(name, subset, _llmbar_pair(row, where))
    if row.get("prompt") is not None and row.get("chosen") is not None and not _is_whole(row["chosen"]):
        return BenchPair(name, subset, _prompt_pair(row, where))
    pair = pair_of_row(row, where)
    if pair.label < 0:
        # Labelled the other way round: which answer is better is what is asked here.
        pair = replace(pair, chosen=pair.rejected, rejected=pair.chosen, target_prob=1 - pair.target_prob)
    return BenchPair(name, subset, pair)


def _llmbar_pair(row: Mapping[str, Any], where: str) -> PreferencePair:
    label = row.get("label")
    if label not in (1, 2):
        raise RewardInputError(f"{where}: label is {label!r}, expected 1 or 2, the better output")
    better, worse = ("output_1", "output_2") if label == 1 else ("output_2", "output_1")
    return pair_of_row({"instruction": row.get("input"), "chosen": row[better], "rejected": row.get(worse)}, where)


def _prompt_pair(row: Mapping[str, Any], where: str) -> PreferencePair:
    """RewardBench's form: a prompt, or the turns of one, and two texts (or lists of one message)."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, list) and all(isinstance(turn, str) for turn in prompt):
        roles = ("user", "assistant")
        messages = [{"role": roles[place % 2], "content": turn} for place, turn in enumerate(prompt)]
    else:
        messages = prompt
    talks = {side: _talk(messages, row.get(side), f"{where}: {side}") for side in ("chosen", "rejected")}
    return pair_of_row(talks, where)


def _is_whole(answer: Any) -> bool:
    """Whether it is a conversation with its prompt, as in preference pairs that tell the prompt once more."""
    return isinstance(answer, list) and len(answer) > 1


def _talk(messages: Any, answer: Any, what: str) -> list[Any]:
    text = _single_message(answer) if isinstance(answer, list) else answer
    if not isinstance(text, str) or not isinstance(messages, list):
        raise RewardInputError(f"{what} is {answer!r:.60}, expected a text next to `prompt`")
    return [*messages, {"role": "assistant", "content": text}]


def _single_message(answer: list[Any]) -> Any:
    return answer[0].get("content") if len(answer) == 1 and isinstance(answer[0], dict) else None
