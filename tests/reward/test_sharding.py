"""How a model is spread: what DeepSpeed and FSDP2 are told, and that a model left whole is noticed.

Run: python -m pytest tests/reward/test_sharding.py
"""

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from reward.errors import RewardInputError
from reward.pair_model import PairModel
from reward.sharding import check_sharded, check_sharding, deepspeed_config, fsdp2_values
from reward.starting_model import open_model
from reward.training import train_pairs
from reward.training_settings import AdapterSettings, TrainingSettings
from tests.reward.training_data import make_task
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[2]
SETTINGS = TrainingSettings(value_head_dim=4, precision="float32")


def test_a_single_entry_for_deepspeed_leaves_the_others_of_its_section() -> None:
    changes = {"zero_optimization": {"overlap_comm": False}, "steps_per_print": 5}
    found = deepspeed_config(TrainingSettings(sharding="zero3", deepspeed=changes))
    zero = found["zero_optimization"]
    assert (zero["stage"], zero["overlap_comm"], found["steps_per_print"]) == (3, False, 5)
    assert zero["stage3_gather_16bit_weights_on_model_save"] and "bf16" not in found


def test_a_model_that_came_back_whole_is_noticed() -> None:
    check_sharded(nn.Linear(2, 2), "none")
    for sharding in ("zero1", "zero2", "zero3", "fsdp2"):
        with pytest.raises(RuntimeError, match=f"sharding is {sharding}, but the model came back as a whole Linear"):
            check_sharded(nn.Linear(2, 2), sharding)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only a CPU refuses it")
def test_fsdp2_is_told_the_layers_and_refused_on_a_cpu(tmp_path: Path) -> None:
    model = PairModel(open_model(save_tiny_model(tmp_path), SETTINGS), SETTINGS)
    assert fsdp2_values(model)["fsdp_config"]["transformer_layer_cls_to_wrap"] == ["LlamaDecoderLayer"]
    with pytest.raises(RewardInputError, match="silently train with DDP"):
        check_sharding("fsdp2")


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="it is installed")
def test_a_missing_deepspeed_is_told_before_a_model_is_opened(tmp_path: Path) -> None:
    task = make_task(tmp_path, tmp_path / "no model", "out", sharding="zero3")
    with pytest.raises(RewardInputError, match="sharding is zero3 and deepspeed is missing"):
        train_pairs(task)


def test_a_quantized_backbone_is_not_cut_into_pieces() -> None:
    with pytest.raises(RewardInputError, match="zero3 and adapter.quantized"):
        TrainingSettings(adapter=AdapterSettings(quantized=True), sharding="zero3")


def test_a_fully_sharded_model_has_the_loss_and_gradients_of_a_whole_one_and_is_published_as_it(
    tmp_path: Path,
) -> None:
    save_tiny_model(tmp_path / "base")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "tests.reward.fully_sharded", str(tmp_path)]
    workers = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        with (tmp_path / f"log-{rank}.txt").open("w") as log:
            workers.append(
                subprocess.Popen(command, cwd=ROOT, env=environment | place, stdout=log, stderr=subprocess.STDOUT)
            )
    try:
        codes = [worker.wait(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert codes == [0, 0], (tmp_path / "log-0.txt").read_text()[-3000:]
    whole, pieces = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "pieces"))
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
