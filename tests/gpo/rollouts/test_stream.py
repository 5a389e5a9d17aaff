"""Shards through the pool while its parts die, hang and fail: nothing is lost, nothing is done twice.

Run: python -m pytest tests/gpo/rollouts/test_stream.py
"""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpo.cluster.runtime import ray_session
from gpo.errors import StageError
from gpo.rollouts import pool as pool_module
from gpo.rollouts.pool import MOST_FAILURES, Weights
from gpo.rollouts.stream import shards_in_flight
from tests.gpo.rollouts.faulty_actors import AWAKE, BESIDE_A_SCORER, BESIDE_AN_ENGINE
from tests.gpo.rollouts.passes import SHARD, Pass, kill
from tests.gpo.small_runs import run_config

CLUSTER = {"shape": "split", "samplers": 2, "scorers": 2, "threads": 1}
"""Room for the largest pool of these tests."""


@pytest.fixture(scope="module", autouse=True)
def _ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with ray_session(run_config(cluster=CLUSTER), tmp_path_factory.mktemp("run"), "a run"):
        yield


@pytest.mark.parametrize(
    "cluster", [{"shape": "colocated"}, {"samplers": 2, "scorers": 2}], ids=["turns", "two-of-each"]
)
@pytest.mark.parametrize("role", ["sampler", "scorer"])
def test_a_death_costs_nothing_but_time(tmp_path: Path, role: str, cluster: dict[str, Any]) -> None:
    done = Pass(tmp_path, ["plain"] * 5 + [f"die {role}"], **cluster).run()
    assert done.answers() == done.expected()
    assert sorted(done.finished) == list(range(6)) and done.given_up == []


@pytest.mark.parametrize("role", ["sampler", "scorer"])
def test_a_process_without_memory_is_replaced(tmp_path: Path, role: str) -> None:
    done = Pass(tmp_path, ["plain"] * 5 + [f"oom {role}"], wait_seconds=300.0).run()
    assert done.answers() == done.expected() and done.lost == [role] and done.given_up == []


@pytest.mark.parametrize("role", ["sampler", "scorer"])
def test_a_prompt_that_always_takes_too_much_memory_is_left_out(tmp_path: Path, role: str) -> None:
    done = Pass(tmp_path, ["plain", f"hungry {role}"], prompts=8, wait_seconds=300.0).run()
    assert done.given_up == [("p1", {"sampler": "sampling", "scorer": "scoring"}[role])]
    assert done.answers() == done.expected(without=("p1",))


def test_an_engine_that_finds_no_room_in_the_object_store_is_replaced(tmp_path: Path) -> None:
    done = Pass(tmp_path, ["plain"] * 5 + ["store sampler"], wait_seconds=300.0).run()
    assert done.answers() == done.expected() and done.lost == ["sampler"] and done.given_up == []


def test_an_engine_that_hangs_or_fails_is_replaced(tmp_path: Path) -> None:
    done = Pass(tmp_path, ["hang sampler", "plain", "plain", "plain", "raise sampler"], wait_seconds=6.0).run()
    assert done.answers() == done.expected() and sorted(done.finished) == list(range(6))


@pytest.mark.parametrize("role", ["sampler", "scorer"])
def test_a_prompt_that_kills_is_found_left_out_and_recorded_and_the_run_goes_on(tmp_path: Path, role: str) -> None:
    done = Pass(tmp_path, ["plain", f"poison {role}"], prompts=12).run()
    assert done.given_up == [("p1", {"sampler": "sampling", "scorer": "scoring"}[role])]
    assert done.answers() == done.expected(without=("p1",)) and sorted(done.finished) == [0, 1, 2]


def test_a_judge_that_is_away_is_no_prompts_fault(tmp_path: Path) -> None:
    tried = Pass(tmp_path, ["refused alone", "poison scorer"], prompts=4)
    with pytest.raises(StageError, match="scoring failed.*the judge is away"):
        tried.run()
    assert tried.given_up == []


def test_a_process_that_dies_without_work_is_named_before_the_pass_ends(tmp_path: Path) -> None:
    done = Pass(tmp_path, [], prompts=SHARD * 2)
    done.kill_after = 2
    done.run()
    assert done.lost == ["sampler"] and done.answers() == done.expected()


def test_a_process_that_died_is_never_handed_out(tmp_path: Path) -> None:
    tried = Pass(tmp_path, [])
    weights = Weights(str(tmp_path), None)
    kill(tried.pool.samplers(weights)[0])
    assert holds_weights(tmp_path, tried.pool.samplers(weights)) == 1
    assert tried.lost == ["sampler"]
    tried.pool.close()


def test_work_that_asks_processes_directly_starts_again_when_one_dies(tmp_path: Path) -> None:
    import ray

    tried = Pass(tmp_path, [])
    asked = []

    def work() -> int:
        (actor,) = tried.pool.samplers(Weights(str(tmp_path), None))
        if len(asked) < deadly:
            kill(actor)
        asked.append(actor)
        found: int = ray.get(actor.process.remote(), timeout=30)
        return found

    deadly = 1
    assert tried.pool.in_spite_of_deaths(work, "a test") > 0
    assert len(asked) == 2 and tried.lost == ["sampler"]
    deadly = 10
    with pytest.raises(StageError, match=f"a test: {MOST_FAILURES} processes were lost"):
        tried.pool.in_spite_of_deaths(work, "a test")
    tried.pool.close()


