"""The closing table and the samples in a terminal, from a planted run directory.

Run: python -m pytest tests/gpo/test_terminal.py
"""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpo.files import write_json
from gpo.journal import RunDirectory
from gpo.printable import printable, printable_lines
from gpo.report.terminal import SHOWN_CHARACTERS, closing_table, samples_before_and_after

NASTY = "\x1b[2J\x1b]0;owned\x07\x1b[31mred\r\x9b1mcsi\u202eright to left\u2066\x00\x7f"


def plant_evaluation(directory: RunDirectory, iteration: int, rate: float, judges: tuple[str, ...] = ("gpm",)) -> None:
    for number, stage in enumerate(("generate", "train", "publish", "evaluate")):
        directory.record("begin", stage=stage, iteration=iteration)
        directory.record("stage", stage=stage, iteration=iteration, seconds=10.0 * iteration + number)
    entry = {"win_rate": rate, "ci95": [rate - 0.1, rate + 0.1], "n_prompts": 4}
    write_json(
        directory.evaluation(iteration),
        {
            "iteration": iteration,
            "judges": {judge: {"vs_start": entry, "vs": {}} for judge in judges},
            "length_tokens": 31.25,
            "ended_share": 0.5,
            "kl_nats_per_answer": 1.234,
            "cyclic_share": 0.1,
        },
    )


def plant_answers(directory: RunDirectory, iteration: int, *answers: tuple[str, str, str]) -> None:
    prompts = [
        {
            "prompt": [{"role": "system", "content": "hidden"}, {"role": "user", "content": prompt}],
            "completion": [answer, "second"],
            "finish_reason": [reason, "stop"],
        }
        for prompt, answer, reason in answers
    ]
    write_json(directory.heldout(iteration), {"format_version": 1, "prompts": prompts})


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_the_table_has_a_row_an_iteration_with_rates_intervals_and_seconds(directory: RunDirectory) -> None:
    plant_evaluation(directory, 1, 0.55, ("gpm", "oracle"))
    plant_evaluation(directory, 2, 0.615, ("gpm", "oracle"))
    header, first, second = closing_table(directory).splitlines()
    assert "gpm win rate vs start" in header and "oracle win rate vs start" in header
    assert first.split() == "1 55.0% [45.0%, 65.0%] 55.0% [45.0%, 65.0%] 31.2 50% 1.23 10 11 12 13".split()
    assert second.split()[:4] == ["2", "61.5%", "[51.5%,", "71.5%]"]
    assert len(header) == len(first) == len(second)


def test_a_run_without_a_finished_iteration_says_so(directory: RunDirectory) -> None:
    assert closing_table(directory) == "no iteration is finished yet"
    directory.record("begin", stage="evaluate", iteration=1)
    assert closing_table(directory) == "no iteration is finished yet"


def test_an_iteration_that_is_still_evaluated_is_no_row_yet(directory: RunDirectory) -> None:
    plant_evaluation(directory, 1, 0.5)
    write_json(directory.evaluation(2), json.loads(directory.evaluation(1).read_text()) | {"iteration": 2})
    assert len(closing_table(directory).splitlines()) == 2


def test_samples_stand_below_their_prompt_and_a_cut_answer_says_so(directory: RunDirectory) -> None:
    plant_answers(directory, 0, ("Name a sea.", "The North\nSea.", "stop"), ("Two?", "No", "stop"))
    plant_answers(directory, 3, ("Name a sea.", "Baltic, and", "length"), ("Two?", "Yes", "stop"))
    assert samples_before_and_after(directory, 3).splitlines() == [
        "Prompt: Name a sea.",
        "  before: The North Sea.",
        "  after:  Baltic, and [cut at the token limit]",
        "Prompt: Two?",
        "  before: No",
        "  after:  Yes",
    ]
    assert len(samples_before_and_after(directory, 3, count=1).splitlines()) == 3


def test_a_long_answer_is_shortened(directory: RunDirectory) -> None:
    plant_answers(directory, 0, ("p", "x" * 1000, "stop"))
    plant_answers(directory, 1, ("p", "y" * SHOWN_CHARACTERS, "stop"))
    _, before, after = samples_before_and_after(directory, 1).splitlines()
    assert before == "  before: " + "x" * SHOWN_CHARACTERS + "..."
    assert after == "  after:  " + "y" * SHOWN_CHARACTERS


def controls(text: str) -> list[str]:
    """Control, format, surrogate and private characters and separators other than the space and our own newline."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and c != "\n"]


def test_nothing_a_model_says_can_steer_the_terminal(directory: RunDirectory) -> None:
    plant_answers(directory, 0, (NASTY, NASTY, "stop"))
    plant_answers(directory, 1, (NASTY, NASTY * 30, "length"))
    found = samples_before_and_after(directory, 1)
    assert controls(found) == [] and len(found.splitlines()) == 3
    assert "red" in found and "right to left" in found


def test_the_name_of_a_judge_cannot_steer_it_either(directory: RunDirectory) -> None:
    plant_evaluation(directory, 1, 0.5, (NASTY,))
    found = closing_table(directory)
    assert controls(found) == [] and len(found.splitlines()) == 2


@given(st.text(st.characters()) | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Zs"])))
def test_printable_text_is_one_line_without_control_characters(text: str) -> None:
    found = printable(text)
    assert controls(found) == [] and "\n" not in found
    assert found.isprintable()


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"])))
def test_plain_words_come_through_unchanged(word: str) -> None:
    assert printable(f"{word} \n {word}") == " ".join([word, word]).strip()


@given(st.text(st.characters()))
def test_printable_lines_keep_line_ends_and_nothing_else_that_steers(text: str) -> None:
    found = printable_lines(text)
    assert controls(found) == []
    assert found.count("\n") == text.expandtabs(4).strip("\n").count("\n")
