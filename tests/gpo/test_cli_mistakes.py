"""Mistakes on the command line: status 2, one message that names field or row and the next step, no traceback.

Run: python -m pytest tests/gpo/test_cli_mistakes.py
What is found before anything heavy is loaded is a process of its own, as a user starts it.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gpo.journal import open_run
from gpo.preflight import prepare
from reward.model import GeneralPreferenceModel
from reward.settings import RewardSettings
from tests.gpo.command_line import Outcome, gpo, gpo_process
from tests.gpo.report_runs import plant_run
from tests.gpo.small_runs import run_config, run_values, write_yaml
from tests.tiny import make_tokenizer, save_tiny_model

LONGEST_SECONDS = 40
PROMPTS = [{"prompt": f"Name {number} seas."} for number in range(8)]
TASTE = "def prefer(messages, a, b):\n    return (len(a.text) - len(b.text)) / 10\n"


def gpo_at_once(*words: str | Path, cwd: Path) -> Outcome:
    started = time.perf_counter()
    found = gpo_process(cwd, *words, timeout=120)
    assert time.perf_counter() - started < LONGEST_SECONDS
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "policy", layers=1)
    backbone = save_tiny_model(folder / "backbone", layers=1, seed=1)
    reward = GeneralPreferenceModel.from_backbone(backbone, RewardSettings.published(6, True), seed=1)
    reward.save_pretrained(folder / "gpm")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A working directory from which a run would start: policy, prompts, a Python source."""
    shutil.copytree(models / "policy", tmp_path / "policy")
    write_prompts(tmp_path, [json.dumps(row) for row in PROMPTS])
    (tmp_path / "taste.py").write_text(TASTE)
    return tmp_path


def write_prompts(folder: Path, lines: list[str]) -> None:
    (folder / "prompts.jsonl").write_text("".join(line + "\n" for line in lines), "utf-8")


def config(folder: Path, **changes: Any) -> Path:
    return write_yaml(folder / "run.yaml", run_values(folder, **changes))


def refused(outcome: Outcome, *words: str) -> None:
    """Status 2 and one message, which has all the words."""
    assert outcome.status == 2, outcome
    assert outcome.said.startswith("gpo: ") and outcome.said.count("gpo: ") == 1, outcome.said
    assert "Traceback" not in outcome.said and 'File "' not in outcome.said and outcome.printed == ""
    for word in words:
        assert word in outcome.said, f"{word!r} is not in:\n{outcome.said}"


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    refused(gpo_at_once("run", "none.yaml", cwd=tmp_path), "none.yaml", "expected a YAML file")


def test_misspelt_keys_wrong_types_and_too_few_samples_are_told_together(folder: Path) -> None:
    path = config(folder, train={"learning_rat": 1e-5}, target={"beta": "strong"})
    outcome = gpo_at_once("run", path, "rollout.samples=1", "--run-dir", "elsewhere", "iterations=many", cwd=folder)
    refused(
        outcome,
        "4 fault(s)",
        "train.learning_rat: unknown key; did you mean 'learning_rate'?",
        "target.beta = 'strong': Input should be a valid number",
        "rollout.samples = 1: Input should be greater than or equal to 2",
        "iterations = 'many': Input should be a valid integer",
    )
    assert not (folder / "elsewhere").exists()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["prompts.train", "there is no row in it", "`instruction`"]),
        (['{"prompt": "a"}', '{"prompt": "b"'], ["prompts.train", "line 2: not valid JSON"]),
        (['{"prompt": "a"}', '{"text": "b"}'], ["prompts.train", "row 2", "no prompt; expected", "['text']"]),
    ],
)
def test_a_file_of_prompts_is_refused_with_field_row_and_expectation(
    folder: Path, lines: list[str], words: list[str]
) -> None:
    write_prompts(folder, lines)
    refused(gpo_at_once("run", config(folder), cwd=folder), str(folder / "prompts.jsonl"), *words)


