"""The alpaca-eval package reads our files and computes our numbers. Run: make alpaca-eval

The package cannot share an environment with this project, so it is asked in a process of its own environment, whose
Python the Make target names in ALPACA_EVAL_PYTHON.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gpo.evaluation.judge_template import read_template
from tests.gpo.command_line import gpo
from tests.gpo.evaluation.planted_lengths import planted, write_planted
from tests.gpo.evaluation.small_evaluation import answers, make_gpm, read, write_answers

THEIRS = Path(__file__).parent / "theirs.py"
PYTHON = os.environ.get("ALPACA_EVAL_PYTHON")

pytestmark = pytest.mark.skipif(not PYTHON, reason="needs an environment with alpaca-eval: make alpaca-eval")


def theirs(*words: str | Path) -> Any:
    assert PYTHON is not None
    done = subprocess.run(
        [Path(PYTHON).absolute(), "-W", "ignore", THEIRS, *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agreement")


@pytest.fixture(scope="module")
def ours(folder: Path) -> Path:
    """A `gpo eval` with difficulties and gamed rows over 200 prompts."""
    make_gpm(folder)
    for name in ("baseline", "outputs"):
        write_answers(folder, name, answers(name, 200))
    difficulties, gamed = write_planted(folder)
    files = ("--outputs", folder / "outputs.json", "--baseline", folder / "baseline.json")
    lengths = ("--difficulties", difficulties, "--gamed", gamed)
    found = gpo(folder, "eval", *files, *lengths, "--judge", f"gpm:{folder / 'gpm'}", "--output", folder / "ours")
    assert found.status == 0, found
    assert "with instruction difficulties and gamed rows, as AlpacaEval 2's length_controlled_v1" in found.printed
    return folder / "ours"


def test_the_package_reads_our_files_and_finds_our_win_rate(folder: Path, ours: Path, tmp_path: Path) -> None:
    for path in (ours / "annotations.json", ours / "leaderboard.csv", folder / "outputs.json", folder / "baseline.json",
                 folder / "instruction_difficulty.csv", folder / "df_gamed.csv"):  # fmt: skip
        shutil.copy(path, tmp_path / path.name)
    found, own = theirs("read", tmp_path), read(ours / "metrics.json")
    assert own["n_judged"] == found["raw"]["n_total"] == 200
    for name in ("win_rate", "standard_error", "discrete_win_rate"):
        assert found["raw"][name] == pytest.approx(100 * own[name], abs=1e-12)
        # From what the package wrote again with ten digits.
        assert found["leaderboard"][name] == pytest.approx(100 * own[name], abs=1e-8)
    assert [found["raw"][name] for name in ("n_wins", "n_wins_base", "n_draws")] == [
        own[name] for name in ("n_wins", "n_wins_base", "n_draws")
    ]
    assert found["leaderboard"]["length_control"].endswith("as AlpacaEval 2's length_controlled_v1"), "our own column"
    rate, error = found["controlled"]["length_controlled_v1"]
    print(f"length-controlled: alpaca-eval {rate:.6f} %, gpo {100 * own['length_controlled_win_rate']:.6f} %")
    assert rate == pytest.approx(100 * own["length_controlled_win_rate"], abs=1e-3)
    assert error == pytest.approx(100 * own["length_controlled_standard_error"], abs=1e-3)


@pytest.mark.parametrize("seed", [8, 21, 34])
def test_the_length_controlled_fits_agree_on_planted_annotations(seed: int, tmp_path: Path) -> None:
    from gpo.evaluation.length_control import length_controlled

    rows = planted(seed)
    write_planted(tmp_path, seed)
    found = theirs("fit", tmp_path)
    given = {
        "length_controlled_v1": (rows.difficulty_N, rows.gamed),
        "length_controlled_noreg": (rows.difficulty_N, None),
        "length_controlled_minimal": (None, None),
    }
    for name, known in given.items():
        own = length_controlled(rows.win_N, rows.delta_len_N, *known)
        rate, _ = found["controlled"][name]
        print(f"seed {seed}, {name}: alpaca-eval {rate:.6f} %, gpo {100 * own.win_rate:.6f} %")
        assert rate == pytest.approx(100 * own.win_rate, abs=1e-3), "the limit of the issue is 0.1"


def test_our_template_asks_what_theirs_asks() -> None:
    pair = ("What is {x}?", 'A "quoted"\nanswer', "Another {answer}")
    assert theirs("prompt", *pair) == read_template().messages(*pair)
