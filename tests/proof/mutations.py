"""What fuzzing does to a good file: changes of single bytes, of JSON lines and of YAML settings, drawn from a seed.

A change may by chance be one that nobody minds; `tests/proof/certain.py` tells what is certainly wrong.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.proof.odd_values import VALUES, drawn


@dataclass(frozen=True, slots=True)
class Mutated:
    """A file's new content and what was done to it."""

    content: bytes
    done: str


def mutate_bytes(content: bytes, draw: Random) -> Mutated:
    """Cut, flip, double, insert or empty, and never what it was: a part that is 0 already is emptied in vain."""
    while True:
        changed = _changed_bytes(content, draw)
        if changed.content != content:
            return changed


def _changed_bytes(content: bytes, draw: Random) -> Mutated:
    data = bytearray(content)
    kind = draw.choice(("cut", "flip", "double", "insert", "zero"))
    place = draw.randrange(len(data) + 1)
    if kind == "cut":
        del data[place:]
    elif kind == "flip":
        for _ in range(draw.randint(1, 8)):
            if data:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "double":
        stop = min(len(data), place + draw.randint(1, 200))
        data[place:place] = data[place:stop]
    elif kind == "insert":
        data[place:place] = draw.randbytes(draw.randint(1, 40))
    else:
        stop = min(len(data), place + draw.randint(1, 100))
        data[place:stop] = bytes(stop - place)
    return Mutated(bytes(data), f"bytes: {kind} at {place}")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside dictionaries and lists."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [] if not path else [path]
    for key, child in children:
        found += places(child, (*path, key))
    return found


def replaced(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy in which `change(container, key)` was done at a path."""
    changed = copy.deepcopy(value)
    owner = changed
    for key in path[:-1]:
        owner = owner[key]
    change(owner, path[-1])
    return changed


def mutate_value(value: Any, draw: Random) -> tuple[Any, str]:
    """Remove something, or put something odd in its place, other than what was there."""
    while True:
        changed, done = _changed_value(value, draw)
        if ascii(changed) != ascii(value):  # To Python, True is 1.
            return changed, done


def _changed_value(value: Any, draw: Random) -> tuple[Any, str]:
    path = draw.choice(places(value))
    where = ".".join(map(str, path))
    if draw.random() < 0.3:

        def remove(owner: Any, key: Any) -> None:
            del owner[key]

        return replaced(value, path, remove), f"removed {where}"
    odd = drawn(VALUES, draw)

    def put(owner: Any, key: Any) -> None:
        owner[key] = odd

    return replaced(value, path, put), f"{where} = {odd!r:.40}"


def mutate_json_lines(content: bytes, draw: Random) -> Mutated:
    """One row of JSON Lines changed in its structure, or the bytes of the file."""
    if draw.random() < 0.4:
        return mutate_bytes(content, draw)
    rows = [json.loads(line) for line in content.decode().splitlines()]
    number = draw.randrange(len(rows))
    rows[number], done = mutate_value(rows[number], draw)
    text = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
    return Mutated(text.encode(), f"row {number + 1}: {done}")
