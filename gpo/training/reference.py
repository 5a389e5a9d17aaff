"""Log-probabilities of the answers under a policy that does not move, once before training, kept beside the shards.

A file is keyed by the weights, the rows and the batches of the first epoch: it is used again only where the very same
numbers would come out, and then saves a forward pass over all rows.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import use_adapter

from gpo.files import write_json
from gpo.training.batches import StepPlan, Steps
from gpo.training.trainer_config import GPOConfig

logger = logging.getLogger(__name__)

ALIVE = "reference.alive"
"""In the reference's folder while a pass goes on, touched behind each of its parts: a sign for who waits for a step."""


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within, nothing is dropped at random; what was training before trains again behind."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def held_still(model: Any, trainer: Any) -> Any:
    """A model beside the policy, which no optimizer sees, as TRL prepares a reference: on the device, or in pieces.

    It goes when the caller lets it go: accelerate would keep it as long as the trainer lives, and transformers then
    takes the policy for prepared in an evaluation before training.
    """
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return prepare_fsdp(model, trainer.accelerator)
    prepared = trainer.accelerator.prepare_model(model, evaluation_mode=True)
    trainer.accelerator._models.remove(prepared)
    return prepared


def starting_policy(trainer: Any) -> Any:
    """The reference as it can be called before training.

    DeepSpeed's policy is no use until an engine has it: with ZeRO-1 and ZeRO-2 transformers leaves it on the CPU, with
    ZeRO-3 it is in pieces. TRL makes one engine for all passes, by the same condition.
    """
    if trainer.ref_model is not None:
        return trainer.ref_model
    if not trainer.is_deepspeed_enabled:
        return trainer.model
    if trainer._precompute_engine is None:
        trainer._precompute_engine = prepare_deepspeed(trainer.model, trainer.accelerator)
    return trainer._precompute_engine


def reference_logps(trainer: Any, dataset: Dataset, plan: StepPlan) -> Tensor:
    """log p [rows] of a data set's answers under the reference: read from `reference_folder`, or computed and kept."""
    folder = Path(trainer.args.reference_folder) if trainer.args.reference_folder else None
    key, kept = "", None
    weights = hash_of_weights(trainer) if folder else ""
    if folder and trainer.accelerator.is_main_process:
        key = reference_key(dataset, plan, weights, f"{trainer._compute_type}, {trainer._attention}")
        kept = read_reference(folder, key, len(dataset))
    # The first worker decides for all: others may see another disk.
    (logps,) = broadcast_object_list([kept], from_process=0)
    if logps is None:
        with _as_at_the_start(trainer):
            logps = pass_over(trainer, starting_policy(trainer), dataset, plan)
        if folder and trainer.accelerator.is_main_process:
            write_reference(folder, key, logps)
    found: Tensor = logps
    return found


def _as_at_the_start(trainer: Any) -> AbstractContextManager[Any]:
    """Within, a policy that steps have moved is the reference again: by its adapter; without one TRL has refused."""
    has_moved = trainer.state.global_step > 0 and trainer.ref_model is None
    return starting_adapter(trainer) if has_moved else nullcontext()


def starting_adapter(trainer: Any) -> AbstractContextManager[Any]:
    """Within, a policy with an adapter computes as before training: by the adapter of then, or by none."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    adapter: AbstractContextManager[Any] = use_adapter(policy, "ref" if "ref" in policy.peft_config else None)
    return adapter


@torch.no_grad()
def pass_over(trainer: Any, model: Any, dataset: Dataset, plan: StepPlan) -> Tensor:
    """log p [rows] of a data set's answers under a model, over the batches of the plan's first epoch."""
    logps_N = torch.zeros(len(dataset))
    folder = trainer.args.reference_folder if trainer.accelerator.is_main_process else None
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with evaluating(model):
        for part in first_epoch(Steps(dataset, plan)):
            found = trainer._logps(model, trainer._prepare_inputs(part)).float().cpu()
            if "idle" not in part:
                logps_N[part["row"]] = found
            if folder:
                (Path(folder) / ALIVE).touch()
    if folder:
        (Path(folder) / ALIVE).unlink(missing_ok=True)
    # Each row was computed by one worker, so a sum over them is exact.
    whole: Tensor = trainer.accelerator.reduce(logps_N.to(trainer.accelerator.device)).cpu()
    return whole


def reference_of(trainer: Any, part: dict[str, Any]) -> Tensor:
    """log p [N] of a part's answers under the reference: kept, or computed now."""
    if "ref_logps" in part:
        found: Tensor = part["ref_logps"]
        return found
    with torch.no_grad():
        if trainer.ref_model is not None:
            found = trainer._logps(trainer.ref_model, part)
        else:
            with evaluating(trainer.accelerator.unwrap_model(trainer.model)), starting_adapter(trainer):
                found = trainer._logps(trainer.model, part)
    return found


