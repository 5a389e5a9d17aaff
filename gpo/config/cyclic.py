"""The cyclic experiment: what `gpo reward cyclic` reads."""

from typing import Annotated, Literal

from pydantic import Field

from gpo.config.types import MOST_EPOCHS, Count, Positive, Seed, Width
from gpo.settings import Settings


class RatingsConfig(Settings):
    """How cycles are made of ratings by several criteria: the choices that the paper leaves open."""

    criteria: tuple[str, ...] = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    """Those that may judge, in the order in which edges take them; each data set of the paper drops one of four."""
    edges: Literal["ordered", "any"] = "ordered"
    """ordered: edge k is judged by criterion k; any: by any of them."""
    distinct: bool = True
    """any: neighbouring edges are judged by different criteria."""
    length: Annotated[int, Field(ge=3)] = 3
    """Answers in a cycle."""
    least_difference: Positive = 1e-9
    """By how much the winner's rating must be higher."""
    per_prompt: Count = 1
    """Cycles of one prompt that are kept."""
    seed: Seed = 0
    """Which ones."""


class CyclicConfig(Settings):
    """GPM against Bradley-Terry on cyclic preferences, both trained with the same settings."""

    backbone: str = "models/smollm2-135m-instruct"
    """Hugging Face directory of a language model."""
    cycles: tuple[Annotated[int, Field(ge=3, le=10)], ...] = (3, 4, 5)
    """Plain cycles of so many answers; --data takes their place."""
    tune: Literal["full", "heads"] = "full"
    """full: every weight; heads: the backbone stays as it is and reads each answer once."""
    value_head_dim: Width = 4
    """Width of the GPM's embedding. A plane could hold one cycle, but training in it often ends in ties."""
    gated: bool = False
    """A gate; with a single prompt it weighs the blocks the same way for all answers."""
    tau: Positive | None = None
    """Of the GPM; None: 0.1. The Bradley-Terry model has 1."""
    learning_rate: Positive = 1e-4
    """Of the backbone, where it is trained."""
    head_learning_rate: Positive | None = 1e-3
    """Of the heads; None: learning_rate."""
    epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)] = 50
    """Passes over the pairs; the paper's."""
    batch_pairs: Count = 4
    """Pairs a step; the answers to one prompt stay together all the same."""
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Compute type of a whole training."""
    max_length: Count = 2048
    """Longest conversation in tokens."""
    seed: Seed = 0
    """Start of the heads and order of the pairs."""
    ratings: RatingsConfig = RatingsConfig()
    """When --data holds ratings."""
