"""Several workers: the loss and gradients of one, and ZeRO whose pieces are pieces and become one model again.

Run: python -m pytest tests/gpo/test_workers.py
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gpo.workers import sharding_arguments, sharding_obstacle

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
SETTINGS: dict[str, Any] = {"batch_prompts": 3, "max_grad_norm": 0.0, "num_train_epochs": 2, "batch_tokens": 60}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run_workers(folder: Path, world: int, **settings: Any) -> dict[str, Any]:
    """Train with so many processes; the outcome, and what each worker held."""
    folder.mkdir(parents=True, exist_ok=True)
    port, quiet = str(free_port()), {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_PORT": port}
        environment = {**os.environ, **quiet, **place, "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "1"}
        command = [sys.executable, "-m", "tests.gpo.worker_main", str(folder), json.dumps(settings)]
        with (folder / f"log-{rank}.txt").open("w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world, (folder / "log-0.txt").read_text()[-3000:]
    found: dict[str, Any] = torch.load(folder / "outcome.pt", weights_only=False)
    found["held"] = [json.loads((folder / f"held-{rank}.json").read_text()) for rank in range(world)]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One worker, five prompts, steps of three and of two."""
    return run_workers(tmp_path_factory.mktemp("alone"), 1, **SETTINGS)


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Over all tensors, relative to each one's largest entry."""
    assert one.keys() == other.keys() and one
    return max(((one[name] - other[name]).abs().max() / one[name].abs().max()).item() for name in one)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_two_workers_have_the_loss_and_the_gradients_of_one(
    tmp_path: Path, alone: dict[str, Any], layout: str, passes: int
) -> None:
    if (layout, passes) == ("padded", 2):
        pytest.skip("as many layouts and passes as are needed to see both")
    two = run_workers(tmp_path, 2, layout=layout, gradient_accumulation_steps=passes, **SETTINGS)
    assert two["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert largest_difference(alone["gradients"], two["gradients"]) <= 1e-5
    assert two["first_ratio"] == 0.0


@needs_deepspeed
@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_zero_trains_the_same_model_in_pieces_and_saves_it_whole(
    tmp_path: Path, alone: dict[str, Any], sharding: str
) -> None:
    two = run_workers(tmp_path, 2, sharding=sharding, **SETTINGS)
    assert two["losses"] == pytest.approx(alone["losses"], rel=1e-3)
    whole = alone["held"][0]
    for held in two["held"]:
        assert held["states"] <= 0.6 * whole["states"]
        if sharding == "zero3":
            assert held["parameters"] <= 0.6 * whole["parameters"]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    for name, value in alone["weights"].items():
        assert (saved[name] - value).abs().max() <= 1e-4, name


def test_a_way_of_sharding_that_this_machine_has_not_is_explained() -> None:
    assert sharding_obstacle("none") is None
    assert torch.cuda.is_available() or "DDP where FSDP2 is asked for on a CPU" in str(sharding_obstacle("fsdp"))


def test_zero_stages_reach_the_trainer() -> None:
    assert sharding_arguments("none") == {}
    for stage in (1, 2, 3):
        assert sharding_arguments(f"zero{stage}")["deepspeed"]["zero_optimization"]["stage"] == stage  # type: ignore[arg-type]
