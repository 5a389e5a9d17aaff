"""Who says what is better, and what follows from it for the policy."""

from typing import Literal

from pydantic import model_validator

from gpo.config.types import Count, Positive
from gpo.settings import Settings

Method = Literal["gpo", "sppo", "gpo-reference", "sppo-reference"]


class PreferenceConfig(Settings):
    """Who says what is better."""

    sources: dict[str, str]
    """Name -> `gpm:DIR` (GPM or Bradley-Terry model), `python:FILE.py:FUNCTION` or `url:http://…` (docs/rollout.md)."""
    train_on: str
    """Name of the source that fills the table the policy is trained on."""
    judges: list[str] = []
    """Names of the sources that judge held-out answers; empty: the one trained on."""
    max_length: Count = 2048
    """Longest conversation in tokens that an embedding model reads."""
    batch_tokens: Count = 8192
    """Tokens a scoring batch, padding not counted (placement)."""

    @model_validator(mode="after")
    def _names_are_known(self) -> "PreferenceConfig":
        for name in [self.train_on, *self.judges]:
            if name not in self.sources:
                raise ValueError(f"{name!r} is not among preference.sources ({', '.join(self.sources) or 'empty'})")
        for name, spec in self.sources.items():
            kind, _, rest = spec.partition(":")
            if kind not in ("gpm", "python", "url") or not rest:
                raise ValueError(
                    f"preference.sources.{name} = {spec!r}: expected gpm:DIR, python:FILE.py:FUNCTION or url:http://…"
                )
        return self

    def judge_names(self) -> list[str]:
        """In the order of `judges`; without any, the source that is trained on."""
        return list(dict.fromkeys(self.judges)) or [self.train_on]


class TargetConfig(Settings):
    """From a score table to the wanted log-ratio in nats."""

    method: Method = "gpo"
    """gpo: mean score/tau/beta; sppo: (mean probability - 1/2)/beta; `-reference`: as the published code."""
    beta: Positive
    """Strength of the pull to the sampling policy. No default: it sets the scale of everything."""
    tau: Positive | None = None
    """Temperature of the preference; None: the one saved with the model, 0.1 for a function or a URL."""
    clamp: Positive | None = None
    """Targets are cut to +-clamp nats, behind `train.standardise`."""
    exclude_self: bool = False
    """Leave an answer's comparison with itself out of its mean; only rescales beta by K/(K-1)."""
    log_z: Literal["zero", "mean", "logmeanexp"] | None = None
    """What stands for log Z. None: zero (the paper's) for the baseline self, the mean over the samples for others."""
    largest_nats: Positive = 50.0
    """A run whose targets exceed this is refused (the `-reference` recipes need 1000); not where they are scaled by
    `train.standardise`."""

    def log_z_for(self, baseline_kind: str) -> Literal["zero", "mean", "logmeanexp"]:
        """The log Z that is used: only a skew table has targets that average to 0 by themselves."""
        if self.log_z is not None:
            return self.log_z
        return "zero" if baseline_kind == "self" or self.method.endswith("-reference") else "mean"
