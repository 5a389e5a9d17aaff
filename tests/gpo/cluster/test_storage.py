"""A run directory's copy at a URL: what is there after a stage, and that a run begins from it.

Run: python -m pytest tests/gpo/cluster/test_storage.py
"""

import uuid
from pathlib import Path

import pytest

from gpo.cluster.storage import Storage
from gpo.errors import StageError, UserError
from gpo.journal import dtype_of_run, open_run
from tests.gpo.small_runs import run_config

FILES = {
    "run.json": "{}",
    "journal.jsonl": "a line\n",
    "iterations/001/rollouts/shard-00000.parquet": "rows",
    "iterations/001/training/master/model.safetensors": "weights",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def files_of(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """pyarrow's own file system, and one that only fsspec knows."""
    return f"file://{tmp_path / 'copy'}" if request.param == "file" else f"memory://{uuid.uuid4().hex}/copy"


def test_an_empty_directory_is_filled_from_the_copy(url: str, tmp_path: Path) -> None:
    write(tmp_path / "run", FILES)
    write(tmp_path / "run", {".lock": "", "iterations/001/.part-7": "half"})
    Storage(url, tmp_path / "run").save()
    assert Storage(url, tmp_path / "other").restore()
    assert files_of(tmp_path / "other") == FILES, "no lock and nothing half written"


def test_a_directory_that_holds_the_run_is_left_as_it_is(url: str, tmp_path: Path) -> None:
    write(tmp_path / "run", FILES)
    Storage(url, tmp_path / "run").save()
    own = {"run.json": "mine", "journal.jsonl": "a line\nmore\n"}
    write(tmp_path / "other", own)
    assert not Storage(url, tmp_path / "other").restore()
    assert files_of(tmp_path / "other") == own


def test_without_a_copy_nothing_happens(url: str, tmp_path: Path) -> None:
    assert not Storage(url, tmp_path / "run").restore()
    assert not (tmp_path / "run").exists()


def test_later_saves_bring_changes_and_drop_what_is_gone(url: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    write(root, FILES)
    storage = Storage(url, root)
    storage.save()
    (root / "iterations/001/training/master/model.safetensors").unlink()
    write(root, {"journal.jsonl": "a line\nanother\n", "iterations/001/evaluation.json": "{}"})
    storage.save()
    Storage(url, tmp_path / "other").restore()
    assert files_of(tmp_path / "other") == files_of(root)


def test_a_later_start_copies_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, root = f"file://{tmp_path / 'copy'}", tmp_path / "run"
    write(root, FILES)
    Storage(url, root).save()
    sent: list[str] = []
    send = Storage._send
    monkeypatch.setattr(Storage, "_send", lambda self, path, name: (sent.append(name), send(self, path, name)))
    Storage(url, root).save()
    assert sent == []
    write(root, {"journal.jsonl": "a line\nanother\n", "run.json": "[]"})
    Storage(url, root).save()
    assert sent == ["run.json", "journal.jsonl"], "one is longer, the other as long and newer"
    restored = Storage(url, tmp_path / "other")
    restored.restore()
    restored.save()
    assert len(sent) == 2


def test_a_directory_that_is_behind_its_copy_is_refused_and_the_copy_stays(url: str, tmp_path: Path) -> None:
    root, behind = tmp_path / "run", tmp_path / "behind"
    write(root, FILES)
    Storage(url, root).save()
    Storage(url, behind).restore()
    write(root, {"journal.jsonl": "a line\nanother\n", "iterations/002/evaluation.json": "{}"})
    Storage(url, root).save()
    with pytest.raises(UserError, match="has gone on without it"):
        Storage(url, behind).restore()
    assert not Storage(url, root).restore(), "the one that is ahead goes on"
    Storage(url, tmp_path / "other").restore()
    assert files_of(tmp_path / "other") == files_of(root)


def test_a_url_that_cannot_be_written_is_told_with_what_is_whole(tmp_path: Path) -> None:
    write(tmp_path / "run", FILES)
    (tmp_path / "copy").write_text("a file where a folder is wanted")
    with pytest.raises(StageError, match="cluster.storage = file://.*cannot be written"):
        Storage(f"file://{tmp_path / 'copy'}/run", tmp_path / "run").save()


def test_a_url_that_no_one_knows_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cluster.storage = nowhere://a/b: cannot be used"):
        Storage("nowhere://a/b", tmp_path)


def test_the_type_of_a_run_is_known_from_its_directory_or_its_copy(url: str, tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    assert dtype_of_run(root, None) is None and dtype_of_run(root, Storage(url, root)) is None
    open_run(root, run_config(policy={"dtype": "bfloat16"}), fresh=False, versions={}, data={})
    Storage(url, root).save()
    assert dtype_of_run(root, None) == "bfloat16" and dtype_of_run(elsewhere, None) is None
    assert dtype_of_run(elsewhere, Storage(url, elsewhere)) == "bfloat16"
    assert not elsewhere.exists(), "it is only looked at"
    (root / "run.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        dtype_of_run(root, None)
