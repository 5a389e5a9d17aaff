"""The record beside a file of answers: when `gpo generate` takes the file for finished.

Run: python -m pytest tests/gpo/evaluation/test_answer_record.py
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gpo.errors import UserError
from gpo.evaluation.generate import _join
from gpo.evaluation.generate_plan import GenerateRequest, Job
from reward.part_file import PartFile


def make_job(folder: Path, weights: str) -> Job:
    return Job(
        model=folder,
        generator="tiny",
        path=folder / "tiny.json",
        prompts=[],
        requests=[],
        max_model_len=1,
        version=None,
        dtype="float32",
        architecture="",
        made_from={"weights": weights},
    )


def answer(job: Job, *outputs: str) -> None:
    """What is left of `gpo generate` when the engine has answered."""
    request = GenerateRequest(model=[job.model], prompts="prompts.jsonl", output=job.path)
    with PartFile(job.path, job.made_from, _join(job, request)) as part:
        part.append({"instruction": text, "output": text, "tokens": 1, "finish_reason": "stop"} for text in outputs)
        part.finish()


def test_a_file_is_finished_until_its_settings_or_its_answers_change(tmp_path: Path) -> None:
    job = make_job(tmp_path, "first")
    answer(job, "a", "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.json", "tiny.meta"]
    assert job.finished() and not make_job(tmp_path, "second").finished()
    job.path.write_text(job.path.read_text().replace("a", "c"))
    assert not job.finished()


def test_a_kill_between_the_record_and_the_answers_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(make_job(tmp_path, "first"), "old")
    job, replace = make_job(tmp_path, "second"), os.replace

    def killed(source: Any, target: Any) -> None:
        if target == job.path:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            answer(job, "new")
    assert "old" in job.path.read_text() and json.loads(job.record.read_text())["made_from"] == job.made_from
    assert not job.finished()
    answer(job)  # --overwrite again: the lines are there
    assert job.finished() and "new" in job.path.read_text()


def test_answers_cannot_have_the_records_ending(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tiny.meta: .meta is the record's ending; expected .json"):
        GenerateRequest(model=[tmp_path], prompts="", output=tmp_path / "tiny.meta").paths()
