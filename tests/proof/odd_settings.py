"""Every setting of a config with the values that its reference promises, and odd values for it.

Kinds, bounds and choices come from the declared schema, not from what the reader does with a value.
"""

import copy
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import yaml
from hypothesis import strategies as st

from gpo.config import RunConfig
from gpo.settings import Settings
from tests.proof.mutations import mutate_value
from tests.proof.odd_values import INTEGERS, NUMBERS, TEXTS, VALUES, WORDS, as_typed, drawn, near
from tests.proof.promised import BOUNDS, Schema, choices_of, parts_of, refused

ODD_UNKNOWN = ["a.b.c", "x.policy", "train.x.y", "rollout.engine.x", "policy.x", "POLICY", "x policy", "x\udcff"]
KINDS = {"integer": INTEGERS, "number": NUMBERS, "string": TEXTS, "boolean": st.booleans(), "null": st.none()}
MOST_OF_A_LIST = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting or a section."""

    path: tuple[str, ...]
    schema: Schema = field(hash=False)
    defs: Schema = field(hash=False)

    @property
    def key(self) -> str:
        """As in `key=value`."""
        return ".".join(self.path)

    def refuses(self, value: Any) -> bool:
        """Certainly wrong here, by kind, bounds or choices."""
        return refused(value, self.schema, self.defs)


@cache
def schema_of(config: type[Settings]) -> Schema:
    """Of a config class, whose values a whole file holds."""
    return config.model_json_schema()


def refused_whole(values: Any, config: type[Settings] = RunConfig) -> bool:
    """Whether a file's values are certainly wrong somewhere."""
    schema = schema_of(config)
    return refused(values, schema, schema["$defs"])


@cache
def all_settings(config: type[Settings] = RunConfig) -> tuple[Setting, ...]:
    """Of a config, in the order of the reference."""
    schema = schema_of(config)
    return tuple(_below(schema, schema["$defs"], ()))


def _below(schema: Schema, defs: Schema, path: tuple[str, ...]) -> Iterator[Setting]:
    for name, part in schema.get("properties", {}).items():
        here = (*path, name)
        yield Setting(here, part, defs)
        for one in parts_of(part, defs):
            yield from _below(one, defs, here)


def odd_value(setting: Setting, draw: Random) -> Any:
    """Of a kind that the setting takes, so that what looks at it next is reached; almost a choice; or anything."""
    return drawn(_fitting(setting.schema, setting.defs) if draw.random() < 0.7 else VALUES, draw)


def _fitting(schema: Schema, defs: Schema) -> st.SearchStrategy[Any]:
    return st.one_of([_of_part(part, defs) for part in parts_of(schema, defs)])


def _of_part(part: Schema, defs: Schema) -> st.SearchStrategy[Any]:
    choices = choices_of(part)
    texts = [choice for choice in choices if isinstance(choice, str)]
    if texts:
        return st.builds(near, st.just(texts), st.randoms()) | st.sampled_from(choices)
    if choices:
        return st.sampled_from(choices)
    if part["type"] == "array":
        return st.lists(_fitting(part["items"], defs), max_size=MOST_OF_A_LIST)
    if part["type"] == "object":
        known, must = part.get("properties", {}), part.get("required", ())
        inner = {name: _fitting(one, defs) for name, one in known.items()}
        needed = {name: inner.pop(name) for name in must}
        return st.fixed_dictionaries(needed, optional=inner) if known else st.dictionaries(TEXTS, VALUES, max_size=2)
    edges = [edge for name in BOUNDS if name in part for edge in _about(part[name], part["type"])]
    return KINDS[part["type"]] | st.sampled_from(edges) if edges else KINDS[part["type"]]


def _about(bound: float, kind: str) -> list[float]:
    """A bound and its neighbours."""
    if kind == "integer":
        return [int(bound) + step for step in (-1, 0, 1)]
    return [math.nextafter(bound, -math.inf), bound, math.nextafter(bound, math.inf)]


def set_at(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Put a value where the file may lack the sections above it."""
    for key in path[:-1]:
        values = values.setdefault(key, {})
    values[path[-1]] = value


def unknown_key(draw: Random) -> str:
    """Of no section."""
    return f"x_{drawn(TEXTS, draw)}"


def odd_config(
    values: dict[str, Any], draw: Random, config: type[Settings] = RunConfig, spared: Collection[str] = ()
) -> tuple[dict[str, Any], str]:
    """Values of a file, one setting odd, removed or unknown, and never as they were; what was done.

    Settings that are `spared` are left as they are.
    """
    before = ascii(values)
    while True:
        changed, done = _odd_config(copy.deepcopy(values), draw, config, spared)
        if ascii(changed) != before:
            return changed, done


def _odd_config(
    values: dict[str, Any], draw: Random, config: type[Settings], spared: Collection[str]
) -> tuple[dict[str, Any], str]:
    setting = draw.choice([one for one in all_settings(config) if one.path[0] not in spared])
    odd = odd_value(setting, draw)
    kind = draw.random()
    if kind < 0.15:
        section = draw.choice([values, *(value for value in values.values() if isinstance(value, dict))])
        key = unknown_key(draw)
        section[key] = drawn(VALUES, draw)
        return values, f"an unknown key {key!r:.40}"
    if kind < 0.25:
        return mutate_value(values, draw)
    set_at(values, setting.path, odd)
    required = [name for name in schema_of(config).get("required", ()) if name not in spared]
    if kind < 0.4 and required:
        key = draw.choice(required)
        values.pop(key)
        return values, f"{setting.key} = {odd!r:.40}, and without {key}"
    return values, f"{setting.key} = {odd!r:.40}"


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
