"""The evaluation sets people have, as prompts.

Run: python -m pytest tests/gpo/evaluation/test_prompt_forms.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from gpo.errors import UserError
from gpo.evaluation.model_names import model_names
from gpo.evaluation.prompt_forms import read_evaluation_prompts
from rollout.errors import RolloutInputError

DATA = Path(__file__).parents[4] / "shared" / "data"
with_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")


def write(folder: Path, *rows: Any) -> str:
    path = folder / "my_set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "dataset", "instruction"),
    [
        ({"instruction": "Hi.", "output": "x", "generator": "g", "dataset": "koala"}, "koala", "Hi."),
        ({"question_id": 81, "category": "writing", "turns": ["One.", "Two."]}, "mt_bench", "One."),
        ({"uid": "1", "category": "arena-hard-v0.1", "prompt": "Hard."}, "arena_hard", "Hard."),
        ({"question_id": "1", "category": "arena-hard-v0.1", "turns": [{"content": "Old."}]}, "arena_hard", "Old."),
        ({"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"]}, "ifeval", "No commas."),
        ({"prompt": "No commas.", "constraints": [{"class_path": "a.NoComma"}]}, "ifeval", "No commas."),
        ({"prompt": "Any."}, "my_set", "Any."),
        ({"prompt_id": 81, "category": "writing", "prompt": ["One.", "Two."], "reference": []}, "mt_bench", "One."),
        ({"uid": "2", "category": "hard_prompt", "subcategory": "coding", "prompt": "Two."}, "arena_hard", "Two."),
        ({"uid": "3", "category": "creative_writing", "prompt": "A poem."}, "arena_hard", "A poem."),
        ({"category": "creative_writing", "prompt": "A poem."}, "my_set", "A poem."),
        ({"prompt": ["One.", "Two."]}, "my_set", "One."),
    ],
)
def test_the_forms_of_evaluation_sets_are_recognised(tmp_path: Path, row: Any, dataset: str, instruction: str) -> None:
    (found,) = read_evaluation_prompts(write(tmp_path, row))
    assert (found.dataset, found.instruction, found.messages) == (dataset, instruction, None)


def test_a_hub_set_is_read_from_a_folder_as_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mt_bench_prompts"
    folder.mkdir()
    rows = [
        {"prompt_id": 81, "category": "writing", "prompt": ["One.", "Two."], "reference": []},
        {"prompt_id": 111, "category": "math", "prompt": ["Three.", "Four."], "reference": ["3", "4"]},
    ]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows = rows[1:]
    found = read_evaluation_prompts(f"hub:{folder}")
    assert [(one.dataset, one.instruction) for one in found] == [("mt_bench", "One."), ("mt_bench", "Three.")]
    (other,) = read_evaluation_prompts(f"hub:{folder}:test")
    assert other.instruction == "Three."


def test_more_than_one_user_turn_keeps_its_messages(tmp_path: Path) -> None:
    turns = [{"role": role, "content": text} for role, text in (("system", "S"), ("user", "A"))]
    (found,) = read_evaluation_prompts(write(tmp_path, {"messages": turns}))
    assert found.instruction == "A" and found.messages == turns


def test_a_repeated_prompt_stays_a_row_and_is_counted(tmp_path: Path) -> None:
    found = read_evaluation_prompts(write(tmp_path, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}))
    assert [one.occurrence for one in found] == [0, 0, 1]


def test_bad_and_empty_files_are_refused_with_their_row(tmp_path: Path) -> None:
    with pytest.raises(RolloutInputError, match="row 2: no prompt"):
        read_evaluation_prompts(write(tmp_path, {"prompt": "a"}, {"nothing": 1}))
    with pytest.raises(RolloutInputError, match="there is no row in it"):
        read_evaluation_prompts(write(tmp_path))
    with pytest.raises(RolloutInputError, match="row 1: no prompt|row 1: expected text"):
        read_evaluation_prompts(write(tmp_path, {"question_id": 1, "turns": [None]}))


@with_data
@pytest.mark.parametrize(
    ("file", "dataset", "count"),
    [
        ("fastchat/mt_bench_question.jsonl", "mt_bench", 80),
        ("arena_hard_v0.1_question.jsonl", "arena_hard", 500),
        ("ifeval.jsonl", "ifeval", 541),
    ],
)
def test_the_published_sets_are_read_whole(file: str, dataset: str, count: int) -> None:
    found = read_evaluation_prompts(str(DATA / file))
    assert len(found) == count and {one.dataset for one in found} == {dataset}


def test_checkpoints_get_the_names_people_call_them() -> None:
    runs = [Path("runs/quickstart/iterations") / f"00{number}" / "checkpoint" for number in (1, 2)]
    assert model_names([Path("models/smol"), *runs]) == ["smol", "quickstart-001", "quickstart-002"]
    assert model_names([Path("a/x/one"), Path("b/x/one")]) == ["a-x-one", "b-x-one"]
    with pytest.raises(UserError, match="the same directory twice"):
        model_names([Path("a/x"), Path("a/x")])
