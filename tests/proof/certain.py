"""What is certainly wrong with a file that fuzzing damaged, by checks that share nothing with gpo's readers.

They say yes only where the verb that reads the file promises to refuse it; what is merely odd is not for them.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import yaml

RowCheck = Callable[[Any], bool]
"""Whether a row is certainly wrong."""


def _text(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _parsed(text: str) -> tuple[bool, Any]:
    try:
        return True, json.loads(text)
    except (ValueError, RecursionError):
        return False, None


def no_json(content: bytes) -> bool:
    """Neither UTF-8 text nor one JSON value."""
    text = _text(content)
    return text is None or not _parsed(text.removeprefix("\ufeff"))[0]


def bad_lines(content: bytes, bad_row: RowCheck) -> bool:
    """JSON Lines of which one is no JSON in UTF-8 or a row that is wrong, blank ones left out; or no rows at all."""
    rows = 0
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        text = _text(line)
        if text is not None and not text.strip():
            continue
        good, row = _parsed(text) if text is not None else (False, None)
        if not good or bad_row(row):
            return True
        rows += 1
    return not rows


def bad_list(content: bytes, bad_row: RowCheck) -> bool:
    """A file that should be one JSON list of rows, and is nothing that could be read as rows."""
    if not no_json(content):
        value = json.loads(content.decode("utf-8").removeprefix("\ufeff"))
        rows = value if isinstance(value, list) else [value]
        return not rows or any(bad_row(row) for row in rows)
    return bad_lines(content, bad_row)


def bad_prompt(row: Any) -> bool:
    """No object, or nothing that could be a prompt in it; empty text is only counted."""
    if not isinstance(row, dict):
        return True
    for name in ("messages", "prompt"):
        if row.get(name) is not None:
            return _bad_talk_or_text(row[name], ("system", "user", "assistant", "tool"))
    return not isinstance(row.get("instruction"), str) or not isinstance(row.get("input") or "", str)


def _bad_talk_or_text(value: Any, roles: tuple[str, ...] = ()) -> bool:
    """Neither text nor messages; `roles` are those that a message may have, where not all are allowed."""
    return not isinstance(value, str) and (_bad_talk(value) or any(roles and one["role"] not in roles for one in value))


def _bad_talk(value: Any) -> bool:
    return not isinstance(value, list) or not value or any(map(_bad_message, value))


def _bad_message(message: Any) -> bool:
    return not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content"))


def bad_comparison(row: Any) -> bool:
    """To be scored: neither a pair, of message lists or of texts to an instruction, nor a group of texts."""
    if not isinstance(row, dict):
        return True
    if row.get("responses") is not None:
        responses = row["responses"]
        texts = isinstance(responses, list) and responses and all(isinstance(text, str) for text in responses)
        return not texts or _bad_talk_or_text(row.get("prompt"))
    return bad_pair(row)


def bad_pair(row: Any) -> bool:
    """Neither two message lists nor an instruction with two texts; the second answer may be called `reject`."""
    if not isinstance(row, dict):
        return True
    first, second = row.get("chosen"), row.get("reject") if row.get("rejected") is None else row["rejected"]
    if isinstance(first, list):
        return any(_bad_talk(side) or len(side) < 2 for side in (first, second))
    texts = [answer.get("response") if isinstance(answer, dict) else answer for answer in (first, second)]
    return not all(isinstance(text, str) for text in (row.get("instruction"), *texts))


def bad_training_pair(row: Any, *, hard: bool, alone: bool) -> bool:
    """To be trained on: no pair, or labels of another kind or beyond their bounds.

    `hard`: for a loss without soft labels. `alone`: without a template, so with one message before the answer.
    """
    if bad_pair(row):
        return True
    group, probability, margin = (row.get(name) for name in ("group", "target_prob", "margin"))
    if group is not None and (isinstance(group, bool) or not isinstance(group, str | int) or group == ""):
        return True
    if probability is not None and (
        not _finite(probability) or not 0 <= probability <= 1 or (hard and probability != 1)
    ):
        return True
    long = alone and isinstance(row["chosen"], list) and len(row["chosen"]) != 2
    return long or (margin is not None and not _finite(margin))


def _finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def bad_rated(row: Any) -> bool:
    """No prompt with answers that are rated by numbers."""
    if not isinstance(row, dict) or not isinstance(row.get("prompt", ""), str):
        return True
    answers = row.get("responses")
    return not isinstance(answers, list) or not answers or any(map(_bad_rating, answers))


def _bad_rating(answer: Any) -> bool:
    ratings = answer.get("ratings") if isinstance(answer, dict) else None
    return (
        not isinstance(ratings, dict)
        or not isinstance(answer.get("text"), str)
        or not all(map(_finite, ratings.values()))
    )


def bad_wins(value: Any) -> bool:
    """A win table without two different names for each win, or with answers or a prompt that are no text."""
    if not isinstance(value, dict) or "wins" not in value:
        return not isinstance(value, dict | list)
    wins, answers, prompt = value["wins"], value.get("answers"), value.get("prompt")
    if not isinstance(wins, list) or not wins or any(map(_bad_win, wins)):
        return True
    texts = [*(answers.values() if isinstance(answers, dict) else answers if isinstance(answers, list) else ()), prompt]
    kinds = answers is None or isinstance(answers, dict | list)
    return not kinds or not all(text is None or isinstance(text, str) for text in texts)


def _bad_win(edge: Any) -> bool:
    names = isinstance(edge, list) and len(edge) == 2 and all(isinstance(name, str) for name in edge)
    return not names or edge[0] == edge[1]


def bad_output(row: Any) -> bool:
    """An answer without its instruction or its text."""
    return not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("instruction", "output"))


def bad_record(content: bytes) -> bool:
    """A journal with a line that is neither an object nor what a crash leaves: its beginning, or zeros."""
    for line in content.split(b"\n"):
        text = line.decode("utf-8", "replace")
        good, value = _parsed(text)
        if text.strip() and "\0" not in text and not (isinstance(value, dict) if good else text.startswith("{")):
            return True
    return False


READ_OF_A_RUN = {
    "overview": ("run.json", "evaluation.json", "journal.jsonl", "metrics.jsonl", ".parquet"),
    "prompts": ("heldout.json", ".parquet"),
    "report": ("run.json", "evaluation.json", "heldout.json", "journal.jsonl", "metrics.jsonl", ".parquet"),
    "again": ("run.json",),
}
"""How a finished run is looked at -> the ends of the names of files that must be read for it."""


def bad_run_file(look: str, name: str, content: bytes, before: int) -> bool:
    """Of a run: a file that a look must read and cannot; `before` is how long it was, as shards end with what tells."""
    if not name.endswith(READ_OF_A_RUN[look]):
        return False
    if name.endswith(".jsonl"):
        return bad_record(content)
    return len(content) < before if name.endswith(".parquet") else no_json(content)


def bad_settings(content: bytes, refused: Callable[[Any], bool]) -> bool:
    """No UTF-8, no YAML, no settings in it, or values that are `refused`."""
    text = _text(content)
    try:
        values = None if text is None else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return True
    return not isinstance(values, dict) or refused(values)


def short_weights(content: bytes) -> bool:
    """A safetensors file shorter than its header says, or without a header."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > len(content) - 8:
        return True
    good, header = _parsed(_text(content[8 : 8 + size]) or "")
    if not good or not isinstance(header, dict):
        return True
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return max(ends, default=0) > len(content) - 8 - size
    except (KeyError, TypeError, IndexError):
        return True


def bad_model_file(name: str, content: bytes) -> bool:
    """Of a model's directory: short weights, or a config or tokenizer that is no JSON."""
    if name.endswith(".safetensors"):
        return short_weights(content)
    return name in ("config.json", "tokenizer.json") and no_json(content)
