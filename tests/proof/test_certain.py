"""The checks that fuzzing trusts: what they call certainly wrong, and the good files, which they must leave alone.

Run: python -m pytest tests/proof/test_certain.py
"""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from tests.gpo.evaluation.small_evaluation import answers
from tests.gpo.small_runs import run_values
from tests.proof import certain
from tests.proof.fuzz_case import fault_of
from tests.proof.mutations import mutate_json_lines
from tests.proof.odd_settings import refused_whole
from tests.proof.prepared import Prepared
from tests.reward.batch_files import group, mixed, pair, write
from tests.tiny import save_tiny_model


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_good_files_are_never_called_wrong(tmp_path: Path) -> None:
    assert not certain.bad_lines(write(tmp_path / "pairs.jsonl", mixed(9)).read_bytes(), certain.bad_comparison)
    assert not certain.bad_lines(lines([{"prompt": "a"}, {"prompt": ""}]) + b"\n \r\n", certain.bad_prompt)
    assert not certain.bad_list(json.dumps(answers("new")).encode(), certain.bad_output)
    assert not certain.bad_settings(yaml.safe_dump(run_values()).encode(), refused_whole)
    for path in save_tiny_model(tmp_path / "model", layers=1).iterdir():
        assert not certain.bad_model_file(path.name, path.read_bytes()), path


TURN = {"role": "user", "content": "a"}
TOLD = {"instruction": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    "row",
    [
        7,
        {},
        {"messages": 7},
        {"messages": [], "prompt": "a"},
        {"messages": [{**TURN, "role": "narrator"}]},
        {"prompt": [{"role": "user"}]},
        {"instruction": ["a"]},
        {"instruction": "a", "input": 7},
    ],
)
def test_a_row_without_what_a_prompt_needs_is_wrong(row: Any) -> None:
    assert certain.bad_prompt(row)


@pytest.mark.parametrize(
    "row", [{"messages": "a"}, {"messages": None, "prompt": [TURN]}, {"instruction": "", "input": None}, {"prompt": ""}]
)
def test_a_prompt_of_any_form_is_none_to_complain_of(row: Any) -> None:
    assert not certain.bad_prompt(row)


@pytest.mark.parametrize(
    "row",
    [
        TOLD,
        {**TOLD, "rejected": None, "reject": {"response": "c"}},
        {**pair(0), "instruction": 7},
        {**group(0), "instruction": 7, "prompt": [TURN]},
    ],
)
def test_a_comparison_of_any_form_is_none_to_complain_of(row: Any) -> None:
    assert not certain.bad_comparison(row)


@pytest.mark.parametrize(
    "row",
    [
        7,
        {**TOLD, "instruction": 7},
        {**TOLD, "chosen": 7},
        {**TOLD, "rejected": {"answer": "c"}},
        {"instruction": "a"},
        {**pair(0), "chosen": [TURN]},
        {**group(0), "responses": []},
        {**group(0), "prompt": [{"role": "user"}]},
        {**pair(0), "chosen": None},
        {"chosen": pair(0)["chosen"]},
        {**pair(0), "rejected": [{"role": "user"}, {"role": "assistant", "content": "a"}]},
        {**group(0), "responses": "text"},
        {**group(0), "responses": ["a", 1]},
        {"responses": ["a", "b"]},
    ],
)
def test_a_row_without_what_a_comparison_needs_is_wrong(row: Any) -> None:
    assert certain.bad_comparison(row)
    assert certain.bad_lines(lines([pair(0), row]), certain.bad_comparison)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{\n", b'{"prompt": "a"}\n{"prompt"\n', b'{"prompt": "\xff"}\n', b"[1]\n"]
)
def test_lines_that_are_no_json_in_utf8_are_wrong(content: bytes) -> None:
    assert certain.bad_lines(content, certain.bad_prompt)


@pytest.mark.parametrize("content", [b"", b"\xff", b"- 1", b"a: [", b"name: tiny\n", b"seed: -1\n"])
def test_settings_that_are_none_or_that_the_reference_refuses_are_wrong(content: bytes) -> None:
    assert certain.bad_settings(content, refused_whole)


def test_weights_that_were_cut_are_wrong(tmp_path: Path) -> None:
    content = (save_tiny_model(tmp_path, layers=1) / "model.safetensors").read_bytes()
    for length in (0, 7, 20, len(content) - 1):
        assert certain.short_weights(content[:length])


@pytest.mark.parametrize("line", [b"7", b"[]", b'"seconds": 1}', b"gone", b"\xff", b"null"])
def test_a_line_of_a_journal_that_no_crash_leaves_is_wrong(line: bytes) -> None:
    content = b'{"event": "stage"}\n' + line + b'\n{"event": "stage"}\n'
    assert certain.bad_record(content)
    assert certain.bad_run_file("report", "journal.jsonl", content, 0)
    assert not certain.bad_run_file("prompts", "journal.jsonl", content, 0), "it is not read for them"


@pytest.mark.parametrize("line", [b"", b'{"event": "sta', b'{"event"\0\0', b"\0\0", b'{"event": "\xff"}'])
def test_what_a_crash_may_leave_of_a_journal_is_none_to_complain_of(line: bytes) -> None:
    assert not certain.bad_record(b'{"event": "stage"}\n' + line + b"\n")


@pytest.mark.parametrize(
    ("look", "name", "content", "wrong"),
    [
        ("overview", "iterations/001/rollouts/shard-00000.parquet", b"cut", True),
        ("overview", "iterations/001/rollouts/shard-00000.parquet", b"as long", False),
        ("overview", "iterations/001/evaluation.json", b"{", True),
        ("prompts", "iterations/001/evaluation.json", b"{", False),
        ("report", "iterations/000/heldout.json", b"\xff", True),
        ("report", "config.yaml", b"[", False),
        ("again", "run.json", b"", True),
    ],
)
def test_a_file_of_a_run_is_wrong_where_a_look_must_read_it(look: str, name: str, content: bytes, wrong: bool) -> None:
    assert certain.bad_run_file(look, name, content, len(b"as long")) is wrong


def test_many_mutations_of_pairs_are_marked_as_certainly_wrong() -> None:
    good = lines(mixed(9))
    made = [mutate_json_lines(good, Random(seed)).content for seed in range(100)]
    assert 20 < sum(certain.bad_lines(content, certain.bad_comparison) for content in made) < 100


def test_status_0_for_what_is_wrong_and_memory_beyond_the_bound_are_faults() -> None:
    wrong = Prepared(["reward"], "cut", True, b"")
    assert fault_of(wrong, 0, "gpo: done", 1) == "status 0 for input that is certainly wrong"
    assert fault_of(wrong, 2, "gpo: no", 1) is None
    assert fault_of(wrong, 2, "gpo: no", 100_000) == "grew by 100000 MiB"
