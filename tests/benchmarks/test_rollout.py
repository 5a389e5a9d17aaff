"""The rollout benchmark's bookkeeping, with a pool and a peer that take as long as they are told to.

Run: python -m pytest tests/benchmarks/test_rollout.py
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rollout
from benchmarks.rollout import claims_of, overlap, throughput

SECONDS = {"sample": [90.0, 10.0, 11.0], "score": [4.0, 5.0, 80.0], "both": [12.0, 70.0, 11.0]}
SPEEDS = {"direct": [100.0, 10.0, 101.0], "pool": [98.0, 99.0, 5.0], "transformers": [30.0, 33.0, 1.0]}


class ToldBench:
    """Answers with the next number of a list, and keeps the order of the calls."""

    def __init__(self, config: Any, model: Path, folder: Path) -> None:
        self.config = config
        self.calls: list[str] = []
        self.warm = False

    def __enter__(self) -> "ToldBench":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _next(self, way: str, numbers: dict[str, list[float]], requests: list[int]) -> float:
        if len(requests) == 8 and not self.warm:
            self.warm = True
            return 0.0
        self.calls.append(way)
        return numbers[way][self.calls.count(way) - 1]

    def direct(self, requests: list[int]) -> float:
        return self._next("direct", SPEEDS, requests)

    def through_the_pool(self, requests: list[int]) -> float:
        return self._next("pool", SPEEDS, requests)

    def sample_alone(self, requests: list[int]) -> tuple[float, list[Any]]:
        assert self.config.rollout.engine.max_sequences * 8 <= len(requests) * self.config.rollout.samples
        return self._next("sample", SECONDS, requests), [requests]

    def score_alone(self, rows: list[list[int]]) -> float:
        return self._next("score", SECONDS, rows[0])

    def both(self, requests: list[int]) -> float:
        return self._next("both", SECONDS, requests)


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def peer(model: Path, prompts: int) -> Iterator[Callable[[], float]]:
        speeds = iter(SPEEDS["transformers"])
        yield lambda: next(speeds)

    monkeypatch.setattr(rollout, "Bench", ToldBench)
    monkeypatch.setattr(rollout, "transformers_peer", peer)
    monkeypatch.setattr(rollout, "requests_for", lambda model, count: list(range(count)))
    monkeypatch.setattr(rollout, "write_gpm", lambda model, target: target)


def test_pool_engine_and_transformers_take_turns_and_medians_are_compared(tmp_path: Path) -> None:
    found = throughput(tmp_path, tmp_path, 64, 3)
    assert found["transformers_rounds"] == SPEEDS["transformers"]
    assert (found["pool_to_direct"], found["pool_to_transformers"]) == (0.98, 3.27)
    assert [claim.spread for claim in claims_of({"throughput": found})] == [0.959, 1.067]


def test_overlap_has_many_waves_and_one_slow_round_does_not_count(tmp_path: Path) -> None:
    found = overlap(tmp_path, tmp_path, 64, 3)
    assert found["colocated"]["both_to_sum"] == 0.75 and found["split"]["both_to_longer"] == 1.091
    assert [claim.holds for claim in claims_of({"overlap": found})] == [True, True]
