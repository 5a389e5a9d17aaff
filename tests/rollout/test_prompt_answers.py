"""The data set's own answers beside its prompts, and rows without text.

Run: python -m pytest tests/rollout/test_prompt_answers.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from rollout.errors import RolloutInputError
from rollout.prompts import load_prompts


def write(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


USER = {"role": "user", "content": "Why?"}


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"instruction": "Why?", "input": "", "output": "So."}, ("So.",)),
        ({"prompt": "Why?", "answers": ["So.", "Because.", "So.", " "]}, ("So.", "Because.")),
        ({"prompt": "Why?", "chosen": [USER, {"role": "assistant", "content": "So."}], "rejected": "No."}, ("So.",)),
        ({"messages": [USER, {"role": "assistant", "content": "So."}]}, ("So.",)),
        ({"messages": [USER]}, ()),
        ({"prompt": "Why?"}, ()),
    ],
)
def test_answers_are_found_where_data_sets_have_them(tmp_path: Path, row: dict[str, Any], answers: Any) -> None:
    (prompt,) = load_prompts(write(tmp_path, row), answers="auto").prompts
    assert prompt.answers == answers
    assert load_prompts(write(tmp_path, row)).prompts[0].answers == ()


def test_rows_that_repeat_a_prompt_add_their_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "mine": text} for text in ("a", "b", "a")]
    loaded = load_prompts(write(tmp_path, *rows), answers="mine")
    assert loaded.duplicates == 2 and loaded.prompts[0].answers == ("a", "b")


def test_a_named_column_that_is_not_there_or_holds_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RolloutInputError, match="no column 'mine'"):
        load_prompts(write(tmp_path, {"prompt": "Why?"}), answers="mine")
    with pytest.raises(RolloutInputError, match="must be text"):
        load_prompts(write(tmp_path, {"prompt": "Why?", "mine": 3}), answers="mine")


def test_rows_without_text_are_refused_by_number_or_counted(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "Why?"}, {"prompt": " "}, {"prompt": ""})
    with pytest.raises(RolloutInputError, match="row 2"):
        load_prompts(path)
    loaded = load_prompts(path, skip_empty=True)
    assert loaded.empty == 2 and len(loaded.prompts) == 1
