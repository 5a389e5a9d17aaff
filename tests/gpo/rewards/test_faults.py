"""`gpo reward train` whose workers or driver die or stand still: no bit is lost, and no wait is without end.

Run: python -m pytest tests/gpo/rewards/test_faults.py -m long     (`make kill`)
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.gpo.rewards.test_training import DEEPSPEED
from tests.gpo.rewards.workplace import environment, make_workplace
from tests.reward.training_data import same_weights

pytestmark = pytest.mark.long
LONGER = ("epochs=20", "evaluate_steps=10")
"""So many steps that there is time between their files."""
SECONDS = 280


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("faults")
    make_workplace(made)
    return made


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Callable[..., Path]:
    """What a training leaves that nobody disturbs; each set of overrides is trained once."""
    made: dict[tuple[str, ...], Path] = {}

    def train(*overrides: str) -> Path:
        if overrides not in made:
            output = folder / f"undisturbed-{len(made)}"
            driver = start(folder, output, *overrides)
            _, said = driver.communicate(timeout=SECONDS)
            assert driver.returncode == 0, said
            made[overrides] = output
        return made[overrides]

    return train


def start(folder: Path, output: Path, *overrides: str) -> "subprocess.Popen[str]":
    words = ["reward", "train", "config.yaml", f"output={output.name}", *LONGER, *overrides]
    beside = DEEPSPEED if any("zero" in word for word in overrides) else None
    command = [sys.executable, "-m", "gpo", *words]
    return subprocess.Popen(command, cwd=folder, env=environment(beside), stderr=subprocess.PIPE, text=True)


def workers_of(driver: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Those that live; others of Ray's processes come and go."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
    return found


def wait_for(moment: Callable[[Path], bool], output: Path, driver: "subprocess.Popen[str]") -> psutil.Process:
    """Look as often as a step of the tiny model takes, until there is a worker to look at too; returns the last one."""
    until = time.monotonic() + SECONDS
    while not (moment(output) and (workers := workers_of(driver))):
        assert driver.poll() is None and time.monotonic() < until, f"the moment {moment.__name__} never came"
        time.sleep(0.002)
    return workers[-1]


def starting(output: Path) -> bool:
    """As soon as there is one."""
    return True


def stepping(output: Path) -> bool:
    """A step is logged, and no checkpoint is whole."""
    return (output / "training/metrics.jsonl").is_file()


def saving(output: Path) -> bool:
    """A step checkpoint is being written."""
    return any(not (path / "whole.json").is_file() for path in (output / "training/steps").glob("checkpoint-*"))


def saved(output: Path) -> bool:
    """A step checkpoint is whole, and most of the training is still to come."""
    return any((output / "training/steps").glob("checkpoint-*/whole.json"))


def evaluating(output: Path) -> bool:
    """The first evaluation is over, and its model is kept or about to be."""
    path = output / "training/metrics.jsonl"
    return path.is_file() and "eval_loss" in path.read_text("utf-8")


def late(output: Path) -> bool:
    """Little is left."""
    return any(int(path.name.rpartition("-")[2]) >= 36 for path in (output / "training/steps").glob("checkpoint-*"))


@pytest.mark.parametrize("moment", [starting, stepping, saving, saved, evaluating, late], ids=lambda one: one.__name__)
@pytest.mark.parametrize("overrides", [(), ("workers=2",), ("workers=2", "sharding=zero2")], ids="-".join)
def test_a_worker_that_is_killed_at_any_time_costs_no_bit(
    folder: Path, undisturbed: Callable[..., Path], moment: Callable[[Path], bool], overrides: tuple[str, ...]
) -> None:
    expected = undisturbed(*overrides)
    output = folder / "-".join(["killed", moment.__name__, *overrides]).replace("=", "-")
    driver = start(folder, output, *overrides)
    try:
        wait_for(moment, output, driver).send_signal(signal.SIGKILL)
        _, said = driver.communicate(timeout=SECONDS)
    finally:
        driver.kill()
    assert driver.returncode == 0, said
    assert same_weights(output, expected)


def test_a_killed_driver_goes_on_when_started_again(folder: Path, undisturbed: Callable[..., Path]) -> None:
    expected = undisturbed()
    driver = start(folder, folder / "again")
    try:
        wait_for(saved, folder / "again", driver)
    finally:
        driver.kill()
    driver.communicate()
    again = start(folder, folder / "again")
    _, said = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, said
    assert same_weights(folder / "again", expected)


def test_a_worker_that_stands_still_is_waited_for_so_long_and_no_longer(
    folder: Path, undisturbed: Callable[..., Path]
) -> None:
    expected = undisturbed("workers=2")
    output = folder / "stopped"
    driver = start(folder, output, "workers=2", "cluster.wait_seconds=30")
    try:
        victim = wait_for(stepping, output, driver)
        victim.suspend()
        stopped = time.monotonic()
        _, said = driver.communicate(timeout=SECONDS)
        took = time.monotonic() - stopped
    finally:
        driver.kill()
    assert 25 < took < 90 and not victim.is_running()
    # The other worker waits as long, and when it is first the group is started again.
    assert driver.returncode in (0, 1)
    if driver.returncode == 1:
        assert "no step, nor any other sign of the workers, within 30 s (cluster.wait_seconds)" in said
    again = start(folder, output, "workers=2")
    _, said = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, said
    assert same_weights(output, expected)
