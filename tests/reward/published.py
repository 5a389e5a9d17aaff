"""The published numbers in ../shared/fixtures and how tests reach them."""

import functools
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import FIXTURES, read_json

present = pytest.mark.skipif(not FIXTURES.exists(), reason=f"no published fixtures at {FIXTURES}")


@functools.cache
def load(name: str) -> Any:
    return read_json(FIXTURES / name) if FIXTURES.exists() else {}


def checkpoint(name: str) -> Path:
    return FIXTURES / "checkpoints" / name


def cases() -> list[Any]:
    """Every case of cases.json as a pytest parameter named by its id."""
    return [pytest.param(case, id=case["id"]) for case in load("cases.json").get("cases", [])]


def entries(name: str) -> list[Any]:
    """Every entry of one list of losses.json as a pytest parameter."""
    return [pytest.param(entry, id=entry["id"]) for entry in load("losses.json").get(name, [])]
