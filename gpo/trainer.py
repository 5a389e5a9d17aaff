"""GPOTrainer: regression of the policy's log-ratio on targets in nats, used like any TRL trainer.

A thin subclass of TRL's stable KTOTrainer, which brings model loading, PEFT, ZeRO and FSDP set-up, metrics, model
cards and resume. What is ours: rows of token ids with a target (nothing is tokenised twice), batches
that hold all answers of a prompt, reference log-probabilities over the very batches of the first epoch, and the loss.
Private names of TRL 1.16 that are used: `_prepare_dataset`, `_precompute_ref_logps`, `_compute_loss`,
`_set_signature_columns_if_needed`, `_metrics`. A contract test names the version; without KTOTrainer the same
overrides go on `transformers.Trainer`.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer

from gpo.log_probs import add_log_prob_head
from gpo.loss import gpo_loss

ROW_COLUMNS = ("prompt_ids", "completion_ids", "target")


@dataclass
class GPOConfig(KTOConfig):
    """TRL and transformers training arguments, with those of GPO and defaults that suit it."""

    length_power: float = field(default=0.0, metadata={"help": "LN-GPO: divide the log-ratio by length to this power."})
    batch_prompts: int = field(default=4, metadata={"help": "Prompts a forward pass, with all answers of each."})
    optim: str = field(default="rmsprop", metadata={"help": "Optimizer; RMSProp is the paper's."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the rows; 1 is the paper's."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Trade speed for memory."})
    max_length: int | None = field(default=None, metadata={"help": "None: rows are used as they are."})
    loss_type: str = field(default="apo_zero_unpaired", metadata={"help": "Leave: it keeps KTO's KL rows away."})
    precompute_ref_log_probs: bool = field(default=True, metadata={"help": "Once, before the first step."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Rows are used as they are."})


class PromptBatches(Sampler[list[int]]):
    """Batches of row indices: all rows of `batch_prompts` prompts each, prompts of similar length together.

    Sorted within windows of eight batches, so that little is padded and yet every epoch mixes anew. The plan is a
    function of (seed, epoch) alone: a resumed run walks the same batches.
    """

    WINDOW = 8

    def __init__(self, groups: Sequence[Sequence[int]], lengths: Sequence[int], batch_prompts: int, seed: int) -> None:
        self._groups = [list(group) for group in groups]
        self._longest = [max(lengths[row] for row in group) for group in self._groups]
        self._batch_prompts = batch_prompts
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._groups) // self._batch_prompts)

    def __iter__(self) -> Iterator[list[int]]:
        rng = random.Random(f"{self._seed}/{self._epoch}")
        order = list(range(len(self._groups)))
        rng.shuffle(order)
        window = self.WINDOW * self._batch_prompts
        order = [
            group
            for start in range(0, len(order), window)
            for group in sorted(order[start : start + window], key=lambda index: self._longest[index])
        ]
        batches = [order[start : start + self._batch_prompts] for start in range(0, len(order), self._batch_prompts)]
        rng.shuffle(batches)
        for batch in batches:
            yield [row for group in batch for row in self._groups[group]]


class RowCollator:
    """Rows -> right-padded ids, attention mask, completion mask, target, reference log-probability."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
        input_ids = torch.full((len(rows), width), self._pad, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        completion_mask = torch.zeros_like(input_ids)
        for number, row in enumerate(rows):
            ids = [*row["prompt_ids"], *row["completion_ids"]]
            input_ids[number, : len(ids)] = torch.tensor(ids)
            attention_mask[number, : len(ids)] = 1
            completion_mask[number, len(row["prompt_ids"]) : len(ids)] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}
        for name in ("target", "ref_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        batch["row"] = torch.tensor([row["row"] for row in rows])
        return batch


def _pop_init(args: GPOConfig) -> dict[str, Any]:
    """The arguments for loading a model named by its path, taken away, so that TRL does not call them unused."""
    given, args.model_init_kwargs = args.model_init_kwargs, None
    return dict(given) if isinstance(given, dict) else {}


class GPOTrainer(KTOTrainer):
    """Minimises mean((log pi/pi_ref / length^p - target)^2) over rows (paper Eq. 5.3).

    `train_dataset` has a row a completion: `prompt_ids`, `completion_ids`, `target` (nats), and optionally
    `prompt_id`, which keeps the answers of a prompt in one batch. Raises ValueError naming a missing column.
    """

    args: GPOConfig
    _tag_names = ["trl", "gpo"]
    _name = "GPO"

    def __init__(
        self,
        model: Any,
        args: GPOConfig | None = None,
        train_dataset: Dataset | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        args = args if args is not None else GPOConfig(output_dir="gpo-output")
        if train_dataset is None:
            raise ValueError("train_dataset is missing; expected a Dataset with columns " + ", ".join(ROW_COLUMNS))
        if isinstance(model, str):
            model = AutoModelForCausalLM.from_pretrained(
                model, **{"dtype": torch.float32, "trust_remote_code": args.trust_remote_code, **_pop_init(args)}
            )
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(
                model.config.name_or_path, trust_remote_code=args.trust_remote_code
            )
        collator = kwargs.pop("data_collator", None)
        if collator is None:
            pad = processing_class.pad_token_id
            collator = RowCollator(processing_class.eos_token_id if pad is None else pad)
        add_log_prob_head(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Rows are token ids already; number them, so that reference log-probabilities find their row."""
        missing = [name for name in ROW_COLUMNS if name not in dataset.column_names]
        if missing:
            raise ValueError(f"{dataset_name} data set: missing {missing}; it has {dataset.column_names}")
        if "row" in dataset.column_names:
            return dataset
        return dataset.add_column("row", list(range(len(dataset))))

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = [*ROW_COLUMNS, "ref_logps", "row"]

    def _batches(self, dataset: Dataset) -> PromptBatches:
        columns = dataset.column_names
        names = dataset["prompt_id"] if "prompt_id" in columns else [tuple(ids) for ids in dataset["prompt_ids"]]
        groups: dict[Any, list[int]] = {}
        for row, name in enumerate(names):
            groups.setdefault(name, []).append(row)
        lengths = [len(p) + len(c) for p, c in zip(dataset["prompt_ids"], dataset["completion_ids"], strict=True)]
        return PromptBatches(list(groups.values()), lengths, self.args.batch_prompts, self.args.seed)

    def _loader(self, dataset: Dataset) -> DataLoader:
        return DataLoader(dataset, batch_sampler=self._batches(dataset), collate_fn=self.data_collator)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of whole prompts (see PromptBatches)."""
        return self.accelerator.prepare(self._loader(self.train_dataset))

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """One pass of the policy itself, before it moves, over the very batches of the first epoch.

        The same batches, padding and forward give the same bits, so the log-ratio of the first step is exactly 0.
        """
        if "ref_logps" in dataset.column_names:
            return dataset
        ref_logps = torch.zeros(len(dataset))
        for batch in self.accelerator.prepare(self._loader(dataset)):
            with torch.no_grad(), self.accelerator.autocast():
                logps = self._answer_logps(self.model, batch)
            rows, logps = self.accelerator.gather((batch["row"], logps))
            ref_logps[rows.cpu()] = logps.float().cpu()
        return dataset.add_column("ref_logps", ref_logps.tolist())

    def _answer_logps(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """log p [N] of each row's answer in nats, summed over its tokens."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], answer_labels=labels).sum(
            -1
        )

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False) -> Any:
        policy_logps = self._answer_logps(model, inputs)
        lengths = inputs["completion_mask"].sum(-1).clamp(min=1)
        loss = gpo_loss(
            policy_logps,
            inputs["ref_logps"].to(policy_logps),
            inputs["target"].to(policy_logps),
            lengths_N=lengths,
            length_power=self.args.length_power,
        )
        self._watch(policy_logps.detach(), inputs)
        return (loss, {"policy_logps": policy_logps}) if return_outputs else loss

    def _watch(self, policy_logps: Tensor, inputs: dict[str, Tensor]) -> None:
        """Metrics of a step: how the log-ratio follows its target, and how far the policy has gone."""
        log_ratio = policy_logps - inputs["ref_logps"].to(policy_logps)
        gathered = self.accelerator.gather(torch.stack([log_ratio, inputs["target"].to(log_ratio)], dim=-1))
        ratio_N, target_N = gathered[:, 0].float(), gathered[:, 1].float()
        metrics = self._metrics["train" if torch.is_grad_enabled() else "eval"]
        metrics["log_ratio_mean"].append(ratio_N.mean().item())
        metrics["log_ratio_max_abs"].append(ratio_N.abs().max().item())
        if len(ratio_N) > 1 and ratio_N.std() > 0 and target_N.std() > 0:
            metrics["target_correlation"].append(torch.corrcoef(torch.stack([ratio_N, target_N]))[0, 1].item())
