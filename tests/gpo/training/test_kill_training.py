"""A training killed with SIGKILL before, inside or behind any checkpoint ends with the weights of an undisturbed one.

Run: python -m pytest tests/gpo/training/test_kill_training.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.gpo.training.kill_main import PLACES, SCENARIOS


def test_a_training_killed_at_any_step_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpo.training.kill_main", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"trained"')]
    assert [(line["trained"], line["step"], line["place"]) for line in lines] == SCENARIOS
    for line in lines:
        assert line["killed"] == -9 and line["finished"] == 0, line
        # A checkpoint that was being written is not one: the training goes on from the one before.
        expected = line["step"] if line["place"] == PLACES[2] else line["step"] - 1
        assert line["resumed_from"] == expected, line
        assert line["same"], line
