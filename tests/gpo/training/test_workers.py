"""Several workers: the loss and gradients of one, and ZeRO whose pieces are pieces and become one model again.

Run: python -m pytest tests/gpo/training/test_workers.py
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

from gpo.training.layout import lay_out
from gpo.training.log_probs import add_log_prob_head, answer_logps
from gpo.training.workers import deepspeed_config, sharding_arguments, sharding_obstacle
from tests.gpo.training.small_training import make_rows
from tests.tiny import make_tiny_model, save_tiny_model

DEEPSPEED = Path(os.environ.get("GPO_TEST_DEEPSPEED", Path(sys.prefix) / "deepspeed"))
"""Where `make setup` puts it: for these tests only, because each process that finds it imports it, for seconds."""
HAS_DEEPSPEED = DEEPSPEED.is_dir() or importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason=f"deepspeed is neither installed nor in {DEEPSPEED}")
SETTINGS: dict[str, Any] = {"batch_prompts": 3, "max_grad_norm": 0.0, "num_train_epochs": 2, "batch_tokens": 60}
PLAIN = [{"layout": "padded"}, {"layout": "packed", "gradient_accumulation_steps": 2}, {"layout": "shared"}]
FSDP = [{"sharding": "fully"}, {"sharding": "fsdp"}]
ZERO: list[dict[str, Any]] = [
    {"sharding": "zero1"},
    {"sharding": "zero2"},
    {"sharding": "zero3"},
    {"sharding": "zero3", "from_disk": True, "precompute_ref_log_probs": False},
]
PRECISE = {"sharding": "zero3", "compute_dtype": "bfloat16", "precompute_ref_log_probs": False}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run_workers(folder: Path, world: int, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train with so many processes, one run after the other; outcomes, and what each worker held."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tiny_model(folder / "start")
    environment = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"MASTER_PORT": str(free_port()), "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(world)}
    environment["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(DEEPSPEED)])
    command = [sys.executable, "-m", "tests.gpo.training.worker_main", str(folder), json.dumps(runs)]
    processes = []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"log-{rank}.txt").open("w") as log:
            processes.append(
                subprocess.Popen(command, env={**environment, **place}, stdout=log, stderr=subprocess.STDOUT)
            )
    try:
        codes = [process.wait(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world, (folder / "log-0.txt").read_text()[-3000:]
    found = [torch.load(folder / str(number) / "outcome.pt", weights_only=False) for number in range(len(runs))]
    for number, outcome in enumerate(found):
        held = [folder / str(number) / f"held-{rank}.json" for rank in range(world)]
        outcome["held"] = [json.loads(path.read_text()) for path in held]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One worker, five prompts, steps of three and of two."""
    return run_workers(tmp_path_factory.mktemp("alone"), 1, [{**SETTINGS}])[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """The same with two workers, in every way of `PLAIN`, `FSDP` and then of `ZERO`, and `PRECISE`."""
    sharded = [*ZERO, PRECISE] if HAS_DEEPSPEED else []
    return run_workers(folder, 2, [{**SETTINGS, **way} for way in [*PLAIN, *FSDP, *sharded]])


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Over all tensors, relative to each one's largest entry."""
    assert one.keys() == other.keys() and one
    return max(((one[name] - other[name]).abs().max() / one[name].abs().max()).item() for name in one)


@pytest.mark.parametrize("way", range(len(PLAIN)), ids=["padded", "packed, two passes", "shared"])
def test_two_workers_have_the_loss_and_the_gradients_of_one(
    alone: dict[str, Any], two: list[dict[str, Any]], way: int
) -> None:
    found = two[way]
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert largest_difference(alone["gradients"], found["gradients"]) <= 1e-5
    assert found["first_ratio"] == 0.0


def test_a_fully_sharded_model_has_the_log_probabilities_and_gradients_of_a_whole_one(
    two: list[dict[str, Any]],
) -> None:
    found, model = two[len(PLAIN)], make_tiny_model()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert all(0 < held["parameters"] <= 0.6 * total for held in found["held"])
    add_log_prob_head(model)
    part = lay_out([(row["prompt_ids"], row["completion_ids"]) for row in make_rows(3)], "padded")
    lengths = part.pop("lengths")
    logps = answer_logps(model(**part), lengths)
    logps.square().mean().backward()
    torch.testing.assert_close(found["logps"], logps.detach(), rtol=1e-5, atol=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert largest_difference(gradients, found["gradients"]) <= 1e-5


def test_asked_for_fsdp_the_trainer_has_a_reference_of_its_own_in_pieces(
    alone: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    """On a CPU accelerate runs DDP for the policy; TRL prepares the reference by `fully_shard` here too."""
    found = two[len(PLAIN) + 1]
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5) and found["first_ratio"] == 0.0


@needs_deepspeed
@pytest.mark.parametrize("way", range(len(ZERO)), ids=["zero1", "zero2", "zero3", "zero3, loaded, live"])
def test_zero_trains_the_same_model_in_pieces_and_saves_it_whole(
    alone: dict[str, Any], two: list[dict[str, Any]], folder: Path, way: int
) -> None:
    """Steps of three and of two prompts: an idle worker still takes its part when pieces are gathered."""
    number = len(PLAIN) + len(FSDP) + way
    assert two[number]["first_ratio"] == 0.0
    assert two[number]["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    # Without a bound one worker tells the largest entry of its gradient, DeepSpeed the length always.
    length = torch.cat([gradient.flatten() for gradient in alone["gradients"].values()]).norm().item()
    assert two[number]["grad_norm"][0] == pytest.approx(length, rel=1e-4)
    whole = alone["held"][0]
    for held in two[number]["held"]:
        assert 0 < held["states"] <= 0.6 * whole["states"]
        if ZERO[way]["sharding"] == "zero3":
            assert 0 < held["parameters"] <= 0.6 * whole["parameters"]
    saved = AutoModelForCausalLM.from_pretrained(folder / str(number) / "model").state_dict()
    assert len(alone["weights"]) > 20
    for name, value in alone["weights"].items():
        assert (saved[name] - value).abs().max() <= 1e-4, name


@needs_deepspeed
def test_zero_computes_in_the_compute_type_and_keeps_master_weights_in_float32(
    alone: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    found = two[-1]
    assert [held["computed"] for held in found["held"]] == [["torch.bfloat16"]] * 2
    assert found["first_ratio"] == 0.0 and found["loss"] == pytest.approx(alone["loss"], rel=1e-1)
    assert all(weight.dtype == torch.float32 for weight in found["weights"].values())


def test_a_way_of_sharding_that_this_machine_has_not_is_explained() -> None:
    assert sharding_obstacle("none") is None
    assert torch.cuda.is_available() or "DDP where FSDP2 is asked for on a CPU" in str(sharding_obstacle("fsdp"))


def test_nothing_is_told_to_plain_workers_and_each_zero_stage_is_one() -> None:
    assert sharding_arguments("none") == {}
    assert [deepspeed_config(stage)["zero_optimization"]["stage"] for stage in (1, 2, 3)] == [1, 2, 3]
