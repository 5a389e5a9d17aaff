"""Which tests follow each other in one process when `make test` runs two at a time, and that proofs skip nothing.

A proof that cannot run must not look like one that passed: the make targets of proofs set GPO_PROOF=1, and then a test
that would be skipped fails with the reason of the skip.
"""

import os
from collections.abc import Generator
from typing import Any, TypeVar

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


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _not_skipped(report: Report) -> Report:
    """A failure of what would be a skip, in a proof; an expected failure is none."""
    if os.environ.get("GPO_PROOF") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"GPO_PROOF=1, so this must run and not be left out: {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test, its fixtures and its marks."""
    return _not_skipped((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a whole file."""
    return _not_skipped((yield))
