"""The run directory: what may go on, what is refused, and what a crash can take.

Run: python -m pytest tests/gpo/test_journal.py
"""

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpo.errors import UserError
from gpo.files import append_json_line, read_json_lines, write_json, write_text
from gpo.journal import RunDirectory, open_run, read_config_of, set_status
from tests.gpo.small_runs import run_config

DATA = {"prompts.train": "a" * 64}


def start(root: Path, *, fresh: bool = False, data: dict[str, str] = DATA, **changes: Any) -> RunDirectory:
    """Open the run as a driver does, and let go of it at once, as its end does."""
    open_run(root, run_config(**changes), fresh=fresh, versions={"torch": "2"}, data=data)
    return RunDirectory(root)


def refusal(root: Path, **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        start(root, **arguments)
    message = str(caught.value)
    assert str(root) in message
    del caught
    gc.collect()  # a traceback keeps the frames, and with them the lock that a driver's end would free
    return message


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "small"


def events(directory: RunDirectory) -> list[str]:
    return [line["event"] for line in directory.journal()]


def test_a_new_run_leaves_its_config_its_state_and_a_first_line(root: Path) -> None:
    directory = start(root)
    assert events(directory) == ["start"]
    assert read_config_of(root) == run_config().model_dump(mode="json")
    state = json.loads((root / "run.json").read_text())
    assert state["format_version"] == 1 and state["status"] == "running" and state["data_sha256"] == DATA
    assert state["versions"] == {"torch": "2"} and state["seed"] == 0


def test_starting_again_goes_on_and_keeps_what_is_finished(root: Path) -> None:
    directory = start(root)
    directory.record("stage", stage="generate", iteration=1, seconds=1.5)
    again = start(root)
    assert events(again) == ["start", "stage", "restart"]
    found = again.finished("generate", 1)
    assert found is not None and found["seconds"] == 1.5
    assert again.finished("generate", 2) is None and again.finished("train", 1) is None


def test_what_a_killed_process_was_writing_is_gone_at_the_next_start(root: Path) -> None:
    shard = start(root).shard(1, 3)
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"whole")
    shard.with_name(f".{shard.name}.part-4711").write_bytes(b"half")
    start(root)
    assert [path.name for path in shard.parent.iterdir()] == [shard.name]


def test_every_line_says_its_format_and_time(root: Path) -> None:
    directory = start(root)
    start(root)
    lines = directory.journal()
    assert all(line["format_version"] == 1 for line in lines)
    assert lines[0]["time"] <= lines[1]["time"]


def test_changed_identity_is_refused_with_old_and_new_value_of_every_key(root: Path) -> None:
    start(root)
    before = (root / "config.yaml").read_bytes()
    message = refusal(root, seed=5, target={"beta": 0.25})
    assert "  - seed: 0 -> 5\n" in message and "  - target.beta: 1.0 -> 0.25\n" in message
    assert "--run-dir" in message and "--fresh" in message
    assert (root / "config.yaml").read_bytes() == before


def test_placement_may_change_and_is_journalled(root: Path) -> None:
    start(root)
    directory = start(root, cluster={"samplers": 3, "shape": "split"}, train={"workers": 2})
    last = directory.journal()[-1]
    assert last["event"] == "restart" and last["placement"]["workers"] == 2
    assert last["placement"]["cluster"]["samplers"] == 3
    assert read_config_of(root)["cluster"]["samplers"] == 3


def test_changed_content_of_a_data_file_is_refused_although_its_name_is_the_same(root: Path) -> None:
    start(root)
    message = refusal(root, data={"prompts.train": "b" * 64})
    assert "content of prompts.train: 'aaa" in message and "-> 'bbb" in message


@contextmanager
def second_driver(root: Path) -> Iterator[None]:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from gpo.journal import RunDirectory\n"
        "directory = RunDirectory(Path(sys.argv[1]))\n"
        "directory.lock()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    try:
        yield
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_second_driver_is_refused_while_the_first_one_lives_and_not_after(root: Path) -> None:
    start(root)
    before = {path: path.read_bytes() for path in root.iterdir()}
    with second_driver(root):
        for fresh in (False, True):
            message = refusal(root, fresh=fresh)
            assert "another gpo run is at work" in message and "--run-dir" in message
    assert {path: path.read_bytes() for path in root.iterdir()} == before
    assert events(start(root)) == ["start", "restart"]


def test_the_lock_is_held_as_long_as_the_directory_is_open(root: Path) -> None:
    held = open_run(root, run_config(), fresh=False, versions={}, data=DATA)
    assert "another gpo run" in refusal(root)
    del held
    start(root)


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "cannot be a run directory" in refusal(path)


