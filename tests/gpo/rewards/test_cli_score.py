"""`gpo reward score` as a user starts it: status 0, 1 and 2, and what is said.

Run: python -m pytest tests/gpo/rewards/test_cli_score.py
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpo.modelfiles import longest_conversation
from reward.model import GeneralPreferenceModel
from reward.settings import RewardSettings
from tests.gpo.command_line import Outcome, gpo, gpo_process
from tests.tiny import make_tokenizer, save_tiny_model

PAIR = {
    "chosen": [{"role": "user", "content": "Name a sea."}, {"role": "assistant", "content": "The North Sea."}],
    "rejected": [{"role": "user", "content": "Name a sea."}, {"role": "assistant", "content": "Everest."}],
}
GROUP = {"prompt": "Name a sea.", "responses": ["The North Sea.", "Everest.", "Baltic"]}
BROKEN = {"chosen": "The North Sea."}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    backbone = save_tiny_model(folder / "backbone", layers=1)
    reward = GeneralPreferenceModel.from_backbone(backbone, RewardSettings.published(6, True), seed=1)
    reward.save_pretrained(folder / "gpm")
    return folder / "gpm"


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def score(folder: Path, *words: str | Path) -> Outcome:
    found = gpo(folder, "reward", "score", *words, OMP_NUM_THREADS="1")
    assert found.printed == ""
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.status == 2, outcome
    assert outcome.said.splitlines()[-1].startswith(("gpo: ", "gpo reward score: error: ")), outcome.said
    for word in words:
        assert word in outcome.said, f"{word!r} is not in:\n{outcome.said}"


def test_a_file_of_good_rows_is_status_0_and_tells_what_came_out(model: Path, tmp_path: Path) -> None:
    data, output = write(tmp_path, PAIR, GROUP, PAIR), tmp_path / "new" / "scores.jsonl"
    words = ["--model", model, "--data", data, "--output", output, "--dtype", "float32"]
    found = gpo_process(tmp_path, "reward", "score", *words)
    assert found.status == 0 and found.printed == "", found
    first, second, third = lines(output)
    assert {**third, "row": 1} == first and [len(row) for row in second["table"]] == [3, 3, 3]
    assert "max_length: 512 tokens, the model's context" in found.said
    assert "new/scores.jsonl: 3 of 3 rows scored, chosen preferred in" in found.said
    assert not list(output.parent.glob("*.part*"))


def test_rows_that_fail_are_status_1_with_their_numbers(model: Path, tmp_path: Path) -> None:
    data, output = write(tmp_path, BROKEN, PAIR, BROKEN, 7, BROKEN), tmp_path / "scores.jsonl"
    found = score(tmp_path, "--model", model, "--data", data, "--output", output, "--batch-rows", 2)
    assert found.status == 1, found
    assert f"gpo: 4 of 5 rows of {data} could not be scored: rows 1, 3, 4, ..." in found.said
    assert ["error" in line for line in lines(output)] == [True, False, True, True, True]


def test_a_mistake_is_status_2_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    data, output = write(tmp_path, PAIR, BROKEN), tmp_path / "scores.jsonl"
    given = ["--model", model, "--data", data, "--output", output]
    refused(score(tmp_path, *given, "--strict"), f"{data}, row 2: ", "there is no 'rejected'")
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
    refused(score(tmp_path, *given, "--output", data), "is the data file itself")
    refused(score(tmp_path, *given, "--data", tmp_path / "none.jsonl"), "none.jsonl: no such file")
    refused(score(tmp_path, *given, "--model", tmp_path), "has no config.json")
    refused(score(tmp_path, *given, "--batch-rows", "0"), "--batch-rows", "no whole number above 0")
    refused(score(tmp_path, *given, "--output", data / "scores.jsonl"), "cannot be made a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_length_beyond_the_context_is_lowered_to_it_and_said(model: Path, tmp_path: Path) -> None:
    long = {"prompt": "Name a sea.", "responses": ["The North Sea.", "sea " * 400]}
    data, output = write(tmp_path, long), tmp_path / "scores.jsonl"
    found = score(tmp_path, "--model", model, "--data", data, "--output", output, "--max-length", 100_000)
    assert found.status == 0, found
    assert "max_length: 512 tokens instead of 100000, because the model was made for no more" in found.said
    assert lines(output)[0]["truncated"] == [False, True] and "1 rows cut to max_length" in found.said
    assert [longest_conversation(model, asked) for asked in (None, 100, 512, 513)] == [512, 100, 512, 512]


def test_a_model_without_template_scores_rows_in_the_custom_form(model: Path, tmp_path: Path) -> None:
    mute = Path(shutil.copytree(model, tmp_path / "mute"))
    make_tokenizer(None).save_pretrained(mute)
    custom = {"instruction": "Name a sea.", "chosen": "North", "reject": "Everest"}
    given = ["--model", mute, "--output", tmp_path / "scores.jsonl", "--overwrite"]
    assert score(tmp_path, *given, "--data", write(tmp_path, custom, custom)).status == 0
    assert ["score" in line for line in lines(tmp_path / "scores.jsonl")] == [True, True]
    assert score(tmp_path, *given, "--data", write(tmp_path, custom, PAIR)).status == 1
    first, second = lines(tmp_path / "scores.jsonl")
    assert "score" in first and second["error"].startswith("row 2: the tokenizer has no chat template")
    refused(score(tmp_path, *given, "--data", write(tmp_path, PAIR, GROUP)), "no chat template")


def test_an_output_that_exists_is_refused_and_replaced_when_asked(model: Path, tmp_path: Path) -> None:
    data, output = write(tmp_path, PAIR), tmp_path / "scores.jsonl"
    output.write_text("precious\n")
    given = ["--model", model, "--data", data, "--output", output]
    refused(score(tmp_path, *given), "exists already", "--overwrite")
    assert output.read_text() == "precious\n"
    assert score(tmp_path, *given, "--overwrite").status == 0
    assert lines(output)[0]["row"] == 1


def test_the_help_has_an_example_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom gpo.cli import main\n"
        "try:\n    main(['reward', 'score', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'pydantic', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = " ".join(done.stdout.split())
    assert "example: gpo reward score --model" in said and said.endswith("[]")
