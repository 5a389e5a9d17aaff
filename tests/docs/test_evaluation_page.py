"""docs/evaluation.md says what the code does: its commands are ones the parser takes, its constants are the code's.

Run: python -m pytest tests/docs/test_evaluation_page.py
"""

import re
import shlex
from pathlib import Path

import pytest

from gpo.cli import _parse
from gpo.evaluation import chat_client, length_control, pair_numbers, questions, watch
from gpo.evaluation.winrate import RESAMPLES

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text("utf-8")
COMMANDS = re.findall(r"^(gpo .*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_one_that_the_parser_takes(command: str) -> None:
    assert callable(_parse(shlex.split(command)[1:]).verb)


def test_the_page_has_commands_of_all_three_verbs() -> None:
    assert {command.split()[1] for command in COMMANDS} == {"generate", "eval", "tournament"}


def test_the_constants_of_the_page_are_those_of_the_code() -> None:
    assert f"{RESAMPLES:,} draws" in PAGE
    assert length_control.GAMED_WEIGHT == pytest.approx(0.1) and "0.1 = 0.2/2" in PAGE
    assert length_control.FOLDS == 5 and "five grouped folds" in PAGE
    assert (length_control.STRENGTHS[0], length_control.STRENGTHS[-1], len(length_control.STRENGTHS)) == (1e-4, 1e4, 10)
    assert pair_numbers.LENGTH_RATIOS == (0.5, 0.8, 1.25, 2.0)
    assert (chat_client.FIRST_PAUSE_SECONDS, chat_client.LONGEST_PAUSE_SECONDS) == (0.5, 30.0)
    assert questions.GIVE_UP_AFTER == 3 and "When the first three pairs all fail" in PAGE
    assert (watch.LARGEST_CORRELATION, watch.LARGEST_POINTS) == (0.5, 0.05)
