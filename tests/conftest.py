"""Which tests follow each other in one process when `make test` runs two at a time (pytest-xdist, loadgroup)."""

import pytest

STARTS_ENGINES = (
    "tests/e2e/",
    "tests/gpo/test_publishing.py",
    "tests/gpo/evaluation/test_cli_generate.py",
    "tests/reward/test_backend_vllm.py",
    "tests/rollout/test_cores.py",
)
"""Two engines at a time would fight for the cores. These take longest, so they begin first."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Engines are one group, every other file is a group of its own."""
    for item in items:
        file = item.nodeid.partition("::")[0]
        engines = file.startswith(STARTS_ENGINES)
        item.add_marker(pytest.mark.xdist_group("engines" if engines else file))
    items.sort(key=lambda item: not item.nodeid.startswith(STARTS_ENGINES))
