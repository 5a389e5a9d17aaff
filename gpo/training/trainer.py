"""GPOTrainer: regression of the policy's log-ratio on targets in nats, used like any TRL trainer.

A subclass of TRL's stable KTOTrainer, which brings PEFT, ZeRO and FSDP set-up, metrics, model cards and resume. What
is ours: the rows (`rows`), the steps (`batches`), the layouts (`layout`), the head (`log_probs`), the loss, reference
log-probabilities over the very batches of the first epoch, and the watch. Private names of TRL 1.16, transformers 5.19
and accelerate: those with an underscore below and in `reference`, and `use_adapter`, `prepare_deepspeed`,
`prepare_fsdp`. A contract test holds them; without KTOTrainer the same overrides go on `transformers.Trainer`.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import Tensor
from trl import KTOTrainer

from gpo.training.batches import StepLoader, StepPlan, Steps
from gpo.training.log_probs import answer_logps
from gpo.training.objectives import objective_loss, wanted_ratio
from gpo.training.reference import add_anchor, check_anchored, reference_logps, reference_of, with_own_reference
from gpo.training.rows import prepare_rows
from gpo.training.segment_attention import choose_layout, segment_attention, segments_of
from gpo.training.starting import (
    check_arguments,
    copy_of,
    make_ready,
    needs_copy,
    starting_model,
    stop_limits,
    tokenizer_of,
)
from gpo.training.step_checkpoints import drop_all_but_best, how_held, last_whole, load_trained_adapter, writing
from gpo.training.trainer_config import GPOConfig
from gpo.training.watch import StepRows, StopRule, check_finite, evaluation_prefix, tell_evaluation

__all__ = ["GPOConfig", "GPOTrainer"]


class GPOTrainer(KTOTrainer):
    """Minimises mean((log pi/pi_ref / length^p - target)^2) over rows (paper Eq. 5.3), or one of the other objectives.

    `train_dataset` has one of the forms of `rows`. `anchor_model` is the policy that `args.pull` pulls to, used
    once before training. `stopped` says which rule of `watch` ended the training, None if none did.
    Raises ValueError naming what is missing from a row, the argument that has no meaning here, trainable weights in
    half precision, or a model on several devices.
    """

    args: GPOConfig
    _tag_names = ["trl", "gpo"]
    _name = "GPO"
    _paper = {
        "title": "Beyond Bradley-Terry Models: A General Preference Model for Language Model Alignment",
        "id": "2410.02197",
    }

    def __init__(
        self,
        model: Any,
        args: GPOConfig | None = None,
        train_dataset: Dataset | None = None,
        processing_class: Any = None,
        *,
        ref_model: Any = None,
        anchor_model: Any = None,
        **kwargs: Any,
    ) -> None:
        args = args or GPOConfig(output_dir="gpo-output")
        check_arguments(args, model, train_dataset, anchor_model, kwargs)
        processing_class = tokenizer_of(model, args) if processing_class is None else processing_class
        # Before a model is loaded: a faulty row shows within a second.
        train_dataset, self._target_factor = prepare_rows(train_dataset, processing_class, args)
        model = starting_model(model, args, kwargs)
        copied = ref_model is None and needs_copy(model, args, kwargs)
        if copied:
            ref_model = copy_of(model)
        make_ready(model, ref_model, anchor_model)
        self._layout = choose_layout(model.config, args.layout)
        self._attention = str(model.config._attn_implementation)
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if copied and args.precompute_ref_log_probs:
            self.ref_model = None  # FSDP's copy, see needs_copy
        if args.pull and anchor_model is not None:
            add_anchor(self, anchor_model)
        self._step_rows = StepRows(self.accelerator)
        self._stop_rule = StopRule(stop_limits(args))
        self.add_callback(self._stop_rule)

    @property
    def stopped(self) -> dict[str, Any] | None:
        """Rule, value, limit and step of the rule that ended the training."""
        return self._stop_rule.stopped

    # Rows and steps

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return prepare_rows(dataset, processing_class, args, dataset_name, self._target_factor)[0]

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["prompt_ids", "completion_ids", "target", "ref_logps", "row"]

    def _plan(self, shuffle: bool) -> StepPlan:
        return StepPlan(
            layout=self._layout,
            batch_tokens=self.args.batch_tokens,
            step_prompts=self.args.batch_prompts,
            passes=self.args.gradient_accumulation_steps if shuffle else 1,
            seed=self.args.seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            pad_id=self._tokenizer.pad_token_id,
            divide=self.args.objective == "regression",
            shuffle=shuffle,
        )

    def get_train_dataloader(self) -> StepLoader:
        """Steps of whole prompts (see `gpo.training.batches`); they are shared out among the workers already."""
        return StepLoader(Steps(self.train_dataset, self._plan(shuffle=True)))

    def num_examples(self, dataloader: Any) -> int:
        """Answers, not the steps that the loader counts."""
        return int(dataloader.dataset.rows)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> StepLoader:
        """The rows of an evaluation data set in order."""
        named: Any = self.eval_dataset
        chosen = named[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        dataset = named if chosen is None else chosen
        check_anchored(dataset, self.args)
        return StepLoader(Steps(dataset, self._plan(shuffle=False)))

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """As TRL's, which refuses new rows when the reference is gone; those with `ref_logps` need none."""
        prepared = with_own_reference(self, eval_dataset)
        if prepared is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        return super(KTOTrainer, self).evaluate(prepared, ignore_keys, metric_key_prefix)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own, which takes the loader's steps for samples."""
        return super().evaluation_loop(dataloader, *args, **kwargs)._replace(num_samples=self.num_examples(dataloader))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Raises NotImplementedError: there are no logits to give back."""
        raise NotImplementedError("predict: a GPOTrainer keeps no logits; evaluate(data set) gives losses and metrics")

    # Reference and anchor

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """One pass before the policy moves, over the very batches of the first epoch.

        The same batches, layout and forward give the same bits, so the log-ratio of the first step is exactly 0.
        """
        if "ref_logps" in dataset.column_names:
            return dataset
        logps = reference_logps(self, dataset, self._plan(shuffle=name == "train"))
        return dataset.add_column("ref_logps", logps.tolist())

    # Loss

    @property
    def _compute_type(self) -> str:
        return self.args.compute_dtype if self.args.compute_dtype != "auto" else self.accelerator.mixed_precision

    def _logps(self, model: Any, part: dict[str, Any]) -> Tensor:
        """log p [N] of each answer of a part in nats."""
        names = ("input_ids", "attention_mask", "position_ids", "answer_at", "answer_ids")
        inputs = {name: part[name] for name in names if name in part} | segments_of(part)
        if self.args.compute_dtype != "auto":
            inputs["compute_dtype"] = self.args.compute_dtype
        with self._segments(model), self.accelerator.autocast():
            return answer_logps(model(**inputs), part["lengths"])

    def _segments(self, model: Any) -> AbstractContextManager[None]:
        if self._layout == "padded":
            return nullcontext()
        half = self._compute_type in ("bf16", "fp16", "bfloat16")
        use_flash = half and "flash" in self._attention and torch.cuda.is_available()
        return segment_attention(self.accelerator.unwrap_model(model).config, use_flash)

    def _part_loss(self, model: Any, part: dict[str, Any], rows: float) -> Tensor:
        """The part's share of the mean over all rows of a step, times the number of workers, who average."""
        # An idle worker computes this too: a live reference in pieces needs all workers. It comes first, so that a live
        # one works before the policy's graph is held.
        reference = reference_of(self, part)
        policy = self._logps(model, part)
        reference = reference.to(policy)
        if "idle" in part:
            return policy.sum() * 0.0
        lengths = torch.tensor(part["lengths"], device=policy.device)
        wanted = wanted_ratio(reference, part, lengths, self.args)
        loss = objective_loss(policy, reference, wanted, lengths, part, self.args)
        self._step_rows.add(policy - reference, wanted, lengths, part["target"], part["score"])
        return loss * (len(policy) / rows * self.accelerator.num_processes)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        """The loss of a whole item with one graph, for evaluation; `training_step` goes part by part."""
        losses = [self._part_loss(model, self._prepare_inputs(part), inputs["rows"]) for part in inputs["parts"]]
        loss = torch.stack(losses).sum()
        if not torch.is_grad_enabled():
            loss = self.accelerator.reduce(loss, "mean")
        self._step_rows.end_step("train" if torch.is_grad_enabled() else "eval")
        return (loss, {"loss": loss}) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of each part in turn; gradients are exchanged between workers at the last only."""
        model.train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()  # a schedule-free one, which an evaluation has put into its other mode
        sharded = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        state, exchange = self.accelerator.gradient_state, self.accelerator.sync_gradients
        total = torch.zeros((), device=self.accelerator.device)
        with self.maybe_activation_offload_context, self._segments(model):
            for left, part in zip(reversed(range(len(inputs["parts"]))), inputs["parts"], strict=True):
                state._set_sync_gradients(exchange and left == 0)
                waits = nullcontext() if left == 0 or sharded else self.accelerator.no_sync(model)
                with waits:
                    loss = self._part_loss(model, self._prepare_inputs(part), inputs["rows"])
                    self.accelerator.backward(loss, **({"scale_wrt_gas": False} if sharded else {}))
                total += loss.detach()
        if exchange:
            self._step_rows.end_step("train")
        return total

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """An item, or a part of one, on the device; transformers' own casts targets to bfloat16 under DeepSpeed."""
        device = self.accelerator.device
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}

    # Watch

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """As transformers' own, behind the stop rule; FloatingPointError on all workers for what is not finite."""
        control = self.control
        if self._stop_rule.is_on:
            self._stop_rule.judge(self._new_numbers(), self.state, control)
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            loss = self.accelerator.reduce(tr_loss.detach().clone(), "mean").item()
            # With fp16 a gradient that overflows is left out, and the next one scaled less.
            norm = 0.0 if grad_norm is None or self.args.fp16 else float(grad_norm)
            check_finite(loss, norm, self.state.global_step, self.args.learning_rate)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _new_numbers(self) -> list[dict[str, float]]:
        """Metrics of each training step since they were last asked for, which the next log has too."""
        found = self._step_rows.numbers("train", self.args.length_power, self.args.clamp)
        for numbers in found:
            for name, value in numbers.items():
                self._metrics["train"][name].append(value)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's, with the metrics of the steps since the last log, or of an evaluation."""
        model: Any = self.model
        if model.training:
            self._new_numbers()
        elif prefix := evaluation_prefix(logs):
            loader: Any = self.callback_handler.eval_dataloader
            for numbers in self._step_rows.numbers("eval", self.args.length_power, self.args.clamp):
                tell_evaluation(logs, prefix, numbers, steps=len(loader))
        if self.args.fp16 and not math.isfinite(logs.get("grad_norm", 0.0)):
            del logs["grad_norm"]
        super().log(logs, start_time)

    # Checkpoints

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own; True resumes from the last checkpoint that is whole, if there is one."""
        if resume_from_checkpoint is True:
            found = last_whole(Path(str(self.args.output_dir)), how_held(self))
            resume_from_checkpoint = str(found) if found else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_trained_adapter(model or self.model, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(self):
            super()._save_checkpoint(model, trial)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        drop_all_but_best(self)
        return super()._finalize_training(*args, **kwargs)
