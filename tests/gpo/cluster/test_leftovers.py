"""Workers that hang in their exit end with the Ray that they were of."""

import subprocess
import sys

from gpo.cluster.leftovers import end_leftovers, workers_of_ray

STAND_IN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("there", flush=True)
while True:
    time.sleep(60)
"""


def stand_in(title: str) -> "subprocess.Popen[bytes]":
    """A process of that title which no SIGTERM ends."""
    return subprocess.Popen(["bash", "-c", f"exec -a {title} {sys.executable} -c '{STAND_IN}'"], stdout=subprocess.PIPE)


def test_a_worker_of_ray_that_outlives_it_is_killed_and_no_other_process() -> None:
    worker, other = stand_in("ray::TrainController"), stand_in("python")
    try:
        for process in (worker, other):
            assert process.stdout is not None and process.stdout.readline() == b"there\n"
        found = workers_of_ray()
        assert {process.pid for process in found} >= {worker.pid} and other.pid not in {one.pid for one in found}
        end_leftovers(found, seconds=0.3)
        assert not any(one.is_running() for one in found) and other.poll() is None
        assert not {process.pid for process in workers_of_ray()} & {one.pid for one in found}
    finally:
        for process in (worker, other):
            process.kill()
            process.communicate(timeout=10)
