"""Small files of a run: what is damaged is told by its name.

Run: python -m pytest tests/gpo/test_files.py
"""

import os
from pathlib import Path

import pytest

from gpo.errors import StageError, UserError
from gpo.evaluation.heldout_judge import read_answers
from gpo.files import append_json_line, json_lines, last_written, read_json, write_json


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"a": [1, "é"]})
    assert read_json(tmp_path / "value.json") == {"a": [1, "é"]}


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", None], ids=["empty", "cut", "no-text", "gone"])
def test_a_damaged_or_missing_file_is_named_with_the_way_on(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "value.json").write_bytes(content)
    with pytest.raises(StageError, match=r"value\.json cannot be read .* put a copy of the file in its place"):
        read_json(tmp_path / "value.json")


@pytest.mark.parametrize("value", [{}, {"prompts": [{"what": 1}]}, {"prompts": 3}])
def test_held_out_answers_of_another_form_are_named(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "heldout.json", value)
    with pytest.raises(StageError, match=r"heldout\.json does not hold held-out answers"):
        read_answers(str(tmp_path / "heldout.json"))


def test_the_newest_file_of_a_folder_is_found_but_for_folders_that_do_not_count(tmp_path: Path) -> None:
    for name, seconds in (("steps/one", 10), ("ray/state", 30), ("alive", 20)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (seconds, seconds))
    assert last_written(tmp_path, tmp_path / "ray") == 20 * 10**9 and last_written(tmp_path / "none") == 0


def test_lines_are_read_from_a_byte_on_behind_a_torn_one_too(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert list(json_lines(path)) == []
    append_json_line(path, {"step": 1})
    with path.open("a") as stream:
        stream.write('{"step": 2')
    behind = path.stat().st_size
    append_json_line(path, {"step": 3})
    assert list(json_lines(path)) == [{"step": 1}, {"step": 3}]
    assert list(json_lines(path, behind)) == [{"step": 3}] and list(json_lines(path, 10**6)) == []


@pytest.mark.parametrize(
    "torn", [b'{"step": 2', b'{"said": "half', b'{"a": tru', b"{", b'{"a": 1.', b'{"a\0\0\0', b"\0\0"]
)
def test_what_a_crash_leaves_of_a_line_is_none(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"step": 1}\n' + torn)
    assert list(json_lines(path)) == [{"step": 1}]
    append_json_line(path, {"step": 3})
    assert list(json_lines(path)) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize(
    "damaged",
    [
        b"7",
        b"[]",
        b'"step": 2}',
        b"gone",
        b'{"step"; 2, "seconds": 12.5, "left": {}}',
        b'{"step": ' + b"1" * 5000 + b"}",
        b"{" + b'"a":{' * 100_000,
    ],
    ids=["number", "list", "no-beginning", "text", "in-the-middle", "endless-number", "without-bottom"],
)
def test_a_line_that_no_crash_leaves_is_named_with_the_way_on(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"lines\.jsonl: damaged at .* put a copy of the file in its place"):
        list(json_lines(path))
