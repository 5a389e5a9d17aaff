"""Rollout rows and their files: what goes in comes out, and a file that exists is whole.

Run: python -m pytest tests/rollout/test_records.py
"""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.records import (
    BASELINE_SCHEMA,
    FORMAT_VERSION,
    SCHEMA,
    BaselineRow,
    RolloutRow,
    read_baseline,
    read_shard,
    write_baseline,
    write_shard,
)


def make_row(**changes: Any) -> RolloutRow:
    values: dict[str, Any] = {
        "prompt_id": "0123456789abcdef",
        "prompt": [{"role": "system", "content": "Sei kurz."}, {"role": "user", "content": "Grüße? 海 \u2028 👋🏽"}],
        "prompt_ids": [0, 5, 2**31 - 1],
        "seed": 2**62 - 1,
        "weight_version": "start",
        "completion": ["Hallo \x1b[31m\x00", ""],
        "completion_ids": [[1, 2, 3], []],
        "finish_reason": ["stop", "length"],
        "embedding": [[0.5, -0.25], [0.0, 1.0]],
        "score": [0.125, -0.125],
        "target": [2.5, -2.5],
        "gate": [1.5],
        "table": [[0.0, 0.25], [-0.25, 0.0]],
        "baseline_kind": "self",
        "baseline_ids": ["0123456789abcdef/0", "0123456789abcdef/1"],
        "baseline_weight": [0.5, 0.5],
        "left_out": ["", "empty"],
    }
    return RolloutRow(**{**values, **changes})


floats = st.floats(allow_nan=False, allow_infinity=False, width=32)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=6)


@st.composite
def rows(draw: st.DrawFn) -> RolloutRow:
    k, m, width = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))

    def vector(length: int) -> st.SearchStrategy[list[float]]:
        return st.lists(floats, min_size=length, max_size=length)

    def several(strategy: st.SearchStrategy[Any], count: int = k) -> Any:
        return draw(st.lists(strategy, min_size=count, max_size=count))

    return make_row(
        prompt=several(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), draw(st.integers(1, 3))),
        prompt_ids=draw(ids),
        seed=draw(st.integers(0, 2**62 - 1)),
        completion=several(st.text()),
        completion_ids=several(ids),
        finish_reason=several(st.sampled_from(["stop", "length"])),
        embedding=draw(st.none() | st.just(several(vector(2 * width)))),
        score=draw(vector(k)),
        target=draw(vector(k)),
        gate=draw(st.none() | vector(width)),
        table=several(vector(m)),
        baseline_ids=several(st.text(), m),
        baseline_weight=draw(vector(m)),
        left_out=several(st.sampled_from(["", "loop"])),
    )


@settings(max_examples=50)
@given(st.lists(rows(), max_size=4))
def test_any_rows_come_back_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, written: list[RolloutRow]
) -> None:
    path = tmp_path_factory.mktemp("records") / "rollouts" / "shard-00000.parquet"
    write_shard(path, written)
    assert read_shard(path) == written
    assert [child.name for child in path.parent.iterdir()] == [path.name]


def test_rows_without_embedding_and_gate_come_back_with_none(tmp_path: Path) -> None:
    written = [make_row(embedding=None, gate=None), make_row(), make_row(gate=None)]
    write_shard(tmp_path / "a.parquet", written)
    assert read_shard(tmp_path / "a.parquet") == written


def test_every_field_of_a_row_has_a_column(tmp_path: Path) -> None:
    assert {field.name for field in dataclasses.fields(RolloutRow)} == set(SCHEMA.names)
    assert {field.name for field in dataclasses.fields(BaselineRow)} == set(BASELINE_SCHEMA.names)


def test_baseline_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    answers = {field.name for field in dataclasses.fields(BaselineRow)} - {"source"}
    shared = {name: getattr(make_row(), name) for name in answers}
    written = [BaselineRow(**shared, source="gpm:0a1b"), BaselineRow(**shared | {"embedding": None}, source="taste")]
    write_baseline(tmp_path / "a.parquet", written)
    assert read_baseline(tmp_path / "a.parquet") == written


