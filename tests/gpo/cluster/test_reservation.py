"""Places on a real local Ray of four CPUs: what is reserved, what is told when it is too small, and how pools grow.

Run: python -m pytest tests/gpo/cluster/test_reservation.py
"""

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gpo.cluster import node_files
from gpo.cluster.placement import Demand
from gpo.cluster.ray_environment import QUIET
from gpo.cluster.reservation import Reservation, cluster_nodes
from gpo.cluster.runtime import end_actor, make_actor
from gpo.cluster.worker_room import WorkerRoom
from gpo.errors import StageError, UserError
from tests.gpo.small_runs import run_config

CPUS = 4


class Sleeper:
    """A process that does nothing."""

    def here(self) -> str:
        return "here"


@pytest.fixture(scope="module", autouse=True)
def a_local_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        import ray

        ray.init(
            address="local",
            num_cpus=CPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 << 20,
            _node_ip_address="127.0.0.1",
        )
        yield
        ray.shutdown()


def reserve(seconds: float = 2.0, workers: int = 1, **cluster: Any) -> Reservation:
    values = {"sampler_cpus": 1, "placement_seconds": seconds, **cluster}
    return Reservation(run_config(cluster=values, train={"workers": workers}))


def give_back(reservation: Reservation) -> None:
    from ray.util.placement_group import remove_placement_group

    for group in {place.group for place in reservation._places}:
        remove_placement_group(group)
    await_free(CPUS)


def await_free(cpus: float) -> None:
    """Until Ray tells so many free CPUs: a report of its node, sent before the last change, may come after it."""
    end = time.monotonic() + 20
    while abs(free_cpus() - cpus) > 0.001:
        assert time.monotonic() < end, f"{free_cpus()} CPUs are free, not {cpus}"
        time.sleep(0.1)


def free_cpus() -> float:
    return cluster_nodes()[0].free.get("CPU", 0)


def test_too_small_a_cluster_is_told_at_once_and_ends_at_the_deadline(caplog: pytest.LogCaptureFixture) -> None:
    began, started = time.time(), time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(UserError) as caught:
        reserve(samplers=5)
    assert 2 <= time.monotonic() - started < 10
    told = caplog.records[0]
    assert "waiting up to 2 s more" in told.message and told.created - began < 1.5
    message = str(caught.value)
    assert "5 samplers of 1 CPU each: the cluster has room for 4, and for 4 of them now" in message
    assert f"node {cluster_nodes()[0].address}: 4 of 4 CPU free" in message
    assert "cluster.placement_seconds" in message


def test_places_are_held_by_actors_and_free_again_behind_them() -> None:
    import ray

    reservation = reserve(samplers=2)
    try:
        await_free(CPUS - 2 - 0.01)  # held before any actor
        actors = []
        for _ in range(2):
            place = reservation.take("sampler")
            actors.append(ray.remote(Sleeper).options(**place.actor_options()).remote())
            reservation.hold(place, actors[-1])
        assert ray.get([actor.here.remote() for actor in actors], timeout=60) == ["here", "here"]
        with pytest.raises(StageError, match="after 2 s"):
            reservation.take("sampler")
        reservation.leave(actors[0])
        end_actor(actors[0])
        assert reservation.take("sampler") is not None
        end_actor(actors[1])
    finally:
        give_back(reservation)


def test_a_process_without_a_place_of_its_own_runs_beside_a_cluster_that_is_full() -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    everything = placement_group([{"CPU": float(CPUS)}])
    assert everything.wait(30)
    try:
        actor = make_actor(Sleeper, threads=1)
        assert ray.get(actor.here.remote(), timeout=120) == "here"
        end_actor(actor)
    finally:
        remove_placement_group(everything)


def test_workers_that_ray_train_placed_lack_nothing_and_others_are_told() -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    earlier = placement_group([{"CPU": 3.0}])
    assert earlier.wait(30)
    await_free(CPUS - 3)
    room = WorkerRoom(Demand("learner", 2, 2, {"CPU": 1.0}))
    try:
        assert "2 learners of 1 CPU each: the cluster has room for 2, and for 1 of them now" in str(room.missing())
        remove_placement_group(earlier)
        workers = placement_group([{"CPU": 2.0}] * 2)
        assert workers.wait(30) and room.missing() is None
        remove_placement_group(workers)
    finally:
        remove_placement_group(earlier)


def test_a_stream_that_falls_silent_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def count(seconds: float) -> Iterator[int]:
        yield 0
        yield 1
        time.sleep(seconds)

    node = cluster_nodes()[0].node_id

    def found(seconds: float) -> list[int]:
        references = node_files._task(node, count, num_returns="streaming").remote(seconds)
        return [ray.get(reference) for reference in node_files._stream(references, node)]

    assert found(0) == [0, 1]
    monkeypatch.setattr(node_files, "COPY_SECONDS", 2.0)
    with pytest.raises(StageError, match="sends nothing for 2 s"):
        found(60)


def test_a_pool_with_a_least_number_starts_small_and_grows_when_there_is_room() -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    other = placement_group([{"CPU": 2.0}])
    assert other.wait(30)
    await_free(CPUS - 2)
    reservation = reserve(samplers=4, least_samplers=1)
    try:
        before = reservation.processes("sampler")
        assert before == 1, "what is left holds the learner, and no whole CPU beside the scorer"
        remove_placement_group(other)
        end = time.monotonic() + 30
        while reservation.processes("sampler") == before and time.monotonic() < end:
            time.sleep(0.2)
        assert reservation.processes("sampler") > before
    finally:
        give_back(reservation)


def test_learners_wait_for_room_of_their_own_and_say_what_is_missing() -> None:
    reservation = reserve(samplers=1, learner_cpus=1, workers=2)
    try:
        reservation.wait_for_learners()
        from ray.util.placement_group import placement_group, remove_placement_group

        other = placement_group([{"CPU": 2.0}])
        assert other.wait(30)
        await_free(CPUS - 3 - 0.01)
        with pytest.raises(StageError, match="2 learners of 1 CPU each: the cluster has room for 2, and for 0 of them"):
            reservation.wait_for_learners()
        remove_placement_group(other)
    finally:
        give_back(reservation)
