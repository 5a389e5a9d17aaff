"""Two real engines side by side: cores of their own, and the same tokens however the work is cut up.

Run: python -m pytest tests/rollout/test_engines.py
"""

import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from gpo.cluster.runtime import make_actor, ray_session
from rollout.cores import FOLDER_VARIABLE
from rollout.engine import SampleRequest, Sampling
from rollout.engine_settings import EngineSettings
from rollout.sampler import Sampler
from rollout.seeds import request_seed
from tests.gpo.small_runs import run_config
from tests.tiny import save_tiny_model

SAMPLES, LONGEST, SECONDS = 3, 24, 300
pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine has one core")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    import ray

    folder = tmp_path_factory.mktemp("engines")
    model = save_tiny_model(folder / "model")
    settings = EngineSettings(max_model_len=64, threads=1, dtype="float32")
    patch = pytest.MonkeyPatch()
    patch.setenv(FOLDER_VARIABLE, str(folder / "locks"))
    with ray_session(run_config(cluster={"samplers": 2, "threads": 1}), folder, "a run"):
        actors = [make_actor(Sampler, settings, threads=1, role="sampler") for _ in range(2)]
        ray.get([actor.load.remote(str(model), None) for actor in actors], timeout=SECONDS)
        yield actors
    patch.undo()


def test_all_threads_of_an_engine_are_on_cores_of_its_own(engines: list[Any]) -> None:
    import ray

    claimed = [set(cores) for cores in ray.get([actor.cores.remote() for actor in engines], timeout=60)]
    assert all(len(cores) == 1 for cores in claimed) and not claimed[0] & claimed[1]
    samplers = [p for p in psutil.Process().children(recursive=True) if "ray::Sampler" in " ".join(p.cmdline())]
    assert len(samplers) == 2
    bound = []
    for process in samplers:
        threads = [os.sched_getaffinity(thread.id) for thread in process.threads()]
        assert all(cores == threads[0] for cores in threads), "a thread of the engine is bound elsewhere"
        bound.append(threads[0])
    assert sorted(map(sorted, bound)) == sorted(map(sorted, claimed))


def requests(run_seed: int = 0) -> list[SampleRequest]:
    """Prompts of 2 to 25 tokens."""
    return [
        SampleRequest(f"p{n}", [{"role": "user", "content": "?"}], [1 + n, *range(2, 2 + 2 * n)], seed)
        for n, seed in ((n, request_seed(run_seed, 1, f"p{n}")) for n in range(12))
    ]


def answers(asked: list[tuple[Any, list[SampleRequest]]], samples: int = SAMPLES) -> dict[str, list[list[int]]]:
    """Token ids by prompt; all calls are in flight together."""
    import ray

    sampling = Sampling(samples=samples, max_tokens=LONGEST)
    calls = [actor.sample.options(num_returns=2).remote(part, sampling) for actor, part in asked]
    found = {}
    for rows, _ in calls:
        found.update({row.prompt_id: row.completion_ids for row in ray.get(rows, timeout=SECONDS)})
    return found


def test_the_same_request_gets_the_same_tokens_whatever_the_sharding_order_pool_and_company(engines: list[Any]) -> None:
    first, second = engines
    wanted = requests()
    together = answers([(first, wanted)])
    assert len({tuple(ids) for one in together.values() for ids in one}) > 30, "sampled, not greedy"
    assert answers([(first, wanted)]) == together, "again, and with the prompts' prefixes in the cache"
    assert answers([(second, wanted[::-1])]) == together, "another process, in reverse"
    assert answers([(first, wanted[:5]), (second, wanted[5:7]), (first, wanted[7:])]) == together, (
        "three shards at once"
    )
    alone = {key: value for request in wanted[:4] for key, value in answers([(second, [request])]).items()}
    assert alone.items() <= together.items(), "without company"
    fewer = answers([(first, wanted)], samples=SAMPLES - 1)
    assert fewer == {prompt: ids[: SAMPLES - 1] for prompt, ids in together.items()}, "sample k has the seed + k"
    assert answers([(first, requests(run_seed=1))]) != together
