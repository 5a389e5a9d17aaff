"""What a computing process on the CPU is started with.

Run: python -m pytest tests/gpo/test_cpu.py
"""

import pytest

from gpo.cpu import keeping_malloc


def test_the_malloc_comes_before_what_was_to_be_preloaded_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    alone = keeping_malloc()["LD_PRELOAD"]
    assert alone.endswith("libjemalloc.so") and ":" not in alone
    monkeypatch.setenv("LD_PRELOAD", "/lib/other.so:/lib/third.so")
    assert keeping_malloc()["LD_PRELOAD"] == f"{alone}:/lib/other.so:/lib/third.so"
