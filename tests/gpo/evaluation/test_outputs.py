"""Answer files: what is read, what is paired, and what is refused with its row.

Run: python -m pytest tests/gpo/evaluation/test_outputs.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from gpo.errors import UserError
from gpo.evaluation.outputs import pair_rows, read_outputs
from tests.gpo.evaluation.small_evaluation import answers, write_answers


def write(folder: Path, *rows: Any, name: str = "a.json") -> Path:
    (folder / name).write_text(json.dumps(list(rows)), "utf-8")
    return folder / name


def test_a_file_of_alpaca_eval_is_read_as_it_is(tmp_path: Path) -> None:
    file = read_outputs(write_answers(tmp_path, "one"))
    assert file.generator == "one" and len(file.rows) == 12
    assert file.rows[0].messages == (("user", file.rows[0].instruction),)
    assert file.average_length == pytest.approx(sum(len(row["output"]) for row in answers("one")) / 12)
    assert file.rows[0].conversation("Be brief.")[0] == {"role": "system", "content": "Be brief."}


def test_a_prompt_of_several_turns_is_one_text_with_roles_for_a_judge_that_reads_one(tmp_path: Path) -> None:
    turns = [{"role": role, "content": text} for role, text in (("system", "Be brief."), ("user", "Hi."))]
    row = {"instruction": "Hi.", "output": "b"}
    plain, whole = read_outputs(write(tmp_path, row, {**row, "messages": turns})).rows
    assert (plain.asked, whole.asked) == ("Hi.", "[system]\nBe brief.\n\n[user]\nHi.")


def test_a_missing_generator_is_the_files_name_and_an_input_belongs_to_the_instruction(tmp_path: Path) -> None:
    path = write(tmp_path, {"instruction": "Add.", "input": "1 1", "output": "2"}, name="adder.json")
    file = read_outputs(path)
    assert file.generator == "adder" and file.rows[0].instruction == "Add.\n\n1 1"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"instruction": "a"}, "row 2: there is no `output`, only ['instruction']"),
        ({"instruction": "a", "output": 7}, "row 2: `output` is 7"),
        ({"instruction": "a", "output": "b", "input": 3}, "row 2: `input` is 3"),
        ({"instruction": "a", "output": "b", "messages": ["x"]}, "row 2: `messages` must be a list of objects"),
        ({"instruction": "a", "output": "\ud800"}, "row 2: `output` has half a surrogate pair"),
        (["a"], "row 2: expected an object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        read_outputs(write(tmp_path, {"instruction": "a", "output": "b"}, row))
    assert told in str(caught.value)


def test_an_empty_file_and_two_generators_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no row in it"):
        read_outputs(write(tmp_path))
    with pytest.raises(UserError, match=r"answers of 2 generators \(one, two"):
        read_outputs(write(tmp_path, *answers("one"), *answers("two")))


def test_rows_are_paired_by_instruction_whatever_their_order(tmp_path: Path) -> None:
    first = read_outputs(write_answers(tmp_path, "one"))
    second = read_outputs(write_answers(tmp_path, "two", answers("two")[::-1]))
    assert pair_rows(first, second) == [(number, 11 - number) for number in range(12)]


def test_a_repeated_instruction_is_paired_by_its_order(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": str(number)} for number in range(2)]
    twice = read_outputs(write(tmp_path, *rows, name="one.json"))
    assert pair_rows(twice, twice) == [(0, 0), (1, 1)]
    once = read_outputs(write(tmp_path, rows[0], name="two.json"))
    with pytest.raises(UserError, match=r"two.json: 1 of the 2 instructions of .*one.json are missing: 'a'"):
        pair_rows(twice, once)


def test_a_missing_row_of_either_file_is_named(tmp_path: Path) -> None:
    whole = read_outputs(write_answers(tmp_path, "one"))
    short = read_outputs(write_answers(tmp_path, "two", answers("two")[5:]))
    for pair in ((whole, short), (short, whole)):
        with pytest.raises(UserError, match=r"two.json: 5 of the 12 instructions of .*one.json are missing: 'Say") as e:
            pair_rows(*pair)
        assert str(e.value).count("'Say something") == 5 and "gpo generate" in str(e.value)


def test_ten_missing_rows_are_quoted_and_all_are_named(tmp_path: Path) -> None:
    whole = read_outputs(write_answers(tmp_path, "one", answers("one", 20)))
    rows = answers("two", 20)
    short = read_outputs(write_answers(tmp_path, "two", [rows[1], *rows[14:]]))
    with pytest.raises(UserError, match=r"two.json: 13 of the 20 instructions of .* are missing: ") as e:
        pair_rows(whole, short)
    assert str(e.value).count("'Say something") == 10
    assert "; and 3 more (rows 1, 3-14 there). " in str(e.value)


def test_the_same_instruction_with_other_turns_is_refused(tmp_path: Path) -> None:
    row = {"instruction": "a", "output": "b"}
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "a"}]
    one = read_outputs(write(tmp_path, row, name="one.json"))
    two = read_outputs(write(tmp_path, {**row, "messages": turns}, name="two.json"))
    with pytest.raises(UserError, match="the same instruction but other `messages`"):
        pair_rows(one, two)
