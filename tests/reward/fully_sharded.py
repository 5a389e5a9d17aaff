"""One of two workers whose model is cut into pieces by torch's `fully_shard`, as accelerate does it on GPUs.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=… python -m tests.reward.fully_sharded FOLDER

Compares loss and gradients of a batch with those of the whole model; the first worker publishes from the pieces.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoTokenizer

from reward.encoded_pairs import PairEncoder
from reward.encoding import ConversationEncoder
from reward.pair_batches import PairBatch, lay_out
from reward.pair_model import PairModel, pair_loss
from reward.pairs import pair_of_row
from reward.publishing import published_model
from reward.sharding import check_sharded
from reward.starting_model import open_model
from reward.training_settings import TrainingSettings
from tests.reward.training_data import cycle

SETTINGS = TrainingSettings(value_head_dim=4, gated=True, learn_tau=True, sft_weight=0.1, precision="float32")


def whole_model(folder: Path) -> PairModel:
    return PairModel(open_model(folder / "base", SETTINGS), SETTINGS)


def batch_of(folder: Path, model: PairModel) -> PairBatch:
    encoder = ConversationEncoder(AutoTokenizer.from_pretrained(folder / "base"), model.model.settings, 512)
    pairs = list(PairEncoder(encoder).encode([pair_of_row(row, "row") for row in cycle("Choose.")]))
    return lay_out(pairs, 1 / len(pairs), share=model.shares_beginnings, with_answers=True)


def loss_of(model: PairModel, batch: PairBatch) -> Any:
    loss = pair_loss(model(batch), batch, SETTINGS)
    loss.backward()
    return loss.detach()


def main() -> None:
    """Raises AssertionError where pieces and whole differ."""
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    whole, pieces = whole_model(folder), whole_model(folder)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in pieces.model.backbone.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(pieces, mesh=mesh)
    check_sharded(pieces, "fsdp2")
    batch = batch_of(folder, whole)
    torch.testing.assert_close(loss_of(pieces, batch), loss_of(whole, batch), rtol=1e-5, atol=1e-6)
    for (name, one), (_, other) in zip(pieces.named_parameters(), whole.named_parameters(), strict=True):
        assert one.to_local().numel() <= 0.6 * other.numel() or other.numel() == 1, name
        torch.testing.assert_close(one.grad.full_tensor(), other.grad, rtol=1e-4, atol=1e-6)
    state = get_model_state_dict(pieces, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        published_model(pieces, state, torch.float32).save_pretrained(folder / "pieces")
        published_model(whole, whole.state_dict(), torch.float32).save_pretrained(folder / "whole")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
