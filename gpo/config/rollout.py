"""How answers are drawn, and by which engine."""

from typing import Annotated, Literal

from pydantic import Field

from gpo.config.types import Count, Positive
from gpo.settings import Settings


class EngineConfig(Settings):
    """The vLLM engine of each sampler (placement)."""

    kv_cache_gib: Positive | None = None
    """Memory for the KV cache on the CPU, in GiB. null: what max_sequences of the longest rows need, but for all
    samplers of a machine at most a sixteenth of its free memory."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a GPU's memory that the engine may take."""
    tensor_parallel: Count = 1
    """GPUs an engine is spread over."""
    max_sequences: Count = 256
    """Answers generated side by side."""
    sleep_level: Literal[0, 1, 2] = 1
    """Colocated on a GPU: 1 parks the engine's weights in the machine's memory while others work, 2 drops them."""
    weight_transfer: Literal["disk", "nccl"] = "disk"
    """How running engines get new weights. nccl: over the network, by vLLM, from a GPU that a learner left; needs
    GPUs."""
    adapters: bool = False
    """With train.lora, on GPUs: engines keep the policy and take each version's adapter, a hundredth of the merged
    weights."""
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
    """Prompts a shard: the unit of work, of files and of what a crash can lose. Take 256 for 100,000 prompts."""
    leave_out: list[Literal["empty", "identical", "loop"]] = []
    """Answers that are sampled and scored but not trained on: without text, copies of an earlier one of the K, ending
    in a loop. Counted and recorded in each row. Empty: all are trained on, as in the paper."""
    most_poison_prompts: Annotated[int, Field(ge=0)] = 8
    """Prompts of an iteration that may be given up, each after it ended its process twice by itself."""
    engine: EngineConfig = EngineConfig()