def test_a_file_of_prompts_that_is_missing_or_not_text_is_refused(folder: Path) -> None:
    (folder / "prompts.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    refused(gpo_at_once("run", config(folder), cwd=folder), "prompts.train", "not UTF-8 text")
    heldout = config(folder, prompts={"heldout": "none.jsonl"})
    write_prompts(folder, ['{"prompt": "a"}'])
    refused(gpo_at_once("run", heldout, cwd=folder), "prompts.heldout", "none.jsonl: no such file", ".parquet")


def test_too_few_prompts_to_hold_some_out_are_refused(folder: Path) -> None:
    refused(
        gpo_at_once("run", config(folder, prompts={"heldout_count": 7}), cwd=folder),
        "prompts.heldout_count = 7",
        "only 8 distinct prompts",
        "lower prompts.heldout_count",
    )


def test_a_policy_without_chat_template_config_or_safe_weights_is_refused(folder: Path) -> None:
    path = config(folder)
    shutil.rmtree(folder / "policy")
    refused(
        gpo_at_once("run", path, cwd=folder),
        "policy.model: ",
        "policy: no config.json; expected a Hugging Face model directory",
    )
    save_tiny_model(folder / "policy", layers=1)
    (folder / "policy" / "chat_template.jinja").unlink()
    make_tokenizer(None).save_pretrained(folder / "policy")
    refused(gpo_at_once("run", path, cwd=folder), "policy.model", "no chat template", "chat_template.jinja")
    (folder / "policy" / "model.safetensors").rename(folder / "policy" / "pytorch_model.bin")
    refused(gpo_at_once("run", path, cwd=folder), "no *.safetensors weights", "save_pretrained")


def with_reward_model(folder: Path, models: Path) -> Path:
    shutil.copytree(models / "gpm", folder / "gpm")
    return config(folder, preference={"sources": {"gpm": f"gpm:{folder / 'gpm'}"}, "train_on": "gpm"})


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (6, 32, ["value_head.weight", "has shape [6, 32], expected [rows, 64]"]),
        (5, 64, ["have 5 (value) and 3 (prompt) rows, expected an even number or 1"]),
        (0, 0, ["no tensor 'value_head.weight'", "gpo reward train"]),
    ],
)
def test_a_reward_model_whose_heads_do_not_fit_is_refused_by_the_name_of_its_source(
    folder: Path, models: Path, rows: int, columns: int, words: list[str]
) -> None:
    path = with_reward_model(folder, models)
    file = folder / "gpm" / "model.safetensors"
    tensors = load_file(file)
    head = tensors.pop("value_head.weight")
    if rows:
        tensors["value_head.weight"] = head[:rows, :columns].contiguous()
    save_file(tensors, file)
    refused(gpo_at_once("run", path, cwd=folder), "preference.sources.gpm", str(folder / "gpm"), *words)


def test_a_source_in_python_that_is_not_there_is_refused_by_its_name(folder: Path) -> None:
    refused(
        gpo_at_once("run", config(folder), f"preference.sources.taste=python:{folder / 'taste.py'}:like", cwd=folder),
        "preference.sources.taste",
        "has no function 'like'",
        "prefer",
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["run"],
        ["start", "run.yaml"],
        ["run", "run.yaml", "--runs-dir", "x"],
        ["run", "run.yaml", "--dry-run", "second.yaml"],
    ],
)
def test_words_that_are_not_understood_end_with_the_usage(words: list[str], tmp_path: Path) -> None:
    outcome = gpo_at_once(*words, cwd=tmp_path)
    assert outcome.status == 2 and outcome.said.startswith("usage: gpo") and outcome.printed == ""
    assert "Traceback" not in outcome.said


