"""A Ray of our own: SIGTERM while it starts and runs, whose handlers of its own would exit; no metrics, little memory.

Run: python -m pytest tests/gpo/cluster/test_starting_ray.py
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from gpo import interrupts
from gpo.cluster import runtime
from gpo.cluster.ray_environment import ALONE
from gpo.config import ClusterConfig
from gpo.errors import UserError
from tests.e2e.tiny_run import environment


@pytest.fixture
def own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    interrupts.received.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_handlers")
def test_a_sigterm_while_ray_starts_is_an_interrupt_and_not_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts.install()

    def starting(_cluster: ClusterConfig) -> None:
        # As Ray does it in node.py and worker.py.
        ray._private.utils.set_sigterm_handler(lambda number, _frame: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runtime, "_start_or_join", starting)
    with pytest.raises(KeyboardInterrupt), runtime.ray_alone(ClusterConfig()):
        pytest.fail("the run began")
    assert interrupts.terminated()


def test_ray_2_60_takes_sigterm_by_the_one_name_that_is_replaced() -> None:
    assert ray.__version__.startswith("2.60.")
    for module in (ray._private.node, ray._private.worker):
        text = Path(str(module.__file__)).read_text("utf-8")
        assert "ray._private.utils.set_sigterm_handler(sigterm_handler)" in text and "signal.signal(" not in text


def test_a_ray_of_our_own_collects_no_metrics_that_nobody_would_read() -> None:
    """Ray 2.60: with them the agent that gets them grew by 0.5 MiB an iteration of a run."""
    script = (
        "from gpo.cluster.runtime import ray_alone\nfrom gpo.config import ClusterConfig\n"
        "with ray_alone(ClusterConfig()):\n"
        "    import ray\n    print(ray.nodes()[0]['MetricsExportPort'])"
    )
    run = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["-1"], run.stderr


def test_the_gcs_of_a_ray_of_our_own_keeps_freed_memory_in_one_place() -> None:
    """Ray 2.60 loads its jemalloc into the GCS and hands options only to what is said to be profiled."""
    script = (
        "import psutil\nfrom pathlib import Path\nfrom gpo.cluster.runtime import ray_alone\n"
        "from gpo.config import ClusterConfig\n"
        "with ray_alone(ClusterConfig()):\n"
        "    for child in psutil.Process().children(recursive=True):\n"
        "        if child.name() == 'gcs_server':\n"
        "            print('libjemalloc' in Path(f'/proc/{child.pid}/maps').read_text())\n"
        "            print(child.environ()['MALLOC_CONF'])"
    )
    run = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["True", ALONE["RAY_JEMALLOC_CONF"]], run.stderr


def test_an_interrupt_may_take_longer_than_the_three_seconds_of_rays_own_handler() -> None:
    """Ray 2.60: a handler in C that sets an alarm and aborts with it (ray-project/ray pull request 64830)."""
    script = (
        "import os, signal, time\nfrom gpo import interrupts\nfrom gpo.cluster.runtime import ray_alone\n"
        "from gpo.config import ClusterConfig\ninterrupts.install()\n"
        "def end(what):\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        time.sleep(4)\n        print(what)\n"
        "with ray_alone(ClusterConfig()):\n    end('within')\nend('behind')\n"
        "signal.alarm(1)\nend('with an alarm')"
    )
    run = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.splitlines()) == (0, ["within", "behind", "with an alarm"]), run.stderr
    assert "SIGTERM received" not in run.stderr


def test_a_path_without_bash_is_told_before_ray_starts_whose_workers_would_never_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no bash"), runtime.ray_alone(ClusterConfig()):
        pytest.fail("Ray was started")
    assert not ray.is_initialized()
