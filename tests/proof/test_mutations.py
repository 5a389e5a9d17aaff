"""What is done to a good file is never nothing: a case whose input is as it was proves nothing.

Run: python -m pytest tests/proof/test_mutations.py
"""

from random import Random

import pytest

from tests.proof.mutations import mutate_bytes, mutate_json_lines, mutate_value

DRAWS = 300


@pytest.mark.parametrize("content", [b"", b"\x00", bytes(200), b"a", b"name: a\n"])
def test_bytes_are_never_what_they_were(content: bytes) -> None:
    changed = {mutate_bytes(content, Random(seed)).content for seed in range(DRAWS)}
    assert content not in changed and len(changed) > 1


def test_values_are_never_what_they_were() -> None:
    value = {"none": None, "no": False, "zero": 0, "texts": ["", " "], "empty": {}}
    assert all(ascii(mutate_value(value, Random(seed))[0]) != ascii(value) for seed in range(DRAWS))


def test_rows_are_never_what_they_were() -> None:
    content = b'{"a": null, "b": 0}\n'
    assert all(mutate_json_lines(content, Random(seed)).content != content for seed in range(DRAWS))
