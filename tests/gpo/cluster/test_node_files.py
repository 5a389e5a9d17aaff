"""Which files go where, with a second folder in the place of another node's disk; `make cluster` has real nodes.

Run: python -m pytest tests/gpo/cluster/test_node_files.py
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpo.cluster import node_files
from gpo.cluster.node_files import NodeFiles


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(the driver's, the other node's); what is below the first is looked for below the second on the other node."""
    here, there = tmp_path / "here", tmp_path / "there"

    def seen_there(path: str | Path) -> Path:
        return there / Path(path).relative_to(here)

    def ask(nodes: list[str], work: Any, path: str, *more: str) -> dict[str, Any]:
        return {node: work(str(seen_there(path)), *more) for node in nodes}

    def carry(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)

    monkeypatch.setattr(node_files, "_ask", ask)
    monkeypatch.setattr(node_files, "_fetch", lambda path, node: carry(seen_there(path), path))
    monkeypatch.setattr(node_files, "_send", lambda path, nodes: carry(path, seen_there(path)))
    monkeypatch.setattr(NodeFiles, "_others", lambda self: ["other"])
    return here, there


def write(path: Path, text: str, seconds: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (seconds, seconds))


def test_what_another_node_wrote_last_is_fetched_and_what_was_written_here_stays(disks: tuple[Path, Path]) -> None:
    here, there = disks
    files = NodeFiles(here, "no", "a run")
    write(here / "metrics.jsonl", "step 1", 1000)
    files.deliver(here / "metrics.jsonl")
    assert (there / "metrics.jsonl").read_text() == "step 1"
    write(here / "metrics.jsonl", "step 1, step 2", 1001)
    assert not files.collect(here / "metrics.jsonl", beside=here / "metrics.jsonl")
    assert (here / "metrics.jsonl").read_text() == "step 1, step 2", "the learner is on the driver's own node"
    write(there / "metrics.jsonl", "step 1, step 2, step 3", 1002)
    assert files.collect(here / "metrics.jsonl", beside=here / "metrics.jsonl")
    assert (here / "metrics.jsonl").read_text() == "step 1, step 2, step 3"


def test_a_file_is_brought_once_and_again_when_it_changed(disks: tuple[Path, Path]) -> None:
    here, there = disks
    files = NodeFiles(here, "no", "a run")
    write(here / "shard", "a", 1000)
    files.deliver(here / "shard")
    (there / "shard").unlink()
    files.deliver(here / "shard")
    assert not (there / "shard").exists(), "it is known to be there"
    write(here / "shard", "ab", 1001)
    files.deliver(here / "shard")
    assert (there / "shard").read_text() == "ab"


def test_a_node_that_sees_the_run_is_brought_the_policy_that_it_lacks(disks: tuple[Path, Path]) -> None:
    here, there = disks
    write(here / "policy/config.json", "{}", 1000)
    write(here / "oracle.py", "", 1000)
    write(there / "oracle.py", "", 1000)
    files = NodeFiles(here / "run", "auto", "a run")
    files._sees["other"] = True
    files.keep(here / "policy", here / "oracle.py")
    files.deliver(here / "run/shard")
    assert (there / "policy/config.json").exists() and not (there / "run").exists()
    shutil.rmtree(there / "policy")
    files.deliver()
    assert not (there / "policy").exists(), "and only once"


def test_a_node_that_joins_inside_a_stage_gets_what_the_stage_was_given_and_no_other_node_again(
    disks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = disks
    files = NodeFiles(here, "no", "a run")
    monkeypatch.setattr(NodeFiles, "_others", lambda self: [])
    write(here / "old", "", 1000)
    write(here / "weights", "", 1000)
    files.deliver(here / "old")
    files.begin_stage()
    files.deliver(here / "weights")
    monkeypatch.setattr(NodeFiles, "_others", lambda self: ["joined"])
    files.deliver()
    assert (there / "weights").exists() and not (there / "old").exists()
    write(there / "weights", "a learner's lines", 1002)
    write(here / "weights", "the driver's copy", 1001)
    files.deliver()
    assert (there / "weights").read_text() == "a learner's lines"


def test_what_a_run_that_was_thrown_away_left_on_a_node_is_deleted_there_and_this_runs_files_stay(
    disks: tuple[Path, Path],
) -> None:
    here, there = disks
    write(here / "iterations/001/shard", "the first run's", 1000)
    write(here / "metrics.jsonl", "the first run's", 1000)
    NodeFiles(here, "no", "the first run").deliver(here / "iterations", here / "metrics.jsonl")
    shutil.rmtree(here)
    again = NodeFiles(here, "no", "the second run")
    assert not again.collect(here / "iterations/001/shard"), "it would be trained on"
    again.deliver(here / "metrics.jsonl")
    assert not (there / "metrics.jsonl").exists(), "a learner would write its lines behind the first run's"
    write(there / "iterations/001/shard", "the second run's", 1001)
    assert NodeFiles(here, "no", "the second run").collect(here / "iterations/001/shard"), "the same run goes on"
    assert (here / "iterations/001/shard").read_text() == "the second run's"


def test_a_disk_that_is_shared_in_spite_of_what_was_said_keeps_the_run(
    disks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = disks
    monkeypatch.setattr(
        node_files, "_ask", lambda nodes, work, path, *more: {node: work(path, *more) for node in nodes}
    )
    write(here / ".started", "a run that was thrown away", 1000)
    write(here / "iterations/001/shard", "", 1001)
    NodeFiles(here, "no", "this run").deliver()
    assert (here / "iterations/001/shard").exists()


def test_of_several_nodes_with_a_file_the_one_that_wrote_it_last_gives_it_and_an_older_one_is_left(
    disks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = disks
    times = {"first": 1001, "second": 1003, "third": 1002}
    monkeypatch.setattr(NodeFiles, "_others", lambda self: list(times))
    monkeypatch.setattr(
        node_files, "_ask", lambda nodes, work, path, *more: {node: times[node] * 10**9 for node in nodes}
    )
    monkeypatch.setattr(node_files, "_fetch", lambda path, node: write(path, node, times[node]))
    files = NodeFiles(here, "no", "a run")
    assert files.collect(here / "shard")
    assert (here / "shard").read_text() == "second"
    write(here / "shard", "written here", 1004)
    assert not files.collect(here / "shard")
    assert (here / "shard").read_text() == "written here"