def with_own_reference(trainer: Any, given: Any) -> Any:
    """Rows to evaluate on (a data set, or several by name) as the trainer reads them, if all bring `ref_logps`.

    None for others.
    """
    named = given if isinstance(given, dict) else {"eval": given}
    if not all(isinstance(rows, Dataset) and "ref_logps" in rows.column_names for rows in named.values()):
        return None
    ready = {
        name: trainer._prepare_dataset(rows, trainer.processing_class, trainer.args, name)
        for name, rows in named.items()
    }
    if not all("ref_logps" in rows.column_names for rows in ready.values()):
        return None  # it was a column of None
    return ready if isinstance(given, dict) else ready["eval"]


def add_anchor(trainer: Any, model: Any) -> None:
    """Log-probabilities of all answers under the anchor, as a column; the anchor itself is not needed after."""
    anchor = held_still(model, trainer)

    def added(dataset: Dataset, shuffle: bool = False) -> Dataset:
        if "anchor_logps" in dataset.column_names:
            return dataset
        return dataset.add_column("anchor_logps", pass_over(trainer, anchor, dataset, trainer._plan(shuffle)).tolist())

    trainer.train_dataset = added(trainer.train_dataset, shuffle=True)
    held_out = trainer.eval_dataset
    if isinstance(held_out, dict):
        trainer.eval_dataset = {name: added(dataset) for name, dataset in held_out.items()}
    elif held_out is not None:
        trainer.eval_dataset = added(held_out)


def check_anchored(eval_dataset: Any, args: GPOConfig) -> None:
    """Raises ValueError for rows to evaluate on without what a pull needs, which only a trainer in the making adds."""
    if args.pull and "anchor_logps" not in eval_dataset.column_names:
        raise ValueError(
            f"pull={args.pull}: this evaluation data set has no anchor_logps; an anchor_model is used once, when "
            "GPOTrainer is made, and not kept: give the data set then, as eval_dataset, or with a column anchor_logps"
        )


def first_epoch(steps: Steps) -> Iterator[dict[str, Any]]:
    """Every micro-batch of this worker in the first epoch, in order, the idle ones too."""
    for place in range(len(steps)):
        yield from steps[0, place]["parts"]


def reference_key(dataset: Dataset, plan: StepPlan, weights: str, arithmetic: str) -> str:
    """Names the numbers: hash of the weights' own hash, the rows, the first epoch's batches and the arithmetic.

    The batches are those of all workers, and say what `prompt_id` groups. `arithmetic` is whatever else moves a digit:
    the type that is computed in, and the attention.
    """
    digest = hashlib.sha256()
    shared = {name: value for name, value in asdict(plan).items() if name != "rank"}
    digest.update(json.dumps([weights, arithmetic, shared], sort_keys=True).encode())
    for prompt, completion in zip(dataset["prompt_ids"], dataset["completion_ids"], strict=True):
        for ids in (prompt, completion):
            digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
    steps = Steps(dataset, plan)
    for place in range(len(steps)):
        digest.update(json.dumps(steps.batches(0, place)).encode())
    return digest.hexdigest()[:32]


def hash_of_weights(trainer: Any) -> str:
    """Names the reference's weights, those on other workers too; all workers call this."""
    pieces: list[str] = gather_object([hash_of_pieces(trainer.ref_model or trainer.model)])
    return " ".join(pieces) if any(pieces) else str(trainer._precompute_model_hash)


def hash_of_pieces(model: Any) -> str:
    """Hash of what this worker holds of a model in pieces by ZeRO-3, whose own tensors are empty; "" for others."""
    pieces = [parameter.ds_tensor for parameter in model.parameters() if hasattr(parameter, "ds_tensor")]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest() if pieces else ""


def read_reference(folder: Path, key: str, rows: int) -> Tensor | None:
    """log p [rows] of that key, or None where it was never finished or is damaged: it is computed anew then."""
    path = reference_file(folder, key)
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text("utf-8"))
        logps = torch.tensor(kept["logps"], dtype=torch.float32)
        whole = logps.shape == (rows,) and kept["sha256"] == _hash(logps)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        logger.warning("%s is damaged: the reference's log-probabilities are computed anew", path)
    return logps if whole else None


def write_reference(folder: Path, key: str, logps: Tensor) -> None:
    """Whole when it exists; float32 numbers survive as JSON to the bit."""
    named = {"format_version": 1, "key": key, "sha256": _hash(logps)}
    write_json(reference_file(folder, key), named | {"logps": logps.tolist()})


def _hash(logps: Tensor) -> str:
    return hashlib.sha256(logps.cpu().float().numpy().tobytes()).hexdigest()


def reference_file(folder: Path, key: str) -> Path:
    """Where the numbers of a key lie."""
    return folder / f"reference-{key}.json"
