"""Preference sources: a reward model and a Python function behind the same two calls."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from reward.errors import RewardInputError
from reward.model import GeneralPreferenceModel
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings
from reward.source import (
    Answer,
    AnswerGroup,
    FunctionSource,
    Message,
    ModelSource,
    check_source,
    open_source,
)
from tests.tiny import save_tiny_model

torch.set_num_threads(1)
PREFER = "def prefer(messages, a, b):\n    return (len(a.text) - len(b.text)) / 10\n"
BUDGET: dict[str, Any] = {"max_length": 512, "batch_tokens": 2048}


def group(prompt: str, *texts: str) -> AnswerGroup:
    return AnswerGroup([{"role": "user", "content": prompt}], [Answer(text, True) for text in texts])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    base = save_tiny_model(folder / "base")
    model = GeneralPreferenceModel.from_backbone(base, RewardSettings.published(6, True), seed=1)
    model.save_pretrained(folder / "gpm")
    return folder / "gpm"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "taste.py"
    path.write_text(PREFER, "utf-8")
    return path


def test_a_model_fills_the_table_the_scorer_gives(model_dir: Path) -> None:
    source = open_source(f"gpm:{model_dir}", **BUDGET)
    groups = [group("Name a sea.", "the North Sea", "", "Everest"), group("And a hill?", "x", "a hill")]
    read = source.read(groups)
    scorer = PreferenceScorer.from_pretrained(model_dir)
    for found, asked in zip(read, groups, strict=True):
        table = scorer.table(asked.messages, [answer.text for answer in asked.answers])
        torch.testing.assert_close(source.compare(found), table, rtol=0, atol=1e-5)
        assert torch.equal(source.compare(found), -source.compare(found).T)
    assert source.tau == scorer.tau and open_source(f"gpm:{model_dir}", tau=0.3, **BUDGET).tau == 0.3


def test_a_model_compares_with_other_answers_to_the_same_prompt_only(model_dir: Path) -> None:
    source = open_source(f"gpm:{model_dir}", **BUDGET)
    ours, theirs, both, elsewhere = source.read(
        [group("q", "a", "bb"), group("q", "c"), group("q", "a", "bb", "c"), group("other", "c")]
    )
    table = source.compare(both)
    torch.testing.assert_close(source.compare(ours, theirs), table[:2, 2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(source.compare(theirs, ours), -source.compare(ours, theirs).T)
    with pytest.raises(RewardInputError, match="expected the same prompt"):
        source.compare(ours, elsewhere)


def test_a_model_reads_all_groups_in_one_go_and_compares_without_a_forward_pass(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(f"gpm:{model_dir}", **BUDGET)
    assert isinstance(source, ModelSource)
    seen: list[int] = []
    embed = source.scorer.embed

    def counting(talks: Any) -> Any:
        seen.append(len(talks))
        return embed(talks)

    monkeypatch.setattr(source.scorer, "embed", counting)
    read = source.read([group("q", "a", "b"), group("r", "c")])
    source.compare(read[0])
    source.compare(read[0], read[0])
    assert seen == [3] and source.read([]) == []


def test_a_function_is_asked_once_for_a_pair_and_its_table_is_skew(file: Path) -> None:
    source = open_source(f"python:{file}:prefer", **BUDGET)
    (read,) = source.read([group("q", "a", "bbb", "cc")])
    expected = torch.tensor([[0.0, -0.2, -0.1], [0.2, 0.0, 0.1], [0.1, -0.1, 0.0]])
    torch.testing.assert_close(source.compare(read), expected)
    assert source.tau == 0.1 and read.emb_KD is None and read.gate_L is None
    calls: list[tuple[str, str]] = []

    def unfair(messages: list[Message], a: Answer, b: Answer) -> float:
        calls.append((a.text, b.text))
        return 1.0

    table = FunctionSource(unfair, "unfair").compare(read)
    assert torch.equal(table, -table.T) and len(calls) == 3
    (other,) = source.read([group("q", "dddd", "e")])
    assert source.compare(read, other).shape == (3, 2)
    torch.testing.assert_close(source.compare(read, other)[0], torch.tensor([-0.3, 0.0]))
    assert not FunctionSource(unfair, "unfair").compare(read, other).any(), "whatever comes first is no preference"


@pytest.mark.parametrize("value", [1.5, -2, float("nan"), float("inf"), "much", None, True])
def test_a_function_that_answers_nonsense_is_named(value: Any) -> None:
    source = FunctionSource(lambda messages, a, b: value, "python:taste.py:prefer")
    (read,) = source.read([group("q", "a", "b")])
    with pytest.raises(RewardInputError, match=r"python:taste\.py:prefer returned"):
        source.compare(read)


def test_a_group_without_answers_is_refused(file: Path) -> None:
    with pytest.raises(RewardInputError, match="group 1 has no answers"):
        open_source(f"python:{file}:prefer", **BUDGET).read([group("q", "a"), group("q")])


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("gpm:", "expected gpm:DIR"),
        ("judge:x", "expected gpm:DIR"),
        ("python:{file}", "no such file|expected gpm:DIR"),
        ("python:{file}:missing", "no function 'missing'; it defines prefer"),
        ("python:{file}.none:prefer", "no such file"),
        ("gpm:{file}", "no config.json"),
    ],
)
def test_a_source_that_does_not_exist_is_refused_by_the_check_and_by_opening(file: Path, spec: str, told: str) -> None:
    for attempt in (check_source, lambda spec: open_source(spec, **BUDGET)):
        with pytest.raises(RewardInputError, match=told):
            attempt(spec.format(file=file))


def test_a_file_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    path = tmp_path / "taste.py"
    path.write_text("import no_such_module\n" + PREFER, "utf-8")
    check_source(f"python:{path}:prefer")
    with pytest.raises(RewardInputError, match="cannot be imported .*no_such_module"):
        open_source(f"python:{path}:prefer", **BUDGET)
    path.write_text("prefer = 3\n", "utf-8")
    with pytest.raises(RewardInputError, match="prefer is 3"):
        open_source(f"python:{path}:prefer", **BUDGET)
    path.write_text("def prefer(:\n", "utf-8")
    with pytest.raises(RewardInputError, match="is not Python"):
        check_source(f"python:{path}:prefer")


def test_the_check_accepts_a_model_and_loads_neither_torch_nor_the_function(model_dir: Path, file: Path) -> None:
    file.write_text("raise SystemExit('executed')\n" + PREFER, "utf-8")
    program = (
        "import sys; from reward.source import check_source\n"
        f"check_source({f'gpm:{model_dir}'!r}); check_source({f'python:{file}:prefer'!r})\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_check_finds_what_a_model_directory_lacks(model_dir: Path, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    with pytest.raises(RewardInputError, match="no tensor 'value_head.weight'"):
        check_source(f"gpm:{base}")
    model = GeneralPreferenceModel.from_pretrained(model_dir)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    check_source(f"gpm:{tmp_path / 'sharded'}")
    config = json.loads((tmp_path / "sharded" / "config.json").read_text("utf-8"))
    (tmp_path / "sharded" / "config.json").write_text(json.dumps({**config, "hidden_size": 32}), "utf-8")
    with pytest.raises(RewardInputError, match=r"shape \[6, 64\], expected \[rows, 32\]"):
        check_source(f"gpm:{tmp_path / 'sharded'}")
    model.save_pretrained(tmp_path / "mute")
    settings = tmp_path / "mute" / "tokenizer_config.json"
    kept = json.loads(settings.read_text("utf-8"))
    kept.pop("chat_template", None)
    settings.write_text(json.dumps(kept), "utf-8")
    (tmp_path / "mute" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(RewardInputError, match="no chat template"):
        check_source(f"gpm:{tmp_path / 'mute'}")
