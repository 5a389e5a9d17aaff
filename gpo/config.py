"""The one typed config of a run.

Keys marked *placement* may change when a run goes on elsewhere; all others are the run's identity.
Nothing here imports torch, vllm or ray.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gpo.settings import Settings

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Method = Literal["gpo", "sppo", "gpo-reference", "sppo-reference"]


class PolicyConfig(Settings):
    """The language model that is aligned."""

    model: str
    """Plain Hugging Face directory with a chat template."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Compute and publishing type; master weights are float32 always."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """For the learner. auto: sdpa, or eager for models with attention soft-capping."""
    trust_remote_code: bool = False
    """Run Python code that lies in the model directory. Off unless you have read that code."""


class PromptsConfig(Settings):
    """What the policy is asked."""

    train: str
    """.json, .jsonl or .parquet file, or hub:NAME[:SPLIT]; columns `messages`, `prompt`, or `instruction`/`input`."""
    heldout: str | None = None
    """The same form, never trained on. None: the last `heldout_count` prompts of `train`."""
    heldout_count: Count = 64
    """Held-out prompts used in an evaluation."""
    column: str = "auto"
    """Column that holds the prompt; auto tries the known names."""
    per_iteration: Count | None = None
    """Prompts an iteration. None: all, shared out equally when disjoint."""
    split: Literal["disjoint", "whole"] = "disjoint"
    """disjoint: each prompt at most once in a run; whole: each iteration draws from all."""
    system: str | None = None
    """System message put before every prompt that has none."""
    max_tokens: Count = 1024
    """Longest rendered prompt in tokens."""
    over_long: Literal["skip", "refuse"] = "skip"
    """What happens with a longer one: it is counted, listed and left out, or the run is refused."""


class EngineConfig(Settings):
    """The vLLM engine of each sampler (placement)."""

    kv_cache_gib: Positive = 1.0
    """Memory for the KV cache on the CPU, in GiB."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a GPU's memory that the engine may take."""
    tensor_parallel: Count = 1
    """GPUs an engine is spread over."""
    max_sequences: Count = 128
    """Answers generated side by side."""
    compile: bool = False
    """Compile the model: a minute more at start, some tens of per cent faster."""


class RolloutConfig(Settings):
    """How answers are drawn."""

    samples: Annotated[int, Field(ge=2)] = 4
    """K, answers a prompt. At least 2: a preference needs two."""
    max_tokens: Count = 512
    """Longest answer in tokens; longer ones are cut and get no invented end."""
    temperature: Positive = 1.0
    """1 samples from the policy itself, which is what the loss assumes."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Below 1 costs a sort of the vocabulary each step: a third of the speed on the CPU."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 = all tokens."""
    shard_prompts: Count = 32
    """Prompts a shard: the unit of work, of files and of what a crash can lose."""
    engine: EngineConfig = EngineConfig()


class PreferenceConfig(Settings):
    """Who says what is better."""

    sources: dict[str, str]
    """Name -> `gpm:DIR` (GPM or Bradley-Terry model) or `python:FILE.py:FUNCTION`."""
    train_on: str
    """Name of the source that fills the table the policy is trained on."""
    judges: list[str] = []
    """Names of the sources that judge held-out answers; empty: the one trained on."""
    max_length: Count = 2048
    """Longest conversation in tokens that an embedding model reads."""
    batch_tokens: Count = 8192
    """Padded tokens a scoring batch (placement)."""

    @model_validator(mode="after")
    def _names_are_known(self) -> "PreferenceConfig":
        for name in [self.train_on, *self.judges]:
            if name not in self.sources:
                raise ValueError(f"{name!r} is not among preference.sources ({', '.join(self.sources) or 'empty'})")
        for name, spec in self.sources.items():
            kind, _, rest = spec.partition(":")
            if kind not in ("gpm", "python") or not rest:
                raise ValueError(f"preference.sources.{name} = {spec!r}: expected gpm:DIR or python:FILE.py:FUNCTION")
        return self

    def judge_names(self) -> list[str]:
        """The judges, the source trained on first."""
        return list(dict.fromkeys([*self.judges])) or [self.train_on]


