"""What the declared schema of a config certainly refuses: kinds, bounds, choices, keys that are unknown or missing.

It reads the JSON schema that the reference is written from, and nothing of what the reader does with a value. Where
YAML or pydantic may take one kind for another (the text "3" for 3) it says yes only where that is no way out either.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": operator.ge,
    "exclusiveMinimum": operator.gt,
    "maximum": operator.le,
    "exclusiveMaximum": operator.lt,
}
SWITCHES = {"0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes"}
"""Texts that pydantic takes for true or false, in any case."""
OF_YAML = (type(None), bool, int, float, str, list, dict)
"""What a value of a config file is, but for dates, bytes and sets: what becomes of those is not said here."""


def parts_of(schema: Schema, defs: Schema) -> list[Schema]:
    """The alternatives of a setting, without references."""
    parts = schema.get("anyOf", [schema])
    return [defs[one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in parts]


def choices_of(part: Schema) -> list[Any]:
    """The listed values of an alternative, empty where it lists none."""
    choices: list[Any] = part.get("enum", [part["const"]] if "const" in part else [])
    return choices


def refused(value: Any, schema: Schema, defs: Schema) -> bool:
    """Whether no alternative of a setting may take the value."""
    if not isinstance(value, OF_YAML):
        return False
    return all(_REFUSED[part["type"]](value, part, defs) for part in parts_of(schema, defs))


def _no_object(value: Any, part: Schema, defs: Schema) -> bool:
    if not isinstance(value, dict):
        return value is not None  # A section may be left empty.
    known, more = part.get("properties", {}), part.get("additionalProperties")
    if any(name not in value for name in part.get("required", ())) or (more is False and value.keys() - known.keys()):
        return True
    # Of values that are named by the user alone, such as those of `preference.sources`.
    named = {name: known.get(name, more if isinstance(more, dict) else None) for name in value}
    return any(schema is not None and refused(value[name], schema, defs) for name, schema in named.items())


def _no_array(value: Any, part: Schema, defs: Schema) -> bool:
    if not isinstance(value, list):
        return True
    few = len(value) < part.get("minItems", 0)
    return few or any(refused(one, part["items"], defs) for one in value)


def _no_text(value: Any, part: Schema, _defs: Schema) -> bool:
    choices = choices_of(part)
    return not isinstance(value, str) or bool(choices and value not in choices)


def _no_switch(value: Any, _part: Schema, _defs: Schema) -> bool:
    if isinstance(value, str):
        return value.strip().lower() not in SWITCHES
    return not isinstance(value, bool | int | float) or value not in (0, 1)


def _no_number(value: Any, part: Schema, _defs: Schema) -> bool:
    choices = choices_of(part)
    if isinstance(value, str) and not choices:
        value = _number_in(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    if isinstance(value, float) and not math.isfinite(value):
        return True
    fraction = part["type"] == "integer" and value % 1 != 0
    beyond = any(not holds(value, part[name]) for name, holds in BOUNDS.items() if name in part)
    return fraction or beyond or bool(choices and value not in choices)


def _number_in(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


_REFUSED: dict[str, Callable[[Any, Schema, Schema], bool]] = {
    "object": _no_object,
    "array": _no_array,
    "string": _no_text,
    "boolean": _no_switch,
    "integer": _no_number,
    "number": _no_number,
    "null": lambda value, _part, _defs: value is not None,
}