def test_a_shard_is_plain_parquet_for_other_programs(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [make_row()])
    found = pq.read_table(tmp_path / "a.parquet").to_pylist()[0]
    assert found["completion"] == make_row().completion and found["format_version"] == FORMAT_VERSION


@pytest.mark.parametrize(
    "changes",
    [{"seed": 2**63}, {"prompt_ids": ["a"]}, {"completion": ["half a pair \ud83d", ""]}],
)
def test_rows_that_do_not_fit_leave_no_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises((pa.ArrowException, OverflowError, UnicodeEncodeError)):
        write_shard(tmp_path / "a.parquet", [make_row(), make_row(**changes)])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_file_and_keeps_an_older_one(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from rollout.records import write_shard\n"
        "from tests.rollout.test_records import make_row\n"
        "rows = [make_row(prompt_ids=[n * n % 65521 for n in range(5000)])]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n"
        "    write_shard(Path(sys.argv[1]), rows)\n"
        "except OSError:\n"
        "    print('refused')\n"
    )
    for name in ("new.parquet", "old.parquet"):
        path = tmp_path / name
        if name.startswith("old"):
            write_shard(path, [make_row()])
        before = sorted(tmp_path.iterdir())
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[2], capture_output=True, text=True
        )
        assert done.stdout == "refused\n", done.stderr
        assert sorted(tmp_path.iterdir()) == before
    assert read_shard(tmp_path / "old.parquet") == [make_row()]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_a_finished_shard_is_never_replaced_by_a_late_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refused(*_given: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "a.parquet"
    assert write_shard(path, [make_row()])
    before = path.stat()
    assert not write_shard(path, [make_row(weight_version="late")])
    assert read_shard(path) == [make_row()] and path.stat() == before
    assert list(tmp_path.iterdir()) == [path]
    assert write_shard(path, [make_row(weight_version="another run")], since=before.st_mtime + 1)
    assert read_shard(path) == [make_row(weight_version="another run")], "a leftover is no shard of this run"


def test_a_disk_that_fails_at_the_last_step_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "a.parquet", [make_row()])
    assert list(tmp_path.iterdir()) == []


def test_a_writer_killed_at_any_moment_leaves_whole_files_only(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from rollout.records import write_shard\n"
        "from tests.rollout.test_records import make_row\n"
        "rows = [make_row(prompt_ids=list(range(3000))) for _ in range(40)]\n"
        "for number in range(10**6):\n"
        "    write_shard(Path(sys.argv[1]) / f'shard-{number:05d}.parquet', rows)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("shard-*.parquet"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.003)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    found = sorted(tmp_path.glob("shard-*.parquet"))
    assert len(found) >= 5
    for path in found:
        assert len(read_shard(path)) == 40


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_shard(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_truncated_file_is_refused_by_name_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "shard-00007.parquet"
    write_shard(path, [make_row()])
    whole = path.read_bytes()
    for length in [0, 1, 4, *range(8, len(whole), len(whole) // 20), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "not a readable rollout shard" in refusal(path)


def test_nearly_every_bit_that_flips_in_a_shard_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path, good = tmp_path / "shard.parquet", [make_row(), make_row(prompt_id="another")]
    write_shard(path, good)
    content = path.read_bytes()
    places = range(0, len(content), 11)
    refused = silent = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        try:
            silent += read_shard(path) != good
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
    # Pages have checksums. Their headers have none, and some bits there change how a page is read.
    assert refused > 0.5 * len(places) and silent <= 0.01 * len(places)


def test_a_missing_file_and_one_of_another_program_are_refused_by_name(tmp_path: Path) -> None:
    refusal(tmp_path / "none.parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    refusal(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("hello, this is text and no table")
    refusal(tmp_path / "text.parquet")


def test_a_row_of_a_later_format_is_refused_with_both_versions(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [make_row(), make_row(format_version=FORMAT_VERSION + 1)])
    message = refusal(tmp_path / "a.parquet")
    assert f"{FORMAT_VERSION + 1}]" in message and f"reads {FORMAT_VERSION}" in message
