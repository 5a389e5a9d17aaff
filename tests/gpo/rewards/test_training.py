"""`gpo reward train, bench, cyclic` as commands: two workers, kill -9, torchrun's way, and what a mistake is told.

Run: python -m pytest tests/gpo/rewards/test_training.py
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from reward.scorer import PreferenceScorer
from tests.reward.training_data import ANSWERS, cycle, write_rows
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[3]
DEEPSPEED = Path(sys.prefix) / "deepspeed"
"""Aside, where `make setup` puts it: each process that finds it imports it, for seconds."""
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone, pairs and a config."""
    made = tmp_path_factory.mktemp("reward")
    save_tiny_model(made / "base")
    write_rows(made / "train.jsonl", [row for prompt in ("Choose.", "Hand?", "Go") for row in cycle(prompt)])
    write_rows(made / "heldout.jsonl", cycle("Show!"))
    values: dict[str, Any] = {
        "backbone": "base",
        "train": "train.jsonl",
        "heldout": "heldout.jsonl",
        "output": "out",
        "tune": "full",
        "value_head_dim": 4,
        "gated": True,
        "learning_rate": 1e-3,
        "epochs": 4,
        "batch_pairs": 6,
        "dtype": "float32",
        "save_steps": 2,
        "evaluate_steps": 4,
        "cluster": {"threads": 1, "wait_seconds": 200},
    }
    (made / "config.yaml").write_text(yaml.safe_dump(values))
    return made


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, **QUIET, "PYTHONPATH": paths, **more}


def gpo(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gpo", *words]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=280)


def losses(output: Path) -> list[float]:
    lines = (output / "training/metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run_workers(folder: Path, world: int, *overrides: str, beside: Path | None = None) -> None:
    """As torchrun starts them: a process a worker, each told its rank; `beside` is a folder of more packages."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    processes = []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        more = {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if beside is not None:
            more["PYTHONPATH"] = os.pathsep.join([environment()["PYTHONPATH"], str(beside)])
        command = [sys.executable, "-m", "gpo.rewards.workers", "config.yaml", *overrides]
        with (folder / f"log-{rank}.txt").open("w") as log:
            processes.append(
                subprocess.Popen(command, cwd=folder, env=environment(**more), stdout=log, stderr=subprocess.STDOUT)
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


def test_two_workers_have_the_loss_curve_of_one(folder: Path, alone: Path) -> None:
    run_workers(folder, 2, "output=two", "workers=2")
    assert losses(folder / "two") == pytest.approx(losses(alone), abs=1e-5)
    one, two = (json.loads((path / "training_metrics.json").read_text()) for path in (alone, folder / "two"))
    assert two["best_step"] == one["best_step"] and two["workers"] == 2


@pytest.mark.long  # `make kill`
@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_zero_trains_the_same_model_and_saves_one_directory(folder: Path, alone: Path, sharding: str) -> None:
    assert DEEPSPEED.is_dir(), "make setup puts it there"
    run_workers(folder, 2, f"output={sharding}", "workers=2", f"sharding={sharding}", beside=DEEPSPEED)
    assert losses(folder / sharding) == pytest.approx(losses(alone), rel=1e-3)
    whole, found = (load_file(path / "model.safetensors") for path in (alone, folder / sharding))
    assert whole.keys() == found.keys()
    assert all((whole[name] - found[name]).abs().max() < 1e-3 for name in whole)


def test_fresh_deletes_only_what_a_training_wrote(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("years of work")
    refused = gpo(folder, "reward", "train", "config.yaml", "output=mine", "--fresh")
    assert refused.returncode == 2 and "--fresh would delete" in refused.stderr, refused.stderr
    assert (folder / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.long  # `make kill`
def test_a_killed_worker_is_started_again_and_ends_with_the_same_weights(folder: Path, alone: Path) -> None:
    command = [sys.executable, "-m", "gpo", "reward", "train", "config.yaml", "output=killed"]
    driver = subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        steps = folder / "killed/training/steps"
        until = time.monotonic() + 120
        while not list(steps.glob("checkpoint-*/whole.json")):
            assert driver.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        for process in psutil.Process(driver.pid).children(recursive=True):
            if "TrainWorker" in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
        _, said = driver.communicate(timeout=240)
    finally:
        driver.kill()
    assert driver.returncode == 0, said
    assert same_weights(folder / "killed", alone)


@pytest.mark.long  # `make kill`
def test_a_killed_driver_goes_on_when_started_again(folder: Path, alone: Path) -> None:
    command = [sys.executable, "-m", "gpo", "reward", "train", "config.yaml", "output=again"]
    driver = subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list((folder / "again/training/steps").glob("checkpoint-*/whole.json")):
        assert driver.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    done = gpo(folder, "reward", "train", "config.yaml", "output=again")
    assert done.returncode == 0, done.stderr
    assert same_weights(folder / "again", alone)


def test_a_bad_row_is_told_before_anything_starts(folder: Path) -> None:
    write_rows(folder / "bad.jsonl", [*cycle("q"), {"chosen": "a"}])
    started = time.monotonic()
    done = gpo(folder, "reward", "train", "config.yaml", "train=bad.jsonl", "output=bad")
    assert done.returncode == 2 and "row 4" in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - started < 60 and not (folder / "bad").exists()


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


def test_cyclic_writes_rows_next_to_the_ceiling(folder: Path) -> None:
    rates = ["learning_rate=3e-4", "head_learning_rate=1e-2"]
    words = ["backbone=base", "cycles=[3]", "epochs=60", *rates, "--output", "cyclic"]
    done = gpo(folder, "reward", "cyclic", *words)
    assert done.returncode == 0, done.stderr
    rows = json.loads((folder / "cyclic/cyclic.json").read_text())
    assert [(row["data"], row["model"]) for row in rows] == [("3-cycle", "gpm"), ("3-cycle", "bt")]
    assert rows[0]["accuracy"] == 1.0 and rows[1]["accuracy"] <= rows[1]["scalar_ceiling"] == pytest.approx(2 / 3)
