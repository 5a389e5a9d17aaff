"""PairTrainer: transformers' Trainer on batches of preference pairs.
What it is: the overrides that a plan of whole steps needs (its own data loader, a loss that is normalised over all
workers, two learning rates), evaluation that gives every worker the same numbers, step checkpoints that count only when
whole, and best checkpoints by metric. What it is not: it reads no data and opens no model (`reward.training` does).

Private to transformers 5.19 and used here: `loss_is_scaled_for_ga`, `_prepare_for_training`, `_save_checkpoint`,
`_save`, `_issue_warnings_after_load`, `set_initial_training_values`, that every step is logged with its loss over all
workers before it is saved, and that a data loader of its own is used as it is;
tests/contract/test_transformers_trainer.py names the version.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from reward.best_checkpoints import BestCheckpoints
from reward.encoded_pairs import EncodedPair
from reward.errors import RewardInputError
from reward.pair_batches import PairBatch, lay_out
from reward.pair_evaluation import COLUMNS, evaluation_metrics, pair_values
from reward.pair_model import PairModel, loss_of_pairs, pair_loss
from reward.publishing import publish_model, whole_state
from reward.sharding import check_sharded
from reward.step_plan import cut_steps, grouped

WHOLE = "whole.json"
"""Written into a step checkpoint last."""
_NO_DATA: Any = []
"""For a check of the trainer, which then never looks at it: `evaluate` is ours."""


class SaveStepsAsAsked(TrainerCallback):
    """The state of a step checkpoint brings its own save_steps along, and an earlier start may have had others."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the state is loaded."""
        state.save_steps = args.save_steps


