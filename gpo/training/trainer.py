"""GPOTrainer: regression of the policy's log-ratio on targets in nats, used like any TRL trainer.

A subclass of TRL's stable KTOTrainer, which brings PEFT, ZeRO and FSDP set-up, metrics, model cards and resume. What
is ours: the rows (`rows`), the steps (`batches`), the layouts (`layout`), the head (`log_probs`), the
loss, reference log-probabilities over the very batches of the first epoch, and the watch.
Private names of TRL 1.16 and transformers 5.19 that are used: `_prepare_dataset`, `_precompute_ref_logps`,
`_precompute_model_hash`, `_precompute_engine`, `_compute_loss`, `_set_signature_columns_if_needed`, `_metrics`,
`_save_checkpoint`, `gradient_state._set_sync_gradients`. A contract test names the versions; without KTOTrainer the
same overrides go on `transformers.Trainer`.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOTrainer
from trl.models.utils import prepare_deepspeed
from trl.trainer.utils import use_adapter

from gpo.training.batches import StepLoader, StepPlan, Steps
from gpo.training.log_probs import add_log_prob_head, answer_logps
from gpo.training.objectives import objective_loss, wanted_ratio
from gpo.training.reference import first_epoch, read_reference, reference_key, write_reference
from gpo.training.rows import prepare_rows
from gpo.training.segment_attention import choose_layout, segment_attention, segments_of
from gpo.training.step_checkpoints import last_whole, mark_whole
from gpo.training.trainer_config import GPOConfig
from gpo.training.watch import StopLimits, StopRule, step_numbers

__all__ = ["GPOConfig", "GPOTrainer"]


class GPOTrainer(KTOTrainer):
    """Minimises mean((log pi/pi_ref / length^p - target)^2) over rows (paper Eq. 5.3), or one of the other objectives.

    `train_dataset` has one of the forms of `rows`. `anchor_model` is the policy that `args.pull` pulls to, used
    once before training. `stopped` says which rule of `watch` ended the training, None if none did.
    Raises ValueError naming what is missing from a row.
    """

    args: GPOConfig
    _tag_names = ["trl", "gpo"]
    _name = "GPO"
    _paper = {
        "title": "Beyond Bradley-Terry Models: A General Preference Model for Language Model Alignment",
        "id": "2410.02197",
        "citation": "",
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
        args = args if args is not None else GPOConfig(output_dir="gpo-output")
        if train_dataset is None:
            raise ValueError("train_dataset is missing; expected a Dataset in one of the forms of gpo.training.rows")
        if isinstance(model, str):
            model = _load(model, args)
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(
                model.config.name_or_path, trust_remote_code=args.trust_remote_code
            )
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        # TRL would load a live reference from where the policy was loaded; what is meant is the policy as it is now.
        if ref_model is None and not args.precompute_ref_log_probs and plain is model and not kwargs.get("peft_config"):
            ref_model = copy.deepcopy(model)
        for one in (plain, ref_model, anchor_model):
            if one is not None:
                add_log_prob_head(one)
        self._layout = choose_layout(model.config, args.layout)
        self._use_flash = "flash" in str(model.config._attn_implementation) and torch.cuda.is_available()
        self._anchor = anchor_model
        self._step_rows: list[Tensor] = []
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        limits = StopLimits(args.stop_kl, args.stop_length_growth, args.stop_collapse, args.stop_window)
        self._stop_rule = StopRule(limits)
        self.add_callback(self._stop_rule)

    @property
    def stopped(self) -> dict[str, Any] | None:
        """Rule, value, limit and step of the rule that ended the training."""
        return self._stop_rule.stopped

    # Rows and steps

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return prepare_rows(dataset, processing_class, args, dataset_name)

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
        dataset = named[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        return StepLoader(Steps(named if dataset is None else dataset, self._plan(shuffle=False)))

    # Reference and anchor

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """One pass before the policy moves, over the very batches of the first epoch.

        The same batches, layout and forward give the same bits, so the log-ratio of the first step is exactly 0.
        """
        plan = self._plan(shuffle=name == "train")
        if self._anchor is not None and "anchor_logps" not in dataset.column_names:
            dataset = dataset.add_column("anchor_logps", self._pass(self._anchor, dataset, plan).tolist())
        if "ref_logps" in dataset.column_names:
            return dataset
        folder = Path(self.args.reference_folder) if self.args.reference_folder else None
        key, kept = "", None
        if folder and self.accelerator.is_main_process:
            key = reference_key(dataset, plan, str(self._precompute_model_hash), self.args.compute_dtype)
            kept = read_reference(folder, key, len(dataset))
        # The first worker decides for all: others may see another disk, or hash only their piece of the weights.
        (logps,) = broadcast_object_list([kept], from_process=0)
        if logps is None:
            logps = self._pass(self._precompute_model(), dataset, plan)
            if folder and self.accelerator.is_main_process:
                write_reference(folder, key, logps)
        return dataset.add_column("ref_logps", logps.tolist())

    def _precompute_model(self) -> Any:
        """The reference as it can be called now; ZeRO-3's parameters are in pieces until an engine holds them."""
        model: Any = self.model if self.ref_model is None else self.ref_model
        if self.ref_model is None and any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            if self._precompute_engine is None:
                self._precompute_engine = prepare_deepspeed(model, self.accelerator)
            return self._precompute_engine
        return model

    @torch.no_grad()
    def _pass(self, model: Any, dataset: Dataset, plan: StepPlan) -> Tensor:
        logps_N = torch.zeros(len(dataset))
        for part in first_epoch(Steps(dataset, plan)):
            found = self._logps(model, self._on_device(part)).float().cpu()
            if "idle" not in part:
                logps_N[part["row"]] = found
        # Each row was computed by one worker, so a sum over them is exact.
        return self.accelerator.reduce(logps_N.to(self.accelerator.device)).cpu()

    def _reference(self, part: dict[str, Any]) -> Tensor:
        """log p [N] of the part's answers under the reference: kept, or computed now."""
        if "ref_logps" in part:
            return part["ref_logps"]
        with torch.no_grad():
            if self.ref_model is not None:
                return self._logps(self.ref_model, part)
            policy = self.accelerator.unwrap_model(self.model)
            with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
                return self._logps(self.model, part)

    # Loss

    def _computing(self) -> AbstractContextManager[Any]:
        if self.args.compute_dtype == "bfloat16":
            return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16)
        return nullcontext() if self.args.compute_dtype == "float32" else self.accelerator.autocast()

    def _logps(self, model: Any, part: dict[str, Any]) -> Tensor:
        """log p [N] of each answer of a part in nats."""
        names = ("input_ids", "attention_mask", "position_ids", "answer_at", "answer_ids")
        inputs = {name: part[name] for name in names if name in part} | segments_of(part)
        with self._segments(model), self._computing():
            return answer_logps(model(**inputs), part["lengths"])

    def _segments(self, model: Any) -> AbstractContextManager[None]:
        if self._layout == "padded":
            return nullcontext()
        return segment_attention(self.accelerator.unwrap_model(model).config, self._use_flash)

    def _part_loss(self, model: Any, part: dict[str, Any], rows: int) -> Tensor:
        """The part's share of the mean over all rows of a step, times the number of workers, who average."""
        policy = self._logps(model, part)
        if "idle" in part:
            return policy.sum() * 0.0
        reference = self._reference(part).to(policy)
        lengths = torch.tensor(part["lengths"], device=policy.device)
        target = wanted_ratio(reference, part, lengths, self.args)
        loss = objective_loss(policy, reference, target, lengths, part, self.args)
        self._step_rows.append(torch.stack([(policy - reference).detach(), target, lengths.to(policy)], -1))
        return loss * (len(policy) / rows * self.accelerator.num_processes)

    def _part_losses(self, model: Any, inputs: dict[str, Any]) -> Iterator[Tensor]:
        for part in inputs["parts"]:
            yield self._part_loss(model, self._on_device(part), inputs["rows"])

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        """The loss of a whole item with one graph, for evaluation; `training_step` goes part by part."""
        loss = torch.stack(list(self._part_losses(model, inputs))).sum()
        if not torch.is_grad_enabled():
            loss = self.accelerator.reduce(loss, "mean")
        self._watch()
        return (loss, {"loss": loss}) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of each part in turn; gradients are exchanged between workers at the last only."""
        model.train()
        sharded = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        state, exchange = self.accelerator.gradient_state, self.accelerator.sync_gradients
        total = torch.zeros((), device=self.accelerator.device)
        with self.maybe_activation_offload_context, self._segments(model):
            for left, part in zip(reversed(range(len(inputs["parts"]))), inputs["parts"], strict=True):
                state._set_sync_gradients(exchange and left == 0)
                waits = nullcontext() if left == 0 or sharded else self.accelerator.no_sync(model)
                with waits:
                    loss = self._part_loss(model, self._on_device(part), inputs["rows"])
                    self.accelerator.backward(loss, **({"scale_wrt_gas": False} if sharded else {}))
                total += loss.detach()
        if exchange:
            self._watch()
        return total

    def _on_device(self, part: dict[str, Any]) -> dict[str, Any]:
        """Not transformers' way, which casts targets to bfloat16 under DeepSpeed."""
        device = self.accelerator.device
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in part.items()}

    def _watch(self) -> None:
        """Metrics of a step over all workers; one with no rows has a row that is not a number."""
        nothing = torch.full((1, 3), float("nan"), device=self.accelerator.device)
        own = torch.cat(self._step_rows) if self._step_rows else nothing
        self._step_rows = []
        everyone = self.accelerator.pad_across_processes(own, pad_index=float("nan"))
        rows_N3 = self.accelerator.gather(everyone)
        rows_N3 = rows_N3[~rows_N3.isnan().any(-1)].float().cpu()
        if len(rows_N3):
            metrics = self._metrics["train" if torch.is_grad_enabled() else "eval"]
            ratio_N, target_N, length_N = rows_N3.unbind(-1)
            for name, value in step_numbers(ratio_N, target_N, length_N, clamp=self.args.clamp).items():
                metrics[name].append(value)

    # Checkpoints

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own; True resumes from the last checkpoint that is whole, if there is one."""
        if resume_from_checkpoint is True:
            found = last_whole(Path(str(self.args.output_dir)))
            resume_from_checkpoint = str(found) if found else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_whole(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")


def _load(path: str, args: GPOConfig) -> Any:
    """A model named by its path, in float32 for its master weights unless `model_init_kwargs` says otherwise."""
    given, args.model_init_kwargs = args.model_init_kwargs, None
    options = {"dtype": torch.float32, "trust_remote_code": args.trust_remote_code}
    return AutoModelForCausalLM.from_pretrained(path, **{**options, **(given if isinstance(given, dict) else {})})
