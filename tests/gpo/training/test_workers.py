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
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpo.files import read_json
from gpo.journal import RunDirectory
from gpo.training.forward import token_logps
from gpo.training.layout import lay_out
from gpo.training.log_probs import add_log_prob_head, answer_logps
from gpo.training.workers import deepspeed_config, sharding_arguments, sharding_obstacle
from rollout.canary import canary_rows
from rollout.weights import verify_published
from tests.gpo.training.small_training import make_rows
from tests.gpo.training.worker_ways import FSDP, OBJECTIVES, PLAIN, PRECISE, SEES, SETTINGS, STOPS, ZERO
from tests.tiny import make_tiny_model, save_tiny_model

DEEPSPEED = Path(os.environ.get("GPO_TEST_DEEPSPEED", Path(sys.prefix) / "deepspeed"))
"""Where `make setup` puts it: for these tests only, because each process that finds it imports it, for seconds."""
HAS_DEEPSPEED = DEEPSPEED.is_dir() or importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason=f"deepspeed is neither installed nor in {DEEPSPEED}")
LOG_RATIO = {"rel": 1e-4, "abs": 2e-5}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run_workers(folder: Path, world: int, runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Train with so many processes, one run after the other; outcomes, what each worker held, what was published."""
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
    found = {name: torch.load(folder / name / "outcome.pt", weights_only=False) for name in runs}
    for name, outcome in found.items():
        held = [folder / name / f"held-{rank}.json" for rank in range(world)]
        outcome["held"] = [json.loads(path.read_text()) for path in held]
        outcome["published"] = RunDirectory(folder / name / "run")
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One worker, five prompts, steps of three and of two: every way of `PLAIN`, other objectives, a vision tower."""
    ways = {**PLAIN, **OBJECTIVES, "sees": SEES}
    return run_workers(tmp_path_factory.mktemp("one"), 1, {name: {**SETTINGS, **way} for name, way in ways.items()})


@pytest.fixture(scope="module")
def alone(one: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One worker in the plainest way."""
    return one["padded-1"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same with two workers, in every way; what DeepSpeed changes in a process moves last digits, so it is last."""
    ways = {**with_resumed(PLAIN), **OBJECTIVES, **FSDP, "sees": SEES}
    if HAS_DEEPSPEED:
        ways |= {**with_resumed(ZERO), "precise": PRECISE}
    return run_workers(tmp_path_factory.mktemp("two"), 2, {name: {**SETTINGS, **way} for name, way in ways.items()})


def with_resumed(ways: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """And beside each one of `STOPS` the same, ended there and resumed."""
    return ways | {f"{name}-resumed": {**ways[name], "stop": stop} for name, stop in STOPS.items() if name in ways}


def master_of(outcome: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that the next iteration would start from, as they lie on the disk."""
    return load_file(outcome["published"].training(1) / "master" / "model.safetensors")


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Over all tensors, relative to each one's largest entry."""
    assert one.keys() == other.keys() and one
    return max(((one[name] - other[name]).abs().max() / one[name].abs().max()).item() for name in one)


def assert_same_steps(found: dict[str, Any], alone: dict[str, Any]) -> None:
    """Two trainings in float32 log the same: the loss to 1e-5, and exactly what needs no forward pass.

    The rest is made of log-ratios, differences of sums of some 100 nats that are exact to 1e-5.
    """
    exactly = ("length", "learning_rate", "step", *{"clamped"} & alone["steps"][0].keys())
    for step, expected in zip(found["steps"], alone["steps"], strict=True):
        assert step.keys() == expected.keys() >= {*exactly, "kl", "grad_norm", "length_score_correlation"}
        assert [step[name] for name in exactly] == [expected[name] for name in exactly]
        for name, value in expected.items():
            assert step[name] == pytest.approx(value, **({"rel": 1e-5} if name == "loss" else LOG_RATIO)), name
    assert {"target_correlation", "target_slope"} <= alone["steps"][-1].keys()
    assert found["grad_norm"][0] == pytest.approx(alone["grad_norm"][0], rel=1e-5)


@pytest.mark.parametrize("way", PLAIN)
@pytest.mark.parametrize("workers", [1, 2])
def test_layout_passes_and_workers_change_neither_loss_nor_gradients_nor_what_is_logged(
    alone: dict[str, Any], request: pytest.FixtureRequest, workers: int, way: str
) -> None:
    found = request.getfixturevalue("one" if workers == 1 else "two")[way]
    assert_same_steps(found, alone)
    assert largest_difference(alone["gradients"], found["gradients"]) <= 1e-5
    assert found["first_ratio"] == 0.0 and found["how_held"] == "in one piece" and "clamped" in alone["steps"][0]
    assert found["evaluated"] == pytest.approx(alone["evaluated"], rel=1e-5)


@pytest.mark.parametrize("way", OBJECTIVES)
def test_two_workers_log_what_one_logs_whatever_the_objective(
    one: dict[str, dict[str, Any]], two: dict[str, dict[str, Any]], way: str
) -> None:
    assert_same_steps(two[way], one[way])
    assert largest_difference(one[way]["gradients"], two[way]["gradients"]) <= 1e-5
    assert one[way]["loss"] != pytest.approx(one["padded-1"]["loss"], rel=1e-2), "that of another objective"


def test_a_model_with_a_vision_tower_trains_on_text_with_two_workers_as_with_one(
    one: dict[str, dict[str, Any]], two: dict[str, dict[str, Any]]
) -> None:
    found, expected = two["sees"], one["sees"]
    assert found["made"] == expected["made"] == 4 and found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert not any("vision" in name for name in expected["gradients"])


def test_a_fully_sharded_model_has_the_log_probabilities_and_gradients_of_a_whole_one(
    two: dict[str, dict[str, Any]],
) -> None:
    found, model = two["fully"], make_tiny_model()
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


def test_a_live_reference_in_pieces_stays_so_and_changes_no_loss(
    alone: dict[str, Any], two: dict[str, dict[str, Any]]
) -> None:
    """Steps of three and of two prompts: an idle worker still takes its part when pieces are gathered."""
    found = two["reference-in-pieces"]
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    for held in found["held"]:
        assert 0 < held["reference"] <= 0.6 * alone["held"][0]["parameters"]


@pytest.mark.parametrize("way", ["fsdp", "fsdp-live"])
def test_asked_for_fsdp_on_a_cpu_the_workers_are_plain_ones_as_accelerate_leaves_it_out(
    alone: dict[str, Any], two: dict[str, dict[str, Any]], way: str
) -> None:
    """The trainer has a reference of its own all the same, a copy of the policy before the first step."""
    found = two[way]
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5) and found["first_ratio"] == 0.0
    whole = alone["held"][0]["parameters"]
    for held in found["held"]:
        assert held["parameters"] == whole and held["reference"] == (whole if way == "fsdp-live" else 0)


@needs_deepspeed
@pytest.mark.parametrize("way", ZERO)
def test_zero_trains_the_same_model_in_pieces(alone: dict[str, Any], two: dict[str, dict[str, Any]], way: str) -> None:
    """Steps of three and of two prompts: an idle worker still takes its part when pieces are gathered."""
    found = two[way]
    assert_same_steps(found, alone)
    assert largest_difference(alone["gradients"], found["gradients"]) <= 1e-5
    assert found["first_ratio"] == 0.0
    length = torch.cat([gradient.flatten() for gradient in alone["gradients"].values()]).norm().item()
    assert found["grad_norm"][0] == pytest.approx(length, rel=1e-5)
    assert found["how_held"] == f"by 2 workers with ZeRO-{ZERO[way]['sharding'][-1]}"
    whole = alone["held"][0]
    for held in found["held"]:
        assert 0 < held["states"] <= 0.6 * whole["states"]
        if ZERO[way]["sharding"] == "zero3":
            assert 0 < held["parameters"] <= 0.6 * whole["parameters"]


@needs_deepspeed
@pytest.mark.parametrize("way", ["zero3", "zero3-loaded-live"])
def test_a_weight_in_another_workers_piece_is_in_the_name_that_reference_log_probabilities_are_kept_by(
    two: dict[str, dict[str, Any]], way: str
) -> None:
    before, moved, again = two[way]["hashes"]
    assert before == again != moved


@pytest.mark.parametrize("way", ["padded-1", "fsdp", *(pytest.param(way, marks=needs_deepspeed) for way in ZERO)])
def test_whatever_the_sharding_a_learner_publishes_one_whole_plain_model(
    alone: dict[str, Any], two: dict[str, dict[str, Any]], way: str
) -> None:
    published = two[way]["published"]
    assert verify_published(published.checkpoint(1)).version.startswith("001-")
    model = AutoModelForCausalLM.from_pretrained(published.checkpoint(1))
    tokenizer = AutoTokenizer.from_pretrained(published.checkpoint(1))
    expected, saved = master_of(alone), model.state_dict()
    assert saved.keys() == expected.keys() and len(expected) > 20
    for name, value in expected.items():
        # RMSProp moves a weight by 1e-3 in the first step, by the sign of a gradient that is nearly 0 too.
        assert (saved[name] - value).abs().max() <= 5e-5, name
        assert torch.equal(saved[name], master_of(two[way])[name]), name
    add_log_prob_head(model)
    canary = [row.tolist() for row in token_logps(model, canary_rows(tokenizer), "float32")]
    told = read_json(published.training(1) / "canary.json")["answer_logps"]
    assert [pytest.approx(row, abs=1e-4) for row in canary] == told


@needs_deepspeed
def test_zero_computes_in_the_compute_type_and_keeps_master_weights_and_optimizer_states_in_float32(
    alone: dict[str, Any], two: dict[str, dict[str, Any]]
) -> None:
    found = two["precise"]
    assert [held["computed"] for held in found["held"]] == [["torch.bfloat16"]] * 2
    assert [held["state_types"] for held in found["held"]] == [["torch.float32"]] * 2
    assert found["first_ratio"] == 0.0 and found["loss"] == pytest.approx(alone["loss"], rel=1e-1)
    assert {weight.dtype for weight in master_of(found).values()} == {torch.float32}
    published = load_file(found["published"].checkpoint(1) / "model.safetensors")
    assert {weight.dtype for weight in published.values()} == {torch.bfloat16}


@pytest.mark.parametrize("way", [pytest.param(way, marks=[needs_deepspeed] if way in ZERO else []) for way in STOPS])
def test_two_workers_that_are_resumed_end_with_the_bits_of_undisturbed_ones(
    two: dict[str, dict[str, Any]], way: str
) -> None:
    whole, resumed = two[way], two[f"{way}-resumed"]
    assert (whole["made"], resumed["made"]) == (4, 4 - STOPS[way])
    assert resumed["loss"] == whole["loss"]
    expected = master_of(whole)
    assert all(torch.equal(value, expected[name]) for name, value in master_of(resumed).items())


def test_a_way_of_sharding_that_this_machine_has_not_is_explained() -> None:
    assert sharding_obstacle("none") is None
    assert torch.cuda.is_available() or "DDP where FSDP2 is asked for on a CPU" in str(sharding_obstacle("fsdp"))


def test_nothing_is_told_to_plain_workers_and_each_zero_stage_is_one() -> None:
    assert sharding_arguments("none") == {}
    assert [deepspeed_config(stage)["zero_optimization"]["stage"] for stage in (1, 2, 3)] == [1, 2, 3]