class PairTrainer(Trainer):
    """Trains a PairModel; `heldout` None or empty: no evaluation."""

    def __init__(
        self,
        model: PairModel,
        args: TrainingArguments,
        passes: "Dataset[PairBatch] | IterableDataset[PairBatch]",
        heldout: Sequence[EncodedPair] = (),
        best: BestCheckpoints | None = None,
        tokenizer: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=passes, eval_dataset=_NO_DATA, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self.add_callback(SaveStepsAsAsked)
        self.loss_is_scaled_for_ga = True  # The weights of a step's pairs add up over its forward passes.
        self.settings = model.settings
        self.best = best
        self.tokenizer = tokenizer
        self.heldout = [pair for group in grouped(heldout) for pair in group]
        """By group, so that a batch holds whole groups."""
        self.heldout_values = torch.zeros(0, len(COLUMNS), dtype=torch.float64)
        """Of the last evaluation, a row for each of `heldout`."""
        self.tau = model.tau
        """Of the last evaluation; it is read where a sharded model has it whole, in the forward pass."""

    @property
    def pair_model(self) -> PairModel:
        """The model without what DDP, DeepSpeed or FSDP put around it."""
        return cast(PairModel, self.accelerator.unwrap_model(self.model))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The plan's own batches: they are shared out among workers already."""
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=_only_one)  # type: ignore[arg-type]

    def set_initial_training_values(self, *arguments: Any, **named: Any) -> tuple[Any, ...]:
        """All steps are one epoch, of a stream too, which would else be gone through again after its last step."""
        _, *others = super().set_initial_training_values(*arguments, **named)
        return (1, *others)

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        """Raises RewardInputError on every worker after a step that made no sense, before it is saved anywhere."""
        loss, norm = logs.get("loss", 0.0), logs.get("grad_norm", 0.0)
        # DeepSpeed tells a norm that is not finite as -1.
        if not (math.isfinite(loss) and 0 <= norm < math.inf):
            raise self._diverged(f"loss is {loss}, length of the gradient {norm if norm >= 0 else math.nan}")
        super().log(logs, *arguments, **named)

    def _diverged(self, found: str) -> RewardInputError:
        return RewardInputError(
            f"step {self.state.global_step}: {found}, expected finite numbers; lower learning_rate "
            f"({self.args.learning_rate}) and start anew"
        )

    def create_optimizer(self, model: Any = None) -> Any:
        """Backbone and heads in groups of their own; norms, biases and tau are not decayed."""
        if self.optimizer is None:
            groups: dict[tuple[bool, bool], list[Any]] = {}
            for name, weight in cast(Any, self.model if model is None else model).named_parameters():
                if weight.requires_grad:
                    groups.setdefault((".heads." in name or "log_tau" in name, weight.dim() > 1), []).append(weight)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            options.pop("lr", None)
            rates = (self.args.learning_rate, self.settings.head_learning_rate or self.args.learning_rate)
            described = [
                {"params": weights, "lr": rates[of_heads], "weight_decay": self.args.weight_decay if decays else 0.0}
                for (of_heads, decays), weights in groups.items()
            ]
            self.optimizer = kind(described, **options)
        return self.optimizer

    def _prepare_for_training(self, *arguments: Any, **named: Any) -> Any:
        prepared = super()._prepare_for_training(*arguments, **named)
        check_sharded(self.model_wrapped, self.settings.sharding)
        return prepared

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The worker's share of the step's loss, times the number of workers."""
        batch: PairBatch = inputs["batch"].to(self.args.device)
        output = model(batch)
        loss = pair_loss(output, batch, self.settings)
        return (loss, output) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted."""
        return 0

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Metrics of the held-out pairs, the same on every worker; keeps the model where it is among the best."""
        if not self.heldout:
            return {}
        self.score_heldout()
        if not self.heldout_values.isfinite().all():
            raise self._diverged("scores of held-out pairs are not finite")
        metrics = evaluation_metrics(self.heldout, self.heldout_values, self.tau)
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(dict(named))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        self._keep_if_best(metrics)
        return named

    @torch.no_grad()
    def score_heldout(self) -> None:
        """COLUMNS of every held-out pair, computed by turns and gathered into `heldout_values`; all workers call it."""
        rank, world = self.args.process_index, self.args.world_size
        value_N6 = torch.zeros(len(self.heldout), len(COLUMNS), dtype=torch.float64)
        limit = max(1, self.settings.batch_pairs // (world * self.settings.accumulation))
        batches, done = [], 0
        for step in cut_steps(grouped(self.heldout), limit):
            pairs = [pair for group in step for pair in group]
            batches.append((done, pairs))
            done += len(pairs)
        self.pair_model.eval()
        turns = -(-len(batches) // world)
        for turn in range(turns):
            place = turn * world + rank
            # A worker without a batch of its own computes one for nothing: sharded models compute together.
            start, pairs = batches[min(place, len(batches) - 1)]
            values = self._batch_values(pairs)
            if place < len(batches):
                value_N6[start : start + len(pairs)] = values
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        self.pair_model.train()
        self.heldout_values = self.accelerator.reduce(value_N6.to(self.args.device), "sum").cpu()

    def _batch_values(self, pairs: Sequence[EncodedPair]) -> Tensor:
        model = self.pair_model
        batch = lay_out(pairs, 1.0, share=model.shares_beginnings).to(self.args.device)
        output = model(batch)
        self.tau = float(output.tau)
        loss_N = loss_of_pairs(output.score_N, output.tau, batch.target_N, batch.margin_N, self.settings)
        return pair_values(output, pairs, loss_N)

    def _keep_if_best(self, metrics: dict[str, float]) -> None:
        if self.best is None:
            return
        step, value = self.state.global_step, metrics.get(self.best.metric, float("nan"))
        best = self.best
        if not self.first_says(lambda: best.wants(step, value, best.kept())):
            return
        state = whole_state(self)
        if self.args.process_index == 0:
            best.add(step, metrics, lambda path: publish_model(self, state, path))
        self.accelerator.wait_for_everyone()

    def first_says(self, question: Callable[[], bool]) -> bool:
        """The first worker's answer on every worker, so that all take the same way."""
        answer = question() if self.args.process_index == 0 else False
        told = self.accelerator.reduce(torch.tensor([float(answer)], device=self.args.device), "sum")
        return bool(told.item())

    def agree(self, number: int, what: str, remedy: str) -> None:
        """Raises RewardInputError where workers have different numbers, as on machines that share no disk."""
        told = self.accelerator.gather(torch.tensor([number], device=self.args.device)).tolist()
        if len(set(told)) > 1:
            raise RewardInputError(
                f"workers {what} {', '.join(map(str, told))}, by rank; expected the same one: {remedy}"
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Weights of a step checkpoint; with adapters only what is trained."""
        state = self.pair_model.state_dict() if state_dict is None else state_dict
        if self.settings.adapter is not None:
            trained = {name for name, weight in self.pair_model.named_parameters() if weight.requires_grad}
            state = {name: tensor for name, tensor in state.items() if name in trained}
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A step checkpoint has what is trained: with adapters the frozen weights are not in it, and nothing else."""
        trained = {name for name, weight in self.pair_model.named_parameters() if weight.requires_grad}
        wrong = [*load_result.unexpected_keys, *(trained & set(load_result.missing_keys))]
        if wrong:
            raise RewardInputError(
                f"the step checkpoint in {self.args.output_dir} does not fit this training (first {wrong[0]}); "
                "delete it to start from the beginning"
            )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.process_index == 0:
            folder = Path(str(self.args.output_dir))
            mark_whole(folder / f"checkpoint-{self.state.global_step}", self.args.world_size)
        self.accelerator.wait_for_everyone()


def mark_whole(checkpoint: Path, world: int) -> None:
    """Say that a step checkpoint is complete, and take away the others."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    part = checkpoint / f".{WHOLE}.part"
    part.write_text(json.dumps({"workers": world}) + "\n", "utf-8")
    part.replace(checkpoint / WHOLE)
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other, ignore_errors=True)


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest step checkpoint that is complete."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _only_one(batches: list[PairBatch]) -> dict[str, PairBatch]:
    return {"batch": batches[0]}