@pytest.mark.parametrize("torn", ['{"format_version": 1, "eve', "{", '{"event": "stage", "stage": "ge\u00e4'])
def test_a_torn_last_line_is_no_line_and_spoils_no_later_one(root: Path, torn: str) -> None:
    directory = start(root)
    with (root / "journal.jsonl").open("ab") as stream:
        stream.write(torn.encode()[:-1])
    assert events(directory) == ["start"]
    directory.record("stage", stage="generate", iteration=1, seconds=1.0)
    assert events(directory) == ["start", "stage"]
    assert events(start(root)) == ["start", "stage", "restart"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
lines = st.lists(st.dictionaries(st.text(), values, max_size=3), min_size=1, max_size=4)


@given(lines, st.data())
def test_a_file_cut_anywhere_loses_its_last_line_at_most(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "journal.jsonl"
    for value in written:
        append_json_line(path, value)
    assert read_json_lines(path) == written
    whole = path.read_bytes()
    last = len(whole[:-1].rpartition(b"\n")[0]) + 1 if len(written) > 1 else 0
    path.write_bytes(whole[: data.draw(st.integers(last, len(whole) - 2))])
    assert read_json_lines(path) == written[:-1]
    append_json_line(path, {"after": 1})
    assert read_json_lines(path) == [*written[:-1], {"after": 1}]


def test_a_number_that_json_lacks_is_refused_and_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"a": 1})
    with pytest.raises(ValueError):
        append_json_line(path, {"a": float("nan")})
    with pytest.raises(ValueError):
        write_json(tmp_path / "value.json", {"a": float("inf")})
    assert read_json_lines(path) == [{"a": 1}] and sorted(tmp_path.iterdir()) == [path]


def test_a_failed_replacement_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new \ud83d")
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def fill(root: Path) -> None:
    directory = start(root)
    directory.record("stage", stage="generate", iteration=1, seconds=1.0)
    directory.shard(1, 0).parent.mkdir(parents=True)
    directory.shard(1, 0).write_bytes(b"old")
    directory.logs.mkdir()


def test_fresh_throws_the_first_run_away_and_starts_another(root: Path) -> None:
    fill(root)
    directory = start(root, fresh=True, seed=9)
    assert events(directory) == ["start"] and not directory.shard(1, 0).exists() and not directory.logs.exists()
    assert json.loads((root / "run.json").read_text())["seed"] == 9


def test_fresh_in_an_empty_or_missing_directory_is_a_start(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        assert events(start(tmp_path / name, fresh=True)) == ["start"]


def test_fresh_never_deletes_a_directory_that_holds_no_run(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "thesis").mkdir(parents=True)
    (home / "thesis" / "chapter.txt").write_text("years of work")
    (home / "notes.txt").write_text("more")
    message = refusal(home, fresh=True)
    assert "--fresh" in message and "--run-dir" in message
    assert (home / "thesis" / "chapter.txt").read_text() == "years of work" and (home / "notes.txt").exists()


def test_fresh_that_was_killed_half_way_never_lends_old_shards_to_the_next_run(root: Path) -> None:
    fill(root)
    code = (
        "import os, shutil, sys\n"
        "from pathlib import Path\n"
        "from gpo.journal import open_run\n"
        "from tests.gpo.small_runs import run_config\n"
        "sys.addaudithook(lambda event, arguments: os._exit(9) if event == 'shutil.rmtree' else None)\n"
        "open_run(Path(sys.argv[1]), run_config(seed=9), fresh=True, versions={}, data={})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], cwd=Path(__file__).parents[2], capture_output=True)
    assert done.returncode == 9, done.stderr
    assert "seed: 0 -> 9" in refusal(root, seed=9)
    directory = start(root, fresh=True, seed=9)
    assert events(directory) == ["start"] and not directory.shard(1, 0).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": "running"}', '{"format_version": 99}'])
def test_a_damaged_state_is_refused_with_what_to_do(root: Path, content: str) -> None:
    start(root)
    (root / "run.json").write_text(content)
    message = refusal(root)
    assert "run.json" in message and "--fresh" in message
    assert events(start(root, fresh=True)) == ["start"]


def test_a_journal_without_state_is_refused(root: Path) -> None:
    start(root)
    (root / "run.json").unlink()
    assert "there is a journal" in refusal(root)


def test_a_status_replaces_the_old_one_and_keeps_the_rest(root: Path) -> None:
    directory = start(root)
    before = json.loads((root / "run.json").read_text())
    set_status(directory, "finished")
    after = json.loads((root / "run.json").read_text())
    assert after["status"] == "finished" and {**after, "status": "running"}.items() >= before.items()


def test_a_directory_that_is_no_run_has_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a run directory"):
        read_config_of(tmp_path)
    (tmp_path / "config.yaml").write_text("- a")
    with pytest.raises(UserError, match="expected a mapping"):
        read_config_of(tmp_path)


def test_the_files_of_a_run_lie_where_the_design_says() -> None:
    directory = RunDirectory(Path("RUN"))
    assert str(directory.shard(1, 0)) == "RUN/iterations/001/rollouts/shard-00000.parquet"
    assert str(directory.checkpoint(12)) == "RUN/iterations/012/checkpoint"
    assert str(directory.training(1)) == "RUN/iterations/001/training"
    assert str(directory.evaluation(1)) == "RUN/iterations/001/evaluation.json"
    assert str(directory.metrics) == "RUN/metrics.jsonl"