def test_a_reward_training_is_refused_the_same_way(folder: Path, models: Path) -> None:
    values = {"backbone": str(models / "backbone"), "train": "none.jsonl", "heldout": "none.jsonl", "output": "out"}
    path = write_yaml(folder / "reward.yaml", values)
    refused(gpo_at_once("reward", "train", path, "taw=1", cwd=folder), "taw: unknown key; did you mean 'tau'?")
    refused(gpo_at_once("reward", "train", path, "backbone=none", cwd=folder), "none: no config.json")
    refused(gpo_at_once("reward", "train", path, cwd=folder), "none.jsonl")


# From here on the tokenizer is loaded, which takes seconds in a new process.


def test_a_prompt_that_is_too_long_is_refused_where_that_was_asked_for(folder: Path) -> None:
    write_prompts(folder, [json.dumps(row) for row in [*PROMPTS, {"prompt": "long " * 60}, *PROMPTS]])
    path = config(folder, prompts={"max_tokens": 100, "over_long": "refuse", "heldout_count": 2})
    outcome = gpo(folder, "run", path)
    refused(outcome, "longer than 100 tokens", "'long long", "prompts.max_tokens", "prompts.over_long=skip")


def test_a_run_directory_of_another_run_is_refused_with_the_keys_that_differ(folder: Path) -> None:
    path = config(folder)
    settings = run_config(folder, seed=5, target={"beta": 0.25})
    open_run(folder / "run", settings, fresh=False, versions={}, data=prepare(settings).data_sha256)
    before = {file.name: file.read_bytes() for file in (folder / "run").iterdir()}
    outcome = gpo(folder, "run", path, "--run-dir", "run")
    refused(outcome, "seed: 5 -> 0", "target.beta: 0.25 -> 1.0", "--run-dir", "--fresh")
    assert {file.name: file.read_bytes() for file in (folder / "run").iterdir()} == before


def test_a_run_in_auto_goes_on_in_the_type_in_which_another_machine_began_it(folder: Path) -> None:
    path = config(folder, policy={"dtype": "auto"})
    begun = run_config(folder, policy={"dtype": "bfloat16"})
    open_run(folder / "run", begun, fresh=False, versions={}, data=prepare(begun).data_sha256)
    outcome = gpo(folder, "run", path, "--run-dir", "run", "--dry-run")
    assert outcome.status == 0 and "# policy.dtype = auto: bfloat16, as the run was begun" in outcome.printed, outcome


def test_a_machine_that_is_too_small_is_told_in_numbers(folder: Path) -> None:
    outcome = gpo(folder, "run", config(folder), GPO_MEMORY_GIB="0.5")
    refused(outcome, "GiB of memory", "learner", "0.5 GiB are free", "train.batch_tokens")
    assert not (folder / "runs").exists()


def test_a_dry_run_prints_config_and_plan_and_starts_nothing(folder: Path) -> None:
    write_prompts(folder, [json.dumps(row) for row in [*PROMPTS, PROMPTS[0]]])
    before = sorted(folder.rglob("*"))
    path = config(folder)
    outcome = gpo(folder, "run", path, "--dry-run", "seed=7")
    assert outcome.status == 0 and outcome.said == "", outcome
    for words in (
        "name: small\nseed: 7\n",
        "learning_rate: 5.0e-07",
        "M parameters; run directory runs/small",
        "# memory, learner:",
        "# prompts.train: 1 rows repeat an earlier prompt",
        "# prompts an iteration: 3, 3; held out: 2",
    ):
        assert words in outcome.printed, f"{words!r} is not in:\n{outcome.printed}"
    assert sorted(set(folder.rglob("*")) - {path}) == before


def test_a_dry_run_says_that_the_directory_holds_another_run(folder: Path) -> None:
    path = config(folder)
    plant_run(folder / "runs/small")
    before = (folder / "runs/small/journal.jsonl").read_bytes()
    refused(gpo(folder, "run", path, "--dry-run"), "runs/small: holds a run with other settings", "--run-dir")
    assert gpo(folder, "run", path, "--dry-run", "--fresh").status == 0
    assert (folder / "runs/small/journal.jsonl").read_bytes() == before
