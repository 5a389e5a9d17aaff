"""Ctrl-C and SIGTERM end a run with their own status, say how to go on, and leave no process behind."""

import json
import signal
import subprocess

import psutil

from tests.e2e.test_kill import begun, gone
from tests.e2e.tiny_run import command, environment, make_workplace, wait_until


def test_signals_end_a_run_with_their_status_and_the_same_command_goes_on(tmp_path):
    config, out = make_workplace(tmp_path), tmp_path / "out"
    for number, status, moment in ((signal.SIGTERM, 143, "generate"), (signal.SIGINT, 130, "train")):
        process = subprocess.Popen(
            command(config, out, "iterations=1"),
            env=environment(),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda moment=moment: begun(moment, 1)(out), process, f"stage {moment}")
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, printed = process.communicate(timeout=60)
        assert process.returncode == status, printed
        assert "the same command goes on" in printed and "Traceback" not in printed
        assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
        assert all(gone(child) for child in below), "processes are left running"
