"""The model that is aligned, and what it is asked."""

from typing import Literal

from gpo.config.types import Count
from gpo.settings import Settings


class PolicyConfig(Settings):
    """The language model that is aligned."""

    model: str
    """Plain Hugging Face directory with a chat template."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Compute and publishing type; master weights are float32 always. auto: the type that `model` is stored in, but
    float32 for bfloat16 on a CPU that has no instructions for it, where it would be tens of times slower. A run that
    goes on keeps the type in which it was begun."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Of the learner on a GPU. auto: eager for models with attention soft-capping, else flash_attention_2 where
    flash-attn is installed and can compute in `dtype`, else sdpa. On a CPU auto and flash_attention_2 are eager."""
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
    empty: Literal["skip", "refuse"] = "refuse"
    """What happens with a row without text: counted and left out, or the run is refused and the row named."""
    over_long: Literal["skip", "refuse"] = "skip"
    """What happens with a longer one: it is counted, listed and left out, or the run is refused."""
