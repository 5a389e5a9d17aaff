"""`gpo reward train, bench, cyclic` as commands: two workers, torchrun's way, and what a mistake is told.

Run: python -m pytest tests/gpo/rewards/test_training.py
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpo.rewards.cyclic import shortcomings
from reward.cyclic import CyclicRow
from reward.scorer import PreferenceScorer
from tests.gpo.command_line import gpo as gpo_here
from tests.gpo.rewards.workplace import environment, losses, make_workplace
from tests.reward.training_data import ANSWERS, cycle, write_rows

DEEPSPEED = Path(sys.prefix) / "deepspeed"
"""Aside, where `make setup` puts it: each process that finds it imports it, for seconds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone, pairs and a config."""
    made = tmp_path_factory.mktemp("reward")
    make_workplace(made)
    return made


def gpo(folder: Path, *words: str, beside: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gpo", *words]
    return subprocess.run(command, cwd=folder, env=environment(beside), capture_output=True, text=True, timeout=280)


def run_workers(folder: Path, world: int, *overrides: str, beside: Path | None = None) -> None:
    """As torchrun starts them: a process a worker, each told its rank; `beside` is a folder of more packages."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    processes = []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        more = {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "tests.gpo.rewards.watched_worker", "config.yaml", *overrides]
        with (folder / f"log-{rank}.txt").open("w") as log:
            processes.append(
                subprocess.Popen(
                    command, cwd=folder, env=environment(beside, **more), stdout=log, stderr=subprocess.STDOUT
                )
            )
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world, (folder / "log-0.txt").read_text()[-3000:]


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """What one worker by Ray Train leaves."""
    done = gpo(folder, "reward", "train", "config.yaml", "output=alone")
    assert done.returncode == 0, done.stderr
    assert "held-out pairs" in done.stderr
    return folder / "alone"


def test_a_trained_model_is_read_by_the_scorer_as_it_is(alone: Path) -> None:
    table = PreferenceScorer.from_pretrained(alone).table([{"role": "user", "content": "Go"}], list(ANSWERS))
    assert table.shape == (3, 3) and json.loads((alone / "training_metrics.json").read_text())["steps"] == 8


def test_a_finished_training_says_so_and_another_config_is_refused(folder: Path, alone: Path) -> None:
    again = gpo(folder, "reward", "train", "config.yaml", "output=alone")
    assert again.returncode == 0 and "is finished" in again.stderr
    other = gpo(folder, "reward", "train", "config.yaml", "output=alone", "tau=0.2")
    assert other.returncode == 2 and "another tau" in other.stderr and "--fresh" in other.stderr


def test_two_workers_of_ray_train_have_the_loss_curve_of_one(folder: Path, alone: Path) -> None:
    done = gpo(folder, "reward", "train", "config.yaml", "output=two", "workers=2")
    assert done.returncode == 0, done.stderr
    assert losses(folder / "two") == pytest.approx(losses(alone), abs=1e-5)
    one, two = (json.loads((path / "training_metrics.json").read_text()) for path in (alone, folder / "two"))
    assert two["best_step"] == one["best_step"] and two["workers"] == 2


ADAPTER = ["tune=adapter"]
PRECISE = ["dtype=bfloat16", "learn_tau=true"]
"""Computed in bfloat16, while heads and tau stay float32."""


@pytest.fixture(scope="module")
def by_one(folder: Path) -> Callable[[list[str]], Path]:
    """What one worker that torchrun started leaves; each set of overrides is trained once."""
    made: dict[str, Path] = {}

    def train(overrides: list[str]) -> Path:
        name = "-".join(["by-one", *overrides]).replace("=", "-")
        if name not in made:
            run_workers(folder, 1, f"output={name}", *overrides)
            made[name] = folder / name
        return made[name]

    return train


