"""Ctrl-C and SIGTERM end a run with their own status, say how to go on, and leave no process behind."""

import json
import signal
import subprocess

import psutil
import pytest

from tests.e2e.test_kill import gone
from tests.e2e.tiny_run import command, environment, journal, make_workplace, wait_until


@pytest.mark.parametrize(
    ("number", "status", "moment"),
    [(signal.SIGINT, 130, "train"), (signal.SIGTERM, 143, "generate")],
    ids=["interrupt-in-training", "terminate-in-generation"],
)
def test_a_signal_ends_the_run_with_its_status_and_the_way_on(tmp_path, number, status, moment):
    config, out = make_workplace(tmp_path), tmp_path / "out"
    process = subprocess.Popen(
        command(config, out, "iterations=1"),
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: [line for line in journal(out) if line.get("stage") == moment], process, f"stage {moment}")
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == status, printed
    assert "the same command goes on" in printed and "Traceback" not in printed
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    assert all(gone(child) for child in below), "processes are left running"