def test_answers_that_went_with_their_process_are_asked_for_again(tmp_path: Path) -> None:
    from ray.exceptions import ObjectLostError, RayTaskError

    lost = ObjectLostError("ab", None, "")
    read = RayTaskError("keep_answers", "a traceback", lost)
    other = RayTaskError("keep_answers", "a traceback", OSError("full"))
    raised = [lost, read, other]
    tried = Pass(tmp_path, [])

    def work() -> None:
        raise raised.pop(0)

    with pytest.raises(RayTaskError) as caught:
        tried.pool.in_spite_of_deaths(work, "a test")
    assert caught.value is other, "an exception of the reader's own is believed"


def test_an_engine_that_joins_late_is_not_handed_out_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = iter([1, 2])
    monkeypatch.setattr(pool_module, "processes_now", lambda role, wanted: next(room, 2))
    monkeypatch.setattr(pool_module, "LOOK_SECONDS", 0.0)
    pool = Pass(tmp_path, [], samplers=2).pool
    weights = Weights(str(tmp_path), None)
    assert holds_weights(tmp_path, pool.samplers(weights)) == 1
    assert holds_weights(tmp_path, pool.ask_samplers(weights, lambda actor: actor.process.remote(), "a test")) == 2
    pool.close()


def holds_weights(folder: Path, found: list[Any]) -> int:
    """How many actors, or their process ids, these are; fails when one has not loaded anything."""
    import ray

    pids = [one if isinstance(one, int) else ray.get(one.process.remote(), timeout=30) for one in found]
    assert all(list(folder.glob(f"load-*-{pid}")) for pid in pids)
    return len(set(pids))


def test_more_poison_than_allowed_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="too much poison"):
        Pass(tmp_path, ["poison sampler 1", "poison sampler 2"], prompts=4).run(most_poison=1)


def test_a_full_disk_ends_the_run_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="No space left on device.*make room"):
        Pass(tmp_path, ["full scorer"], prompts=8).run()


def test_what_waits_for_a_scorer_is_bounded_by_count_and_by_bytes(tmp_path: Path) -> None:
    limits: list[dict[str, Any]] = [{"waiting_shards": 3, "waiting_mib": 1000.0}, {"waiting_mib": 3.0}]
    for number, limit in enumerate(limits):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = Pass(folder, [], prompts=SHARD * 30, pause=0.05, **limit).run()
        # Three that wait, two with the scorer, and those that were in flight when the limit was reached.
        assert done.most_waiting <= 3 + 2 + shards_in_flight(done.pool)
        assert sorted(done.finished) == list(range(30))


def test_an_engine_that_fails_an_update_is_rebuilt_and_not_asked_again(tmp_path: Path) -> None:
    pool = Pass(tmp_path, []).pool
    pool.samplers(Weights(str(tmp_path), "first"))
    pool.samplers(Weights(str(tmp_path), "broken-once"))
    processes = [path.name.rpartition("-")[2] for path in tmp_path.glob("load-broken-once-*")]
    assert len(set(processes)) == 2, "the second load went to another process"
    with pytest.raises(StageError, match=f"half of the weights.*{MOST_FAILURES} engines failed"):
        pool.samplers(Weights(str(tmp_path), "broken"))
    assert len(list(tmp_path.glob("load-broken-[0-9]*"))) == MOST_FAILURES
    pool.close()


@pytest.mark.parametrize("shape", ["colocated", "split"])
def test_engines_and_scorers_that_share_their_devices_rest_while_the_others_work(tmp_path: Path, shape: str) -> None:
    done = Pass(tmp_path, [], prompts=SHARD * 12, shape=shape, waiting_shards=2).run()
    assert done.answers() == done.expected()
    assert (tmp_path / BESIDE_AN_ENGINE).exists() == (shape == "split")
    assert (tmp_path / BESIDE_A_SCORER).exists() == (shape == "split")
    done.pool.samplers(Weights(str(tmp_path), None))
    done.pool.scorers()
    done.pool.rest()
    assert not (tmp_path / AWAKE).exists() or shape == "split", "learners find all devices free"
    done.pool.close()


def test_a_scorer_that_tried_prompts_alone_rests_before_sampling_goes_on(tmp_path: Path) -> None:
    done = Pass(tmp_path, ["poison scorer"], prompts=SHARD * 3, shape="colocated", waiting_shards=1, wait_seconds=300.0)
    done.run()
    assert done.answers() == done.expected(without=("p0",))
    assert not (tmp_path / BESIDE_A_SCORER).exists() and not (tmp_path / BESIDE_AN_ENGINE).exists()


def test_scorers_look_for_room_although_samplers_have_just_found_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = {"sampler": 1, "scorer": 1}
    monkeypatch.setattr(pool_module, "processes_now", lambda role, wanted: room[role])
    pool = Pass(tmp_path, [], samplers=2, scorers=2).pool
    assert [len(pool.workers(role)) for role in room] == [1, 1]
    room["scorer"] = 2
    later = time.monotonic() + pool_module.LOOK_SECONDS
    monkeypatch.setattr(pool_module, "time", SimpleNamespace(monotonic=lambda: later))
    assert [len(pool.workers(role)) for role in room] == [1, 2]
    pool.close()


def test_an_engine_holds_enough_shards_to_be_full_and_two_more(tmp_path: Path) -> None:
    pool = Pass(tmp_path, []).pool
    assert shards_in_flight(pool) == 3, "4 prompts x 2 answers fill 8 places"