@pytest.mark.long  # `make kill`
@pytest.mark.parametrize(
    ("sharding", "overrides"),
    [("none", []), ("zero1", []), ("zero2", []), ("zero3", []), ("zero2", ADAPTER), ("zero3", ADAPTER)]
    + [("zero2", PRECISE), ("zero3", PRECISE)],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_workers_that_torchrun_started_train_the_same_model_in_pieces_and_save_one_directory(
    folder: Path, by_one: Callable[[list[str]], Path], sharding: str, overrides: list[str]
) -> None:
    assert DEEPSPEED.is_dir(), "make setup puts it there"
    alone, name = by_one(overrides), "-".join(["by-two", sharding, *overrides]).replace("=", "-")
    words = [f"output={name}", "workers=2", f"sharding={sharding}", *overrides]
    run_workers(folder, 2, *words, beside=None if sharding == "none" else DEEPSPEED)
    tolerance = 2e-2 if overrides == PRECISE else 1e-5 if sharding == "none" else 1e-3
    assert losses(folder / name) == pytest.approx(losses(alone), abs=tolerance)
    whole, found = (load_file(path / "model.safetensors") for path in (alone, folder / name))
    assert whole.keys() == found.keys()
    assert all((whole[key].float() - found[key].float()).abs().max() < 10 * tolerance for key in whole)
    held = [json.loads((folder / f"held-{rank}.json").read_text()) for rank in range(2)]
    trained = held[0]["states"] + held[1]["states"]
    if sharding != "none":
        assert all(one["states"] <= 0.6 * trained for one in held)
    if sharding == "zero3":
        assert all(one["weights"] < 0.6 * sum(tensor.numel() for tensor in whole.values()) for one in held)
    if overrides == PRECISE:
        assert [one["computed"] for one in held] == ["torch.bfloat16"] * 2
        head, tau = found["value_head.weight"], PreferenceScorer.from_pretrained(folder / name).tau
        assert head.dtype == torch.float32 and (head.bfloat16().float() != head).any()
        assert tau != 0.1 and tau == pytest.approx(PreferenceScorer.from_pretrained(alone).tau, rel=1e-2)


@pytest.mark.long  # `make kill`
def test_workers_of_ray_train_save_one_directory_from_pieces(folder: Path, alone: Path) -> None:
    words = ["config.yaml", "output=pieces", "workers=2", "sharding=zero3"]
    done = gpo(folder, "reward", "train", *words, beside=DEEPSPEED)
    assert done.returncode == 0, done.stderr
    assert losses(folder / "pieces") == pytest.approx(losses(alone), abs=1e-3)
    whole, found = (load_file(path / "model.safetensors") for path in (alone, folder / "pieces"))
    assert whole.keys() == found.keys()


def test_fresh_deletes_only_what_a_training_wrote(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("years of work")
    refused = gpo(folder, "reward", "train", "config.yaml", "output=mine", "--fresh")
    assert refused.returncode == 2 and "--fresh would delete" in refused.stderr, refused.stderr
    assert (folder / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.long  # `make kill`
def test_two_workers_that_cut_their_steps_have_the_loss_curve_of_one(
    folder: Path, by_one: Callable[[list[str]], Path]
) -> None:
    run_workers(folder, 2, "output=cut", "workers=2", "gradient_accumulation_steps=2")
    assert losses(folder / "cut") == pytest.approx(losses(by_one([])), abs=1e-5)


def test_a_bad_row_is_told_before_anything_starts(folder: Path) -> None:
    write_rows(folder / "bad.jsonl", [*cycle("q"), {"chosen": "a"}])
    started = time.monotonic()
    done = gpo(folder, "reward", "train", "config.yaml", "train=bad.jsonl", "output=bad")
    assert done.returncode == 2 and "row 4" in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - started < 60 and not (folder / "bad").exists()


@pytest.mark.long  # `make kill`
def test_a_mistake_that_only_a_worker_sees_is_the_caller_s_and_is_not_tried_again(folder: Path, alone: Path) -> None:
    done = gpo(folder, "reward", "train", "config.yaml", "backbone=alone", "value_head_dim=6", "output=wider")
    assert done.returncode == 2 and "value_head_dim" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert len(list((folder / "wider/training/logs").glob("worker-*"))) == 1


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trackers=[mlflow]", "'mlflow'"),
        ("heldout=null", "heldout is not; there is nothing to measure on"),
        ("tune=heads", "dtype, evaluate_steps, save_steps, cluster: not with tune = heads"),
        ("best_metric=cyclic_accuracy", "no held-out pair has labels that go in circles"),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(folder: Path, override: str, told: str) -> None:
    write_rows(folder / "plain.jsonl", cycle("Show!")[:1])
    done = gpo_here(folder, "reward", "train", "config.yaml", "output=none", "heldout=plain.jsonl", override)
    assert done.status == 2 and told in done.said, done.said


def test_bench_writes_rows_and_sections(folder: Path, alone: Path) -> None:
    rows = [{"prompt": "Go", "chosen": ANSWERS[1], "rejected": ANSWERS[0], "subset": "hep-go", "id": 1}]
    write_rows(folder / "bench.jsonl", rows)
    done = gpo(folder, "reward", "bench", "--model", "alone", "--data", "bench.jsonl", "--output", "bench")
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, (folder / "bench/pairs.jsonl").read_text().splitlines())
    summary = json.loads((folder / "bench/bench.json").read_text())
    assert summary["sections"]["Reasoning"] == row["correct"] and "Reasoning" in done.stdout
    refused = gpo(folder, "reward", "bench", "--model", "alone", "--data", "none", "--output", "bench")
    assert refused.returncode == 2 and "no such file" in refused.stderr


def test_a_check_of_cycles_names_what_came_out_wrong() -> None:
    def row(model: str, accuracy: float, ceiling: float | None = 2 / 3) -> CyclicRow:
        return CyclicRow("3-cycle", model, 4, 3, accuracy, ceiling, 1, 0.0)

    assert shortcomings([row("gpm", 1.0), row("bt", 2 / 3), row("bt", 0.9, None)]) == []
    missed, above = shortcomings([row("gpm", 0.9), row("bt", 0.7)])
    assert "GPM is right on 90.0%" in missed and "70.0%, above the scalar ceiling 66.7%" in above


def test_cyclic_writes_rows_next_to_the_ceiling(folder: Path) -> None:
    rates = ["learning_rate=3e-4", "head_learning_rate=1e-2"]
    words = ["backbone=base", "cycles=[3]", "epochs=60", *rates, "--output", "cyclic", "--check"]
    done = gpo(folder, "reward", "cyclic", *words)
    assert done.returncode == 0, done.stderr
    rows = json.loads((folder / "cyclic/cyclic.json").read_text())
    assert [(row["data"], row["model"]) for row in rows] == [("3-cycle", "gpm"), ("3-cycle", "bt")]
    assert rows[0]["accuracy"] == 1.0 and rows[1]["accuracy"] <= rows[1]["scalar_ceiling"] == pytest.approx(2 / 3)
