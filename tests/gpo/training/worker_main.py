"""One of several training workers, a process of its own: trains the tiny model and leaves what the tests look at.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=… python -m tests.gpo.training.worker_main FOLDER '[{}]'

The list holds the settings of one training after the other, whose outcomes lie in FOLDER/0, FOLDER/1, …
DeepSpeed treats autocast in it as on a GPU.
The first worker writes outcome.pt: losses, first gradients (plain workers), whole weights, and the model directory.
Every worker writes held-RANK.json: elements of parameters and optimizer states that it holds itself.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gpo.training.layout import lay_out
from gpo.training.log_probs import add_log_prob_head, answer_logps
from gpo.training.segment_attention import segment_attention, segments_of
from gpo.training.workers import sharding_arguments, whole_state, work_alone
from tests.engine import ask_about_the_cpu
from tests.gpo.training.small_training import Gradients, make_rows, make_trainer, steps_of
from tests.tiny import make_tiny_model


def held_elements(trainer: Any) -> dict[str, int]:
    """Elements of parameters and of optimizer states on this worker."""
    states = 0
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    for state in optimizer.state.values():
        states += sum(value.numel() for value in state.values() if torch.is_tensor(value) and value.dim() > 0)
    pieces = [getattr(p, "ds_tensor", p) for p in trainer.model.parameters()]
    return {"parameters": sum(piece.numel() for piece in pieces), "states": states}


def train(folder: Path, settings: dict[str, Any], rank: int) -> None:
    """Train, save, and say what is held."""
    folder.mkdir(parents=True, exist_ok=True)
    sharding = sharding_arguments(settings.pop("sharding", "none"))
    prompts, resume = settings.pop("prompts", 5), settings.pop("resume", False)
    if settings.pop("from_disk", False):
        # Loaded behind the arguments: with ZeRO-3 each worker reads its piece only.
        settings["model"] = str(folder.parent / "start")
    gradients = Gradients()
    callbacks = [] if sharding else [gradients]
    trainer = make_trainer(folder, make_rows(prompts), callbacks=callbacks, **{**settings, **sharding})
    types: set[str] = set()
    layer = trainer.accelerator.unwrap_model(trainer.model).base_model.layers[0].mlp
    hook = layer.register_forward_hook(lambda _module, _inputs, output: types.add(str(output.dtype)))
    trainer.train(resume_from_checkpoint=resume)
    hook.remove()
    (folder / f"held-{rank}.json").write_text(json.dumps({**held_elements(trainer), "computed": sorted(types)}))
    state = whole_state(trainer)
    if rank == 0:
        # A copy: save_pretrained takes out of the dictionary what it has written.
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder / "model", state_dict=dict(state))
        steps = steps_of(trainer)
        found = {name: [step[name] for step in steps] for name in ("loss", "grad_norm")}
        found["first_ratio"] = steps[0]["log_ratio_max_abs"]
        torch.save({**found, "gradients": gradients.first, "weights": state}, folder / "outcome.pt")
    trainer.accelerator.wait_for_everyone()


def shard_fully(model: Any) -> Any:
    """FSDP2 over all workers by torch's own `fully_shard`: each decoder layer, then what is left.

    What accelerate does on GPUs; on a CPU, where it does not, this shows that the layouts and the head work on pieces.
    """
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (int(os.environ["WORLD_SIZE"]),))
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def shard(folder: Path, rank: int) -> None:
    """One backward pass of a fully sharded model on packed rows with shared prompts, every worker on the same rows."""
    folder.mkdir(parents=True, exist_ok=True)
    model = make_tiny_model()
    add_log_prob_head(model)
    model = shard_fully(model)
    part = lay_out([(row["prompt_ids"], row["completion_ids"]) for row in make_rows(3)], "shared")
    lengths, extra, _ = part.pop("lengths"), segments_of(part), part.pop("segments")
    with segment_attention(model.config):
        logps = answer_logps(model(**part, **extra), lengths)
        logps.square().mean().backward()
    local = sum(p.to_local().numel() for p in model.parameters())
    (folder / f"held-{rank}.json").write_text(json.dumps({"parameters": local, "states": 0}))
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    if rank == 0:
        torch.save({"logps": logps.detach(), "gradients": gradients}, folder / "outcome.pt")


def main() -> None:
    """The trainings in turn."""
    rank = int(os.environ.get("RANK", 0))
    ask_about_the_cpu()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        work_alone()
    for number, settings in enumerate(json.loads(sys.argv[2])):
        folder = Path(sys.argv[1]) / str(number)
        shard(folder, rank) if settings.get("sharding") == "fully" else train(folder, settings, rank)


if __name__ == "__main__":
    main()
