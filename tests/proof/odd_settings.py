"""Every setting of a run with the kinds of values that its reference promises, and odd values for it.

The kinds come from the declared schema, not from what the reader does with a value.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import yaml
from hypothesis import strategies as st

from gpo.config import RunConfig
from tests.proof.odd_values import INTEGERS, NUMBERS, TEXTS, VALUES, WORDS, as_typed, drawn, near

ODD_UNKNOWN = ["a.b.c", "x.policy", "train.x.y", "rollout.engine.x", "policy.x", "POLICY", "x policy", "x\udcff"]


KINDS = {"integer": INTEGERS, "number": NUMBERS, "string": TEXTS, "boolean": st.booleans(), "null": st.none()}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting or a section."""

    path: tuple[str, ...]
    kinds: frozenset[str]
    """JSON schema's names; a section is an object."""
    choices: tuple[Any, ...]
    """Empty where not a list of values is promised."""

    @property
    def key(self) -> str:
        """As in `key=value`."""
        return ".".join(self.path)

    def refuses(self, value: Any) -> bool:
        """Certainly wrong here, by kind; what is only out of range or of no use is not for this check."""
        if isinstance(value, dict):
            return "object" not in self.kinds
        if isinstance(value, list):
            return "array" not in self.kinds
        if value is None:
            return not self.kinds & {"null", "object"}  # A section may be left empty.
        if isinstance(value, bool):
            return "boolean" not in self.kinds
        if isinstance(value, str) and self.choices:
            return value not in self.choices
        if isinstance(value, str):
            numbers = self.kinds & {"integer", "number"} and _is_number(value)
            return not (self.kinds & {"string", "boolean"} or numbers)
        if isinstance(value, int | float):
            odd = isinstance(value, float) and not math.isfinite(value)
            part = isinstance(value, float) and not odd and not value.is_integer() and "number" not in self.kinds
            return odd or part or not self.kinds & {"integer", "number", "boolean"}
        return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@cache
def all_settings() -> tuple[Setting, ...]:
    """Of a run, in the order of the reference."""
    schema = RunConfig.model_json_schema()
    return tuple(_below(schema, schema["$defs"], ()))


def _below(schema: dict[str, Any], defs: dict[str, Any], path: tuple[str, ...]) -> Iterator[Setting]:
    for name, part in schema.get("properties", {}).items():
        here = (*path, name)
        parts = [defs[one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in part.get("anyOf", [part])]
        choices = [value for one in parts for value in one.get("enum", [one["const"]] if "const" in one else [])]
        kinds = frozenset(one["type"] for one in parts)
        yield Setting(here, kinds, tuple(choices))
        for one in parts:
            yield from _below(one, defs, here)


def odd_value(setting: Setting, draw: Random) -> Any:
    """Of a kind that the setting takes, so that what looks at it next is reached; almost a choice; or anything."""
    texts = [choice for choice in setting.choices if isinstance(choice, str)]
    near_choices = [st.builds(near, st.just(texts), st.randoms())] if texts else []
    likely = [KINDS[kind] for kind in sorted(setting.kinds & KINDS.keys())] if not setting.choices else []
    fitting = [*near_choices, *likely, *([st.sampled_from(setting.choices)] if setting.choices else [])]
    return drawn(st.one_of(fitting) if fitting and draw.random() < 0.7 else VALUES, draw)


def set_at(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Put a value where the file may lack the sections above it."""
    for key in path[:-1]:
        values = values.setdefault(key, {})
    values[path[-1]] = value


def unknown_key(draw: Random) -> str:
    """Of no section."""
    return f"x_{drawn(TEXTS, draw)}"


def odd_override(draw: Random) -> tuple[str, str, bool]:
    """Key and value of a word behind a good config, and whether it is certainly wrong."""
    kind = draw.random()
    if kind < 0.03:
        return "", drawn(WORDS, draw), True
    if kind < 0.2:  # With a letter first: a sign would make an option of it.
        return draw.choice([draw.choice(ODD_UNKNOWN), f"x{drawn(WORDS, draw)}"]), drawn(WORDS, draw), True
    setting = draw.choice(all_settings())
    text = drawn(WORDS, draw) if draw.random() < 0.3 else as_typed(odd_value(setting, draw))
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return setting.key, text, True
    return setting.key, text, setting.refuses(value)
