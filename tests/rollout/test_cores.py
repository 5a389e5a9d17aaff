"""Two engines on one machine never bind the same cores.

Run: python -m pytest tests/rollout/test_cores.py
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gpo.cluster.runtime import make_actor, ray_session
from rollout.cores import FOLDER_VARIABLE
from rollout.engine_settings import EngineSettings
from rollout.sampler import Sampler
from tests.gpo.small_runs import run_config
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[2]
CLAIM = (
    "import sys, os\nfrom rollout.cores import claim_cores\ncores = claim_cores(int(sys.argv[1]), float(sys.argv[2]))\n"
)
CORES = len(os.sched_getaffinity(0))
needs_two = pytest.mark.skipif(CORES < 2, reason="this machine has one core")


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "locks"))


def claim(count: int, wait: float, then: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CLAIM + then, str(count), str(wait)]
    return subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


SAY_AND_WAIT = "print(cores, sorted(os.sched_getaffinity(0)) == cores, flush=True)\nsys.stdin.read()\n"


@needs_two
def test_claims_are_disjoint_bind_the_process_and_end_with_it_however_it_ends() -> None:
    first, second = claim(1, 5, SAY_AND_WAIT), claim(1, 5, SAY_AND_WAIT)
    found = [line(first), line(second)]
    assert len(set(found)) == 2 and all(text.endswith("True") for text in found)
    third = claim(CORES, 0.5, "print(cores, len(os.sched_getaffinity(0)), flush=True)\n")
    assert line(third) == f"[] {CORES}", "not enough are free: unbound, not shared"
    first.kill()
    first.wait()
    fourth = claim(1, 5, SAY_AND_WAIT)
    assert line(fourth) == found[0]
    for process in (second, third, fourth):
        process.kill()
        process.wait()


@pytest.fixture()
def _ray(tmp_path: Path) -> Iterator[None]:
    with ray_session(run_config(cluster={"samplers": 2, "threads": 1}), tmp_path):
        yield


@needs_two
def test_two_engines_in_ray_actors_have_all_their_threads_on_cores_of_their_own(tmp_path: Path, _ray: None) -> None:
    import ray

    model = save_tiny_model(tmp_path / "model")
    settings = EngineSettings(max_model_len=64, threads=1, dtype="float32")
    actors = [make_actor(Sampler, settings, threads=1, role="sampler") for _ in range(2)]
    ray.get([actor.load.remote(str(model), None) for actor in actors], timeout=300)
    claimed = [set(cores) for cores in ray.get([actor.cores.remote() for actor in actors], timeout=60)]
    assert all(len(cores) == 1 for cores in claimed) and not claimed[0] & claimed[1]
    samplers = [p for p in psutil.Process().children(recursive=True) if "ray::Sampler" in " ".join(p.cmdline())]
    assert len(samplers) == 2
    bound = []
    for process in samplers:
        threads = [os.sched_getaffinity(thread.id) for thread in process.threads()]
        assert all(cores == threads[0] for cores in threads), "a thread of the engine is bound elsewhere"
        bound.append(threads[0])
    assert sorted(map(sorted, bound)) == sorted(map(sorted, claimed))
