"""The library that makes a wall clock jump: what waits until a time of that clock waits as long as it should.

Run: python -m pytest tests/proof/test_preloaded.py
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.tiny_run import environment
from tests.proof.preloaded import build

WAITS = """
import ctypes, time
libc = ctypes.CDLL(None)
mutex, condition, semaphore, word = (ctypes.create_string_buffer(128) for _ in range(4))
libc.pthread_mutex_lock(mutex)
deadline = (ctypes.c_long * 2)()
FUTEX, WAIT_BITSET_PRIVATE_BY_THE_WALL_CLOCK, ANY = map(ctypes.c_long, (202, 9 | 128 | 256, 0xFFFFFFFF))
waits = (
    lambda: libc.pthread_cond_timedwait(condition, mutex, deadline),
    lambda: libc.sem_timedwait(semaphore, deadline),
    lambda: libc.syscall(FUTEX, word, WAIT_BITSET_PRIVATE_BY_THE_WALL_CLOCK, ctypes.c_long(0), deadline, None, ANY),
)
for wait in waits:
    wall, begun = time.time(), time.monotonic()
    deadline[0], deadline[1] = int(wall + 0.5), int((wall + 0.5) % 1 * 1e9)
    wait()
    print(time.monotonic() - begun, wall)
"""


@pytest.mark.parametrize("jump", [0, -86_400, 86_400])
def test_a_wait_until_a_time_of_the_clock_that_jumped_is_as_long_as_it_should_be(jump: int, tmp_path: Path) -> None:
    """Ray 2.60 and Python wait so; behind a jump back each such thread would spin."""
    library, clock = tmp_path / "preloaded.so", tmp_path / "clock"
    build(library)
    clock.write_text(str(jump))
    run = subprocess.run(
        [sys.executable, "-c", WAITS],
        env=environment() | {"LD_PRELOAD": str(library), "GPO_PROOF_CLOCK": str(clock)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [tuple(map(float, line.split())) for line in run.stdout.splitlines()]
    assert len(lines) == 3 and all(0.4 < seconds < 5 for seconds, _ in lines), run.stdout
    real = clock.stat().st_mtime
    assert all(abs(wall - real - jump) < 60 for _, wall in lines)
