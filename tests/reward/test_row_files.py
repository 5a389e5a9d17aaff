"""Rows of files one after the other, and the file that grows by whole lines.

Run: python -m pytest tests/reward/test_row_files.py
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reward import row_files
from reward.batch_forms import check_rows
from reward.errors import RewardInputError
from reward.part_file import PartFile, check_output
from reward.row_files import FileRow, read_rows

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def write(folder: Path, text: str, name: str = "rows.json") -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(values, max_size=6), piece=st.integers(16, 40), indent=st.sampled_from([None, 2]))
@example(rows=[None, [], {"000000": {"": None, "0": []}}, 0.0], piece=16, indent=None)  # behind a number's point
def test_a_list_is_read_alike_however_its_text_is_cut(
    rows: list[Any], piece: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "_PIECE_CHARACTERS", piece)
    found = list(read_rows(write(tmp_path, " \n" + json.dumps(rows, indent=indent, ensure_ascii=False) + "\n")))
    assert [row.number for row in found] == list(range(1, len(rows) + 1))
    for row, value in zip(found, rows, strict=True):
        assert row.value == (value if isinstance(value, dict) else None)
        assert bool(row.fault) == (not isinstance(value, dict))


@pytest.mark.parametrize("text", ["[{}", '[{"a": 1},]', "[{}] {}", "[{} {}]", '[{"a": tru}]', '[{"a": "b]', "[,]"])
def test_what_is_no_list_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(RewardInputError, match="not a JSON list after row"):
        list(read_rows(write(tmp_path, text)))


def test_a_fault_in_the_middle_is_found_without_reading_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "_PIECE_CHARACTERS", 64)
    path = write(tmp_path, '[{"a": 1}, {"b" 2}, ' + '{"c": 3}, ' * 1000 + "{}]")
    read: list[int] = []
    original = row_files._ListReader._more

    def more(self: Any) -> bool:
        read.append(1)
        return original(self)

    monkeypatch.setattr(row_files._ListReader, "_more", more)
    with pytest.raises(RewardInputError, match="after row 1"):
        list(read_rows(path))
    assert len(read) < 4


def test_json_lines_may_have_the_ending_json_or_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeff{"a": 1}\n{"a": 2}\r\n')
    assert list(read_rows(path)) == [FileRow(1, {"a": 1}), FileRow(2, {"a": 2})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"a,b\n", "ending '.csv', expected one of .jsonl, .json, .parquet"),
        ("rows.parquet", b"no parquet", "not readable Parquet after row 0"),
        ("rows.jsonl", b" \n\n", "there are no rows in it"),
        ("rows.json", b"[]", "there are no rows in it"),
    ],
)
def test_files_that_hold_no_rows_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RewardInputError, match=message):
        check_rows(tmp_path / name, strict=False)
    with pytest.raises(RewardInputError, match="no such file"):
        check_rows(tmp_path / "other.jsonl", strict=False)


def test_a_line_that_is_no_text_is_a_fault_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "\xff"}\n{"a": 1}\n' + b"[" * 100_000 + b"\n")
    first, second, third = read_rows(tmp_path / "rows.jsonl")
    assert first.value is None and "not valid JSON" in first.fault
    assert second.value == {"a": 1}
    assert third.value is None and "not valid JSON" in third.fault


def test_parquet_whose_text_is_no_text_is_told_with_its_row(tmp_path: Path) -> None:
    letters = pa.array([b"a" * 9, b"\xff" * 9], pa.binary())
    texts = pa.StringArray.from_buffers(2, letters.buffers()[1], letters.buffers()[2])
    pq.write_table(pa.table({"instruction": texts}), tmp_path / "rows.parquet")
    with pytest.raises(RewardInputError, match=r"rows\.parquet: not readable Parquet after row 0"):
        list(read_rows(tmp_path / "rows.parquet"))


def test_one_process_at_a_time_holds_a_part_file(tmp_path: Path) -> None:
    with PartFile(tmp_path / "out.jsonl", {"data": "1"}) as part:
        part.append([{"row": 1}])
        with pytest.raises(RewardInputError, match="another process is writing it"):
            PartFile(tmp_path / "out.jsonl", {"data": "1"}).__enter__()
        assert list(part.lines()) == [{"row": 1}]
    with PartFile(tmp_path / "out.jsonl", {"data": "1"}) as part:
        part.append([{"row": 2}])
        part.finish()
    assert (tmp_path / "out.jsonl").read_text() == '{"row": 1}\n{"row": 2}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_numbers_that_json_does_not_have_are_not_written(tmp_path: Path) -> None:
    with PartFile(tmp_path / "out.jsonl", {}) as part:
        with pytest.raises(ValueError, match="not JSON compliant"):
            part.append([{"row": 1, "score": float("nan")}])
        assert list(part.lines()) == []


def test_places_where_an_output_cannot_go_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RewardInputError, match="is a folder"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(RewardInputError, match="cannot be made a folder"):
        check_output(tmp_path / "file" / "deeper" / "out.jsonl", overwrite=False)
    check_output(tmp_path / "new" / "out.jsonl", overwrite=False)
    assert (tmp_path / "new").is_dir()
