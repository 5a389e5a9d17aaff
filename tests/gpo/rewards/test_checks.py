"""What is told before a training starts, by Ray or by torchrun, and what the driver says and does after one.

The trainings here run in this process. Run: python -m pytest tests/gpo/rewards/test_checks.py
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gpo.rewards.training as driver
from gpo import hub
from gpo.config.reward import RewardTrainConfig
from gpo.rewards import output, workers
from gpo.settings import read_settings
from reward.checkpoint_files import METRICS_FILE
from reward.training import train_pairs
from tests.gpo.command_line import gpo
from tests.gpo.rewards.workplace import make_workplace
from tests.reward.training_data import cycle, write_rows


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a tiny backbone, pairs and a config; DeepSpeed is missing."""
    make_workplace(tmp_path)
    write_rows(tmp_path / "bad.jsonl", [*cycle("q"), {"chosen": "a"}])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("reward.sharding.find_spec", lambda _name: None)
    return tmp_path


def config_of(*overrides: str) -> RewardTrainConfig:
    return read_settings(RewardTrainConfig, Path("config.yaml"), [*overrides])


def under_torchrun(monkeypatch: pytest.MonkeyPatch, *words: str, rank: int = 0) -> None:
    """What one process of torchrun does; there is no other."""
    monkeypatch.setattr(sys, "argv", ["workers", *words])
    monkeypatch.setenv("RANK", str(rank))
    if rank == 0:
        monkeypatch.delenv("RANK")
    workers.main()


MISTAKES = [
    ("output=base", "it is the backbone itself"),
    ("sharding=zero3", "sharding is zero3 and deepspeed is missing"),
    ("train=bad.jsonl", "row 4"),
    ("gradient_accumulation_steps=7", "a pair cannot be cut"),
    ("value_head_dim=65538", "less than or equal to 65536"),
    ("epochs=100001", "less than or equal to 100000"),
    ("stream_buffer=100001", "less than or equal to 100000"),
    ("batch_pairs=1000001", "less than or equal to 1000000"),
    ("adapter.rank=16385", "less than or equal to 16384"),
    ("seed=2147483648", "less than 2147483648"),
    ('output="a\\0b"', "'a\\x00b' has half a surrogate pair or a character 0"),
]


@pytest.mark.parametrize(("override", "told"), MISTAKES)
def test_a_mistake_is_told_before_ray_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, override: str, told: str
) -> None:
    monkeypatch.setattr(driver, "run_training", lambda *_: pytest.fail("Ray would start"))
    done = gpo(folder, "reward", "train", "config.yaml", override)
    assert done.status == 2 and told in done.said and not (folder / "out").exists(), done.said


@pytest.mark.parametrize("checks", [["--check"], []], ids=["check", "train"])
@pytest.mark.parametrize(("override", "told"), MISTAKES)
def test_torchrun_s_entry_tells_the_same_mistakes(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checks: list[str],
    override: str,
    told: str,
) -> None:
    monkeypatch.setattr("reward.training.train_pairs", lambda _task: pytest.fail("it would train"))
    with pytest.raises(SystemExit) as ended:
        under_torchrun(monkeypatch, *checks, "config.yaml", override)
    assert ended.value.code == 2 and told in capsys.readouterr().err and not (folder / "out").exists()


@pytest.mark.parametrize("checks", [["--check"], []], ids=["check", "train"])
def test_torchrun_trains_no_heads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checks: list[str]
) -> None:
    (folder / "heads.yaml").write_text("{backbone: base, train: train.jsonl, output: out}")
    with pytest.raises(SystemExit) as ended:
        under_torchrun(monkeypatch, *checks, "heads.yaml")
    assert ended.value.code == 2 and "torchrun would repeat" in capsys.readouterr().err


def test_a_check_without_a_mistake_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under_torchrun(monkeypatch, "--check", "config.yaml")
    assert not (folder / "out").exists()


def test_only_the_first_worker_of_torchrun_pushes_and_does_so_again_when_the_training_is_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[str] = []
    monkeypatch.setattr(hub, "push_reward_model", lambda config: pushed.append(config.output))
    for rank in (0, 0, 1):
        under_torchrun(monkeypatch, "config.yaml", "epochs=1", rank=rank)
    assert pushed == ["out", "out"] and (folder / "out" / "README.md").is_file()


def test_a_second_start_with_the_same_output_is_refused_while_the_first_is_at_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "run_training", lambda *_: pytest.fail("it would train"))
    with output.held(config_of()):
        for words in ([], ["--fresh"]):
            done = gpo(folder, "reward", "train", "config.yaml", *words)
            assert done.status == 2 and "another training is at work" in done.said, done.said
        with pytest.raises(SystemExit) as ended:
            under_torchrun(monkeypatch, "config.yaml")
    assert ended.value.code == 2 and "another training is at work" in capsys.readouterr().err


def test_a_cyclic_experiment_without_cycles_or_data_is_told(folder: Path) -> None:
    done = gpo(folder, "reward", "cyclic", "backbone=base", "cycles=[]", "--output", "cyclic")
    assert done.status == 2 and "cycles = []: there is nothing to train on" in done.said


def test_a_fresh_start_deletes_all_but_the_lock_that_it_holds(folder: Path) -> None:
    config = config_of()
    output.begin(config)
    (folder / "out" / METRICS_FILE).write_text("{}")
    (folder / "out/training/steps").mkdir()
    with output.held(config):
        output.check_ours(config)
        output.clear(config)
    assert [str(path.relative_to(folder / "out")) for path in sorted((folder / "out").rglob("*"))] == [
        "training",
        "training/.lock",
    ]


def test_auto_is_the_type_of_the_machine_that_trains_and_the_driver_tells_it_and_what_no_card_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(task: Any, _config: RewardTrainConfig) -> None:
        assert task.settings.precision == "auto"
        monkeypatch.setattr("reward.training.compute_type", lambda *_: "bfloat16")
        train_pairs(task)

    monkeypatch.setattr(driver, "run_training", run)
    done = gpo(folder, "reward", "train", "config.yaml", "epochs=1", "dtype=auto", "gate_prompt=all_but_last")
    assert done.status == 0 and "dtype: bfloat16, by the instructions of the machine that trained" in done.said
    assert "out is not card-compatible: gate_prompt" in done.said
    report = json.loads((folder / "out" / METRICS_FILE).read_text())
    weights = load_file(folder / "out/model.safetensors")
    assert report["settings"]["precision"] == "bfloat16"
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16, torch.float32}