class TargetConfig(Settings):
    """From a score table to the wanted log-ratio in nats."""

    method: Method = "gpo"
    """gpo: mean score/tau/beta; sppo: (mean probability - 1/2)/beta; `-reference`: as the published code."""
    beta: Positive
    """Strength of the pull to the sampling policy. No default: it sets the scale of everything."""
    tau: Positive | None = None
    """Temperature of the preference; None: the one saved with the model, 1 for a Python function."""
    clamp: Positive | None = None
    """Targets are cut to +-clamp nats."""
    exclude_self: bool = False
    """Leave an answer's comparison with itself out of its mean; only rescales beta by K/(K-1)."""
    log_z: Literal["zero", "mean", "logmeanexp"] = "zero"
    """What stands for log Z; zero is the paper's."""
    largest_nats: Positive = 50.0
    """A run whose targets exceed this is refused (the `-reference` recipes need more than 1000)."""


class TrainConfig(Settings):
    """How the policy is moved toward its targets."""

    learning_rate: Positive = 5e-7
    """Peak rate."""
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """rmsprop is the paper's."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Decay after warm-up, over one iteration."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of an iteration's steps with a rising rate."""
    epochs: Count = 1
    """Passes over an iteration's rows."""
    batch_prompts: Count = 4
    """Prompts a step; a step trains on all K answers of each."""
    gradient_accumulation_steps: Count = 1
    """Forward passes a step; each takes its share of the step's prompts, so more passes need less memory."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    length_power: Annotated[float, Field(ge=0, le=1)] = 0.0
    """LN-GPO: the log-ratio is divided by length to this power."""
    gradient_checkpointing: bool = False
    """Trade a third of the speed for memory."""
    save_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints inside an iteration; 0 = only its end (placement)."""
    workers: Count = 1
    """Learner processes (placement)."""

    @model_validator(mode="after")
    def _passes_share_a_step(self) -> "TrainConfig":
        if self.batch_prompts % self.gradient_accumulation_steps:
            raise ValueError(
                f"train.gradient_accumulation_steps = {self.gradient_accumulation_steps} does not divide "
                f"train.batch_prompts = {self.batch_prompts}; choose a divisor"
            )
        return self


class EvaluationConfig(Settings):
    """Held-out evaluation after each iteration."""

    samples: Count = 4
    """Answers a prompt from each checkpoint."""
    kl_prompts: Count = 64
    """Prompts whose first answer enters the KL estimate."""


class CanaryConfig(Settings):
    """Trainer against engine: log-probabilities of fixed texts after each publish."""

    largest_noise_nats: Positive = 0.1
    """Mean gap a token before iteration 1 beyond which trainer and engine are called different models."""
    factor: Annotated[float, Field(gt=1)] = 4.0
    """A later gap beyond this many times the noise floor stops the run."""


class ClusterConfig(Settings):
    """Where the processes run (placement)."""

    address: str | None = None
    """Ray cluster; None starts Ray here, for this run alone, on loopback."""
    shape: Literal["colocated", "split"] = "colocated"
    """colocated: phases in turn on the same devices; split: samplers and scorers side by side."""
    samplers: Count = 1
    """Engine processes."""
    scorers: Count = 1
    """Scoring processes."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads a process; 0 = all cores, shared out among processes that work at the same time."""
    wait_seconds: Positive = 3600.0
    """Deadline of a single shard or stage."""


class RunConfig(Settings):
    """An iterative self-play run."""

    name: str
    """Names the run directory: runs/NAME."""
    seed: Annotated[int, Field(ge=0)] = 0
    """All randomness follows from it."""
    iterations: Count = 3
    """Rounds of generate, score, train, publish, evaluate."""
    policy: PolicyConfig
    prompts: PromptsConfig
    rollout: RolloutConfig = RolloutConfig()
    preference: PreferenceConfig
    target: TargetConfig
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    canary: CanaryConfig = CanaryConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _methods_agree(self) -> "RunConfig":
        if self.target.method.endswith("-reference") and self.target.log_z != "zero":
            raise ValueError(f"target.log_z = {self.target.log_z!r}: the -reference methods never centre; use zero")
        return self


PLACEMENT = ("cluster", "rollout.engine", "train.save_steps", "train.workers", "preference.batch_tokens")


def identity_values(config: RunConfig) -> dict[str, Any]:
    """The resolved config without its placement keys."""
    values = config.model_dump(mode="json")
    for dotted in PLACEMENT:
        *parents, last = dotted.split(".")
        owner = values
        for parent in parents:
            owner = owner[parent]
        owner.pop(last)
    return values


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
