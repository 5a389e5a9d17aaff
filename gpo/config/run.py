"""The whole config of a run, and what of it is the run's identity."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import model_validator

from gpo.config.baseline import BaselineConfig
from gpo.config.cluster import ClusterConfig
from gpo.config.evaluation import CanaryConfig, EvaluationConfig
from gpo.config.policy import PolicyConfig, PromptsConfig
from gpo.config.preference import PreferenceConfig, TargetConfig
from gpo.config.rollout import RolloutConfig
from gpo.config.tracking import HubConfig, TrackingConfig
from gpo.config.train import TrainConfig
from gpo.config.types import Count, Seed
from gpo.settings import Settings


class RunConfig(Settings):
    """An iterative self-play run."""

    name: str
    """Names the run directory: runs/NAME."""
    seed: Seed = 0
    """All randomness follows from it."""
    iterations: Count = 3
    """Rounds of generate, score, train, publish, evaluate."""
    policy: PolicyConfig
    prompts: PromptsConfig
    rollout: RolloutConfig = RolloutConfig()
    preference: PreferenceConfig
    target: TargetConfig
    baseline: BaselineConfig = BaselineConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    canary: CanaryConfig = CanaryConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    hub: HubConfig = HubConfig()

    @model_validator(mode="after")
    def _settings_agree(self) -> "RunConfig":
        found = list(self.disagreements())
        if found:
            raise ValueError("; ".join(found))
        return self

    def disagreements(self) -> Iterator[str]:
        """A sentence for each pair of settings that cannot go together."""
        reference = self.target.method.endswith("-reference")
        if reference and self.target.log_z not in (None, "zero"):
            yield f"target.log_z = {self.target.log_z!r}: the -reference methods never centre; use zero"
        if self.baseline.kind != "self" and not reference and self.target.log_z == "zero":
            yield (
                f"target.log_z = 'zero' with baseline.kind = {self.baseline.kind!r}: such targets do not average to 0, "
                "and mass would go to answers that nobody sampled; leave target.log_z out"
            )
        if self.train.objective != "regression" and self.target.clamp is not None:
            yield (
                f"target.clamp = {self.target.clamp:g} with train.objective = {self.train.objective!r}: pairs have no "
                "targets, so it would do nothing; leave target.clamp out"
            )
        if self.policy.dtype == "float16" and self.train.workers > 1 and self.train.sharding.startswith("zero"):
            yield (
                f"policy.dtype = 'float16' with train.sharding = {self.train.sharding!r}: DeepSpeed would round the "
                "master weights to float16; set policy.dtype=bfloat16 (or float32), or train.sharding=none (or fsdp)"
            )
        if self.rollout.engine.adapters and self.train.lora is None:
            yield "rollout.engine.adapters needs adapters: set train.lora, or leave it out"
        if self.rollout.engine.weight_transfer == "nccl" and self.cluster.shape == "colocated":
            yield (
                "rollout.engine.weight_transfer = 'nccl' needs cluster.shape = 'split': who sends the weights wants a "
                "GPU of its own while the engines hold theirs; use disk"
            )
        if self.target.exclude_self and self.baseline.kind != "self":
            yield f"target.exclude_self needs baseline.kind = 'self', found {self.baseline.kind!r}"
        if self.train.select == "top-and-bottom" and 2 * self.train.select_n > self.rollout.samples:
            yield (
                f"train.select_n = {self.train.select_n} at each end of rollout.samples = {self.rollout.samples} "
                "answers; expected at most half of them"
            )
        judges = self.preference.judge_names()
        if self.evaluation.choose_by not in (None, *judges):
            yield f"evaluation.choose_by = {self.evaluation.choose_by!r}: not among the judges ({', '.join(judges)})"


PLACEMENT = (
    "cluster",
    "hub",
    "tracking",
    "rollout.engine",
    "train.activation_offload",
    "train.batch_tokens",
    "train.gradient_checkpointing",
    "train.layout",
    "train.save_steps",
    "train.sharding",
    "train.workers",
    "preference.batch_tokens",
    "evaluation.choose",
    "evaluation.choose_by",
)


def identity_values(config: RunConfig) -> dict[str, Any]:
    """The resolved config without its placement keys, and with paths as every machine names them.

    A run may go on where its prompts lie elsewhere (as a submitted job): they are known by their content's hash.
    """
    values = config.model_dump(mode="json")
    values["policy"]["model"] = str(Path(config.policy.model).absolute())
    for key in ("train", "heldout"):
        source = values["prompts"][key]
        values["prompts"][key] = source if not source or source.startswith("hub:") else Path(source).name
    sources = values["preference"]["sources"]
    values["preference"]["sources"] = {name: _without_folder(spec) for name, spec in sources.items()}
    for dotted in PLACEMENT:
        *parents, last = dotted.split(".")
        owner = values
        for parent in parents:
            owner = owner[parent]
        owner.pop(last)
    return values


def _without_folder(spec: str) -> str:
    """A model's directory absolute, a Python source by its file's name."""
    kind, _, place = spec.partition(":")
    if kind == "gpm":
        return f"gpm:{Path(place).absolute()}"
    return f"python:{Path(place).name}" if kind == "python" else spec


def identity_hash(config: RunConfig) -> str:
    """Hash of all that makes this run this run."""
    text = json.dumps(identity_values(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def changed_identity(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted `key: old -> new` of every identity value that differs."""
    changes: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes += changed_identity(a, b, f"{prefix}{key}.")
        elif a != b:
            changes.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return changes
