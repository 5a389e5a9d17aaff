"""One of several training workers, a process of its own: trains the tiny model and leaves what the tests look at.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=… python -m tests.gpo.training.worker_main FOLDER '{"a": {}}'

The names are those of one training after the other with its settings; what came out of each lies in FOLDER/NAME.
DeepSpeed treats autocast in it as on a GPU. The first worker writes outcome.pt: what each step logged, first gradients
(but of FSDP) and the trained model's loss on the same rows (plain workers, kept reference), names of weights (ZeRO-3),
and publishes into the directory of a run, `run`. Every worker writes held-RANK.json: elements of parameters, optimizer
states and a live reference that it holds itself.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from trl.models.utils import prepare_fsdp

from gpo.training.layout import lay_out
from gpo.training.learner import publish
from gpo.training.log_probs import add_log_prob_head, answer_logps
from gpo.training.reference import hash_of_weights
from gpo.training.segment_attention import segment_attention, segments_of
from gpo.training.stage import make_task
from gpo.training.step_checkpoints import how_held
from gpo.training.trainer import GPOTrainer
from gpo.training.workers import load_whole_again, sharding_arguments, work_alone
from tests.engine import ask_about_the_cpu
from tests.gpo.training.small_iterations import make_run
from tests.gpo.training.small_training import (
    TOKENIZER,
    Gradients,
    StopAt,
    make_model_that_sees,
    make_rows,
    make_trainer,
    steps_of,
)
from tests.tiny import make_tiny_model


class StepsMade(TrainerCallback):
    """Counts the steps that this trainer made itself."""

    def __init__(self) -> None:
        self.number = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.number += 1


class GradientsInPieces(Gradients):
    """Keeps the gradients of the first step, whole: all workers put them together before the optimizer steps."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from deepspeed.utils import safe_get_full_grad

        model, optimizer = kwargs["model"], kwargs["optimizer"].optimizer
        step = optimizer.step

        def keeping(*given: Any, **named: Any) -> Any:
            if not self.first:
                self.first = {name: safe_get_full_grad(p).clone() for name, p in model.named_parameters()}
            return step(*given, **named)

        optimizer.step = keeping

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Behind DeepSpeed's step, which leaves no gradient."""


def held_elements(trainer: Any) -> dict[str, Any]:
    """Elements of parameters and of optimizer states on this worker, and the types of the states."""
    states: list[torch.Tensor] = []
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    for state in optimizer.state.values():
        states += [value for value in state.values() if torch.is_tensor(value) and value.dim() > 0]
    pieces = [getattr(p, "ds_tensor", p) for p in trainer.model.parameters()]
    elements = {"parameters": sum(piece.numel() for piece in pieces), "states": sum(map(torch.numel, states))}
    return {**elements, "state_types": sorted({str(value.dtype) for value in states})}


def held_by_reference(trainer: Any) -> int:
    """Elements of a live reference on this worker; 0 where the trainer keeps none."""
    if trainer.ref_model is None:
        return 0
    pieces = [p.to_local() if isinstance(p, DTensor) else p for p in trainer.ref_model.parameters()]
    return sum(piece.numel() for piece in pieces)


def hashes_of_weights(trainer: Any, rank: int) -> list[str]:
    """Names of the weights: as they are, with one moved in the second worker's piece, and as they are again."""
    weights = (trainer.ref_model or trainer.model).parameters()
    piece = next(weight.ds_tensor for weight in weights if hasattr(weight, "ds_tensor"))
    found, before = [hash_of_weights(trainer)], piece.clone()
    with torch.no_grad():
        piece += rank
        found.append(hash_of_weights(trainer))
        piece.copy_(before)
    return [*found, hash_of_weights(trainer)]


def reference_in_pieces() -> Any:
    """A reference as TRL prepares it for FSDP2, which on a CPU accelerate leaves out, so that TRL does not."""
    model = make_tiny_model()
    add_log_prob_head(model)
    state = SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
    return prepare_fsdp(model, SimpleNamespace(state=state, device=torch.device("cpu")))


def make(folder: Path, settings: dict[str, Any], way: str, *callbacks: Any) -> GPOTrainer:
    """A trainer as a process makes it that has made none before."""
    load_whole_again()
    return make_trainer(folder, make_rows(5), callbacks=list(callbacks), **settings, **sharding_arguments(way))


def train(folder: Path, settings: dict[str, Any], rank: int) -> None:
    """Train, publish as a run's learner does, and say what is held."""
    folder.mkdir(parents=True, exist_ok=True)
    way, stop = settings.pop("sharding", "none"), settings.pop("stop", 0)
    if settings.pop("from_disk", False):
        # Loaded behind the arguments: with ZeRO-3 each worker reads its piece only.
        settings["model"] = str(folder.parent / "start")
    if settings.pop("sees", False):
        settings["model"] = make_model_that_sees()
    if settings.pop("reference_in_pieces", False):
        settings["ref_model"] = reference_in_pieces()
    if stop:
        # It ends there; what follows is a new one that goes on from the checkpoint.
        settings |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
        make(folder, settings, way, StopAt(stop)).train()
    gradients, made = GradientsInPieces() if way.startswith("zero") else Gradients(), StepsMade()
    trainer = make(folder, settings, way, made, *([gradients] if way != "fsdp" else []))
    types: set[str] = set()
    layer = trainer.accelerator.unwrap_model(trainer.model).get_decoder().layers[0].mlp
    hook = layer.register_forward_hook(lambda _module, _inputs, output: types.add(str(output.dtype)))
    trainer.train(resume_from_checkpoint=True)
    hook.remove()
    held = {**held_elements(trainer), "reference": held_by_reference(trainer), "computed": sorted(types)}
    (folder / f"held-{rank}.json").write_text(json.dumps(held))
    kept = way == "none" and "ref_logps" in trainer.train_dataset.column_names
    evaluated = trainer.evaluate(trainer.train_dataset)["eval_loss"] if kept else None
    hashes = hashes_of_weights(trainer, rank) if way == "zero3" else []
    if rank == 0:
        steps = steps_of(trainer)
        found: dict[str, Any] = {"steps": steps, "made": made.number, "gradients": gradients.first}
        found |= {name: [step[name] for step in steps] for name in ("loss", "grad_norm")}
        found |= {"first_ratio": steps[0]["log_ratio_max_abs"]}
        found |= {"evaluated": evaluated, "hashes": hashes, "how_held": how_held(trainer)}
        torch.save(found, folder / "outcome.pt")
    train_settings = {"workers": trainer.accelerator.num_processes, "sharding": way}
    run = make_run(folder, policy={"dtype": settings.get("compute_dtype", "float32")}, train=train_settings)
    publish(trainer, TOKENIZER, make_task(run, 1), run.config)
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
    for name, settings in json.loads(sys.argv[2]).items():
        folder = Path(sys.argv[1]) / name
        shard(folder, rank) if settings.get("sharding") == "fully" else train(folder, settings, rank)


if __name__ == "__main__":
    main()
