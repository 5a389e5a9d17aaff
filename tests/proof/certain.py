"""What is certainly wrong with a file that fuzzing damaged, by checks that share nothing with gpo's readers.

They say yes only where the verb that reads the file promises to refuse it; what is merely odd is not for them.
"""

import json
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
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip(b" \t\r")]
    for line in lines:
        text = _text(line)
        good, row = _parsed(text) if text is not None else (False, None)
        if not good or bad_row(row):
            return True
    return not lines


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
    if row.get("messages") is not None or row.get("instruction") is not None:
        return False
    return not isinstance(row.get("prompt"), str | list)


def _bad_message(message: Any) -> bool:
    return not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content"))


def bad_comparison(row: Any) -> bool:
    """Neither a pair of message lists nor a group of texts."""
    if not isinstance(row, dict):
        return True
    if "instruction" in row:
        return False
    if "responses" in row and row["responses"] is not None:
        responses, prompt = row["responses"], row.get("prompt")
        if not isinstance(responses, list) or not isinstance(prompt, str | list) or not responses:
            return True
        return any(not isinstance(text, str) for text in responses)
    sides = [row.get("chosen"), row.get("rejected")]
    return any(not isinstance(side, list) or not side or any(map(_bad_message, side)) for side in sides)


def bad_output(row: Any) -> bool:
    """An answer without its instruction or its text."""
    return not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("instruction", "output"))


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
