"""Which tests follow each other in one process when `make test` runs two at a time (pytest-xdist)."""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

STARTS_ENGINES = (
    "tests/e2e/",
    "tests/gpo/test_publishing.py",
    "tests/gpo/evaluation/test_cli_generate.py",
    "tests/reward/test_backend_vllm.py",
    "tests/rollout/test_adapters.py",
    "tests/rollout/test_engines.py",
)
"""Two engines at a time would fight for the cores. These take longest, so they begin first."""


class EnginesTogether(LoadFileScheduling):  # type: ignore[misc]
    """A file is a piece of work, and all files that start engines are one together."""

    def _split_scope(self, nodeid: str) -> str:
        return "engines" if nodeid.startswith(STARTS_ENGINES) else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> EnginesTogether:
    """xdist's hook; its own loadgroup renames tests in a way that pytest 9.2 does not see."""
    return EnginesTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Engines first."""
    items.sort(key=lambda item: not item.nodeid.startswith(STARTS_ENGINES))
