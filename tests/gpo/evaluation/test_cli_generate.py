"""`gpo generate` as a user starts it: real vLLM in a Ray actor, tiny random policies.

Run: python -m pytest tests/gpo/evaluation/test_cli_generate.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rollout.weights import mark_published
from tests.gpo.command_line import REPOSITORY, Outcome, gpo, gpo_process
from tests.gpo.evaluation.small_evaluation import read
from tests.tiny import save_tiny_model

ROWS = [{"instruction": f"Say a word about {topic}.", "dataset": "koala"} for topic in ("rain", "bread", "chess")]
TURNS = [{"role": role, "content": text} for role, text in (("user", "Hi."), ("assistant", "Ho."), ("user", "Hm."))]
SETTINGS = ("--max-tokens", "8", "--chunk-prompts", "2", "--seed", "3")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies of one architecture, the second published by a run, and prompts with a repeated and a long one."""
    folder = tmp_path_factory.mktemp("generate")
    save_tiny_model(folder / "models" / "tiny", seed=1)
    checkpoint = save_tiny_model(folder / "runs" / "small" / "iterations" / "001" / "checkpoint", seed=2)
    mark_published(checkpoint, "iteration-1")
    rows = [*ROWS, {"messages": TURNS}, ROWS[0]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def words_of(place: Path, output: str, *more: str | Path) -> list[str | Path]:
    models = [place / "models" / "tiny", place / "runs" / "small" / "iterations" / "001" / "checkpoint"]
    return ["generate", "--model", *models, "--prompts", place / "prompts.jsonl", "--output", place / output,
            *SETTINGS, *more]  # fmt: skip


@pytest.fixture(scope="module")
def answered(place: Path) -> Path:
    found = gpo_process(place, *words_of(place, "answers"))
    assert found.status == 0, found
    return place / "answers"


def test_the_answers_have_alpaca_evals_form_in_the_order_of_the_prompts(answered: Path) -> None:
    assert sorted(path.name for path in answered.glob("*.json")) == [
        "small-001.json", "tiny.json",
    ], "what `gpo tournament --outputs answers/*.json` reads"  # fmt: skip
    rows = read(answered / "tiny.json")
    assert [row["instruction"] for row in rows[:3]] == [row["instruction"] for row in ROWS]
    for row in rows[:3]:
        assert list(row) == ["dataset", "instruction", "output", "generator"]
        assert row["dataset"] == "koala" and row["generator"] == "tiny"
    assert rows[3]["messages"] == TURNS and rows[3]["instruction"] == "Hi.\n\nHo.\n\nHm."
    assert rows[4]["instruction"] == rows[0]["instruction"]
    assert rows[4]["output"] != rows[0]["output"], "a repeated prompt has a seed of its own"


def test_the_record_says_how_they_were_drawn(answered: Path) -> None:
    record = read(answered / "small-001.meta")
    sampling = {"samples": 1, "max_tokens": 8, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert record["sampling"] == sampling and record["seed"] == 3 and record["answers"] == 5
    assert record["weight_version"].startswith("iteration-1-")
    assert read(answered / "tiny.meta")["weight_version"] is None


def test_models_that_share_an_engine_have_their_own_answers(place: Path, answered: Path) -> None:
    both = [[row["output"] for row in read(answered / f"{name}.json")] for name in ("tiny", "small-001")]
    assert both[0] != both[1]
    words: list[str | Path] = ["generate", "--model", place / "runs/small/iterations/001/checkpoint", "--prompts",
                               place / "prompts.jsonl", "--output", place / "alone.json", *SETTINGS]  # fmt: skip
    assert gpo_process(place, *words).status == 0
    assert [row["output"] for row in read(place / "alone.json")] == both[1]


def test_the_same_command_again_computes_nothing_and_another_seed_is_refused(place: Path, answered: Path) -> None:
    before = (answered / "tiny.json").stat().st_mtime_ns
    again = gpo(place, *words_of(place, "answers"))
    assert again.status == 0 and "generate" not in again.said and "answers are in" in again.said, again
    assert (answered / "tiny.json").stat().st_mtime_ns == before
    other = gpo(place, *words_of(place, "answers", "--seed", "4"))
    assert other.status == 2 and "tiny.json exists already" in other.said and "--overwrite" in other.said


@pytest.mark.long  # `make kill`
def test_a_killed_start_goes_on_behind_its_finished_chunks(place: Path, answered: Path) -> None:
    command = [sys.executable, "-m", "gpo", *map(str, words_of(place, "killed"))]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.DEVNULL)
    part = place / "killed" / "tiny.json.part"
    end = time.monotonic() + 240
    while not (part.exists() and part.read_bytes().count(b"\n") >= 2) and time.monotonic() < end:
        assert process.poll() is None, "the command ended before a chunk was finished"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = part.read_bytes() if part.exists() else b""
    found = gpo_process(place, *words_of(place, "killed"))
    assert found.status == 0, found
    for name in ("tiny", "small-001"):
        assert read(place / "killed" / f"{name}.json") == read(answered / f"{name}.json")
    if kept:
        assert "tiny: going on after" in found.said


def test_mistakes_are_status_2_before_an_engine_starts(place: Path, tmp_path: Path) -> None:
    def refused(found: Outcome, *told: str) -> None:
        assert found.status == 2, found
        assert all(text in found.said for text in told), found.said

    def tell(*changes: Any) -> Outcome:
        return gpo(place, *words_of(place, str(tmp_path / "none"), *changes))

    refused(tell("--temperature", "-1"), "--temperature -1.0: expected 0")
    refused(tell("--top-p", "0"), "--top-p 0.0: expected a share")
    refused(tell("--prompts", place / "none.json"), "--prompts: ", "no such file")
    refused(tell("--name", "one"), "--name: 1 names for 2 models")
    refused(tell("--max-tokens", "480"), "leave no room for --max-tokens 480", "the 512 that")
    refused(tell("--output", tmp_path / "one.json"), "expected a folder, because there are 2 models")
    refused(tell("--model", tmp_path), "no *.safetensors weights")
    marked = place / "runs" / "small" / "iterations" / "001" / "checkpoint" / "gpo_weights.json"
    text = marked.read_text()
    marked.write_text(text.replace('"sha256": "', '"sha256": "00'))
    refused(tell(), "content hash", "is not the published", "publish or copy it again")
    marked.write_text(text)
    assert not (tmp_path / "none").exists()
