"""A proof that cannot run fails: what the default suite skips is a failure under GPO_PROOF=1, which its targets set.

Run: python -m pytest tests/proof/test_no_skips.py
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.tiny_run import REPOSITORY

PLAIN_SUITE = {"test"}
"""Targets whose tests may be skipped where a machine lacks what they need."""
SKIPS = {
    "a mark": "import pytest\n@pytest.mark.skipif(True, reason='no rain')\ndef test_a(): pass\n",
    "a whole file": "import pytest\npytest.skip('no rain', allow_module_level=True)\n",
    "an import": "import pytest\ndef test_a(): pytest.importorskip('no_rain', reason='no rain')\n",
    "a fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip('no rain')\ndef test_a(f): pass\n",
}


def run(folder: Path, source: str, proof: str) -> subprocess.CompletedProcess[str]:
    """pytest of a file elsewhere with the hooks of this suite."""
    test = folder / "test_planted.py"
    test.write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GPO_PROOF": proof}
    words = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-q", "-rs", "--rootdir", folder, test]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words], env=environment, cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS)
def test_what_is_skipped_elsewhere_fails_in_a_proof_with_the_reason(tmp_path: Path, source: str) -> None:
    elsewhere = run(tmp_path, source, "0")
    assert elsewhere.returncode in (0, 5) and "1 skipped" in elsewhere.stdout, elsewhere.stdout
    proof = run(tmp_path, source, "1")
    assert proof.returncode in (1, 2) and "must run and not be left out" in proof.stdout, proof.stdout
    assert "no rain" in proof.stdout and "skipped" not in proof.stdout.splitlines()[-1]


def test_what_passes_or_is_expected_to_fail_is_left_as_it_is(tmp_path: Path) -> None:
    expected = "import pytest\n@pytest.mark.xfail(reason='no rain')\ndef test_a(): assert False\ndef test_b(): pass\n"
    done = run(tmp_path, expected, "1")
    assert done.returncode == 0 and "1 passed, 1 xfailed" in done.stdout, done.stdout


def test_every_make_target_that_proves_by_tests_allows_no_skip() -> None:
    text = (REPOSITORY / "Makefile").read_text("utf-8").replace("\\\n", " ")
    found = {}
    for target, recipe in re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", text, re.MULTILINE):
        lines = [line for line in recipe.splitlines() if "-m pytest" in line]
        if lines:
            found[target] = all("GPO_PROOF=1" in line for line in lines)
    assert {"kill", "cluster", "browser", "trackio", "vllm-judge", "alpaca-eval"} <= found.keys()
    assert {target for target, proves in found.items() if not proves} == PLAIN_SUITE


def test_a_proof_without_its_program_ends_with_status_1() -> None:
    recipes = re.findall(r"^\t@command -v .*$", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)
    missing = [line for line in recipes if "set-up" not in line]
    assert len(missing) == 2 and all("exit 1" in line for line in missing)
