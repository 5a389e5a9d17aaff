"""Against whose answers the policy's own answers are scored."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpo.config.types import Count
from gpo.settings import Settings

BaselineKind = Literal["self", "initial", "previous", "answers", "optimistic"]
DRAWN = ("initial", "previous", "optimistic")
"""Kinds that need answers of older policies to an iteration's prompts."""


class BaselineConfig(Settings):
    """A sample's score is its mean preference over these answers."""

    kind: BaselineKind = "self"
    """self: the K samples themselves (the paper); initial: the starting policy; previous: past policies; answers: those
    of the data set; optimistic: twice self minus previous, whose last policy converges on cyclic games."""
    samples: Count | None = None
    """Answers a prompt from each older policy. None: as many as rollout.samples."""
    past: Literal["last", "all"] = "last"
    """For previous and optimistic: the policy before the sampling one, or a mixture over all of them."""
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """In a mixture: weight of a policy relative to the one after it; 1 weighs all alike."""
    column: str = "auto"
    """For answers: the column that holds them; auto tries the known names and the last turn of `messages`."""

    @model_validator(mode="after")
    def _only_what_the_kind_reads(self) -> "BaselineConfig":
        if self.samples is not None and self.kind not in DRAWN:
            raise ValueError(f"samples = {self.samples} says nothing with kind = {self.kind!r}; leave it out")
        if self.past != "last" and self.kind not in ("previous", "optimistic"):
            raise ValueError(f"past = {self.past!r} says nothing with kind = {self.kind!r}; leave it out")
        if self.decay != 1 and self.past != "all":
            raise ValueError(f"decay = {self.decay:g} needs past = 'all'; set it, or leave decay out")
        if self.column != "auto" and self.kind != "answers":
            raise ValueError(f"column = {self.column!r} says nothing with kind = {self.kind!r}; leave it out")
        return self
