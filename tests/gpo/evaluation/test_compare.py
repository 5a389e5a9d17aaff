"""`gpo eval` on two files with a judge that is not asked, or refuses.

Run: python -m pytest tests/gpo/evaluation/test_compare.py
"""

from pathlib import Path
from unittest.mock import Mock

import pytest

from gpo.errors import UserError
from gpo.evaluation.compare import EvalRequest, evaluate_pair, prepare_comparison
from tests.gpo.evaluation.small_evaluation import answers, write_answers


def request(folder: Path, baseline: str, output: str = "out") -> EvalRequest:
    return EvalRequest(
        outputs=write_answers(folder, "mine"), baseline=write_answers(folder, baseline), output=folder / output
    )


def test_two_files_of_one_generator_are_refused(tmp_path: Path) -> None:
    same = EvalRequest(
        outputs=write_answers(tmp_path, "mine"),
        baseline=write_answers(tmp_path, "other", answers("mine")[::-1]),
        output=tmp_path / "out",
    )
    with pytest.raises(UserError, match=r"mine.json and .*other.json: both are by the generator 'mine'.*--name"):
        prepare_comparison(same)
    assert not same.output.exists()


def test_a_judge_that_refuses_leaves_nothing_of_an_earlier_start(tmp_path: Path) -> None:
    asked = request(tmp_path, "start")
    comparison = prepare_comparison(asked)
    for name in ("annotations.json", "leaderboard.csv", "metrics.json"):
        (asked.output / name).write_text("of an earlier start")
    with pytest.raises(UserError, match="the key is refused"):
        evaluate_pair(asked, comparison, Mock(**{"judge.side_effect": UserError("the key is refused")}))
    assert not list(asked.output.iterdir())


def test_an_output_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--output .*mine.json: cannot be made a folder"):
        prepare_comparison(request(tmp_path, "start", "mine.json"))
