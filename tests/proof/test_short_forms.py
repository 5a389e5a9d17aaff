"""A case or so of the proofs that `make` runs in full, so that a default test run sees that they still work.

Run: python -m pytest tests/proof/test_short_forms.py
"""

import subprocess
import sys
from pathlib import Path

from gpo.files import read_json_lines
from tests.e2e.tiny_run import REPOSITORY, environment
from tests.proof.fuzz_targets import TARGETS


def test_fuzzing_finds_no_fault_in_a_case_of_every_target(tmp_path: Path) -> None:
    log = tmp_path / "fuzz.jsonl"
    # Seed 0 would also start a command for each target.
    words = ["--cases", str(len(TARGETS)), "--first-seed", "1", "--log", str(log)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.proof.fuzz", *words],
        env=environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = read_json_lines(log)
    assert {line["target"] for line in lines} == set(TARGETS) and len(lines) == len(TARGETS)
    assert any(line["wrong"] for line in lines)
