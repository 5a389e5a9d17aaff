"""The conventions of one reward model: what its head is and how conversations become token rows.
What it is: a frozen record that travels with a checkpoint as the key `gpo_reward` of its config.json.
Checkpoints without that key follow the published conventions. What it is not: it holds no tensors, and
neither a device nor a batch size: those may change between two uses of one checkpoint, these may not.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reward.errors import RewardInputError

CONFIG_KEY = "gpo_reward"

_CHOICES = {
    "head": ("gpm", "bt"),
    "bos_policy": ("reference", "single", "none"),
    "eos_policy": ("overwrite", "append"),
    "truncation": ("right", "prompt"),
    "gate_prompt": ("first_message", "all_but_last"),
}
# What a user may change on a trained checkpoint; the other fields are facts of its tensors.
POLICIES = ("bos_policy", "eos_policy", "truncation", "gate_prompt", "l2_normalize", "tau")


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """Use `published` or `from_config` rather than the constructor: they know the defaults of each head."""

    head: Literal["gpm", "bt"]
    """gpm: an embedding of even width; bt: one Bradley-Terry reward."""
    value_head_dim: int
    """D, the rows of the value head."""
    gated: bool
    """Whether a prompt head weighs the L = D / 2 blocks."""
    l2_normalize: bool
    """Embeddings are brought to length 1."""
    tau: float
    """Score units a log-odd: P = sigmoid(score / tau)."""
    bos_policy: Literal["reference", "single", "none"] = "reference"
    """reference: as template and tokenizer give it (often two); single: a leading run becomes one; none: none, and the
    mark of the first turn goes too where that is BOS, as SmolLM2's is."""
    eos_policy: Literal["overwrite", "append"] = "overwrite"
    """overwrite: the last kept id becomes EOS; append: EOS is added unless it is there already."""
    truncation: Literal["right", "prompt"] = "right"
    """right: keep the first ids; prompt: drop the oldest prompt ids so that the answer stays whole."""
    gate_prompt: Literal["first_message", "all_but_last"] = "first_message"
    """The messages at whose end the gate is read."""

    def __post_init__(self) -> None:
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise RewardInputError(f"{field} is {getattr(self, field)!r}, expected one of: {', '.join(allowed)}")
        self._check_head()
        for field in ("l2_normalize", "gated"):
            if not isinstance(getattr(self, field), bool):
                raise RewardInputError(f"{field} is {getattr(self, field)!r}, expected true or false")
        number = isinstance(self.tau, int | float) and not isinstance(self.tau, bool)
        if not (number and self.tau > 0 and math.isfinite(self.tau)):
            raise RewardInputError(f"tau is {self.tau!r}, expected a finite number above 0")

    def _check_head(self) -> None:
        width = self.value_head_dim
        if not isinstance(width, int) or width < 1 or (width > 1 and width % 2):
            raise RewardInputError(f"value_head_dim is {width!r}, expected an even number, or 1 for Bradley-Terry")
        if (self.head == "bt") != (width == 1):
            raise RewardInputError(f"head {self.head!r} with value_head_dim {width}: width 1 is bt, all others are gpm")
        if self.head == "bt" and (self.gated or self.l2_normalize):
            raise RewardInputError(
                "a Bradley-Terry reward has neither gate nor normalisation (of length 1 it would be +-1); "
                "set gated and l2_normalize to false"
            )

    @classmethod
    def published(cls, value_head_dim: int, gated: bool = False, **changes: Any) -> "RewardSettings":
        """The published conventions for a head of this width, with `changes` to single fields."""
        bradley_terry = value_head_dim == 1
        values: dict[str, Any] = {
            "head": "bt" if bradley_terry else "gpm",
            "value_head_dim": value_head_dim,
            "gated": gated,
            "l2_normalize": not bradley_terry,
            "tau": 1.0 if bradley_terry else 0.1,
        }
        _refuse_unknown(changes, [field.name for field in dataclasses.fields(cls)], "setting")
        return cls(**{**values, **changes})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], value_head_dim: int, gated: bool) -> "RewardSettings":
        """From the tensors' shapes, then config.json, then the published conventions.

        Raises RewardInputError where the two disagree, and for settings that cannot be.
        """
        saved = config.get(CONFIG_KEY) or {}
        if not isinstance(saved, Mapping):
            raise RewardInputError(f"config.json says {CONFIG_KEY} = {saved!r:.60}, expected an object of settings")
        facts = {"value_head_dim": value_head_dim, "gated": gated}
        for field, found in facts.items():
            if saved.get(field, found) != found:
                raise RewardInputError(
                    f"config.json says {CONFIG_KEY}.{field} = {saved[field]!r}, the head tensors say "
                    f"{found!r}; one of the two files belongs to another checkpoint: copy the directory again"
                )
        return cls.published(value_head_dim, gated, **{k: v for k, v in saved.items() if k not in facts})

    def with_policies(self, **policies: Any) -> "RewardSettings":
        """These settings with single policies overridden by the user."""
        _refuse_unknown(policies, list(POLICIES), "policy")
        return dataclasses.replace(self, **policies)

    def to_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def card_differences(self) -> tuple[str, ...]:
        """Settings the code printed on the model card does not follow: it would compute other embeddings."""
        card = {"head": "gpm", "l2_normalize": True, "bos_policy": "reference", "eos_policy": "overwrite"}
        card |= {"truncation": "right", "gate_prompt": "first_message"}
        names = [name for name, value in card.items() if getattr(self, name) != value]
        # Without a gate the place where it would be read makes no difference.
        return tuple(name for name in names if self.gated or name != "gate_prompt")

    @property
    def card_compatible(self) -> bool:
        return not self.card_differences

    @property
    def described(self) -> str:
        """In words, whether the model card's code computes the same."""
        return f"not card-compatible: {', '.join(self.card_differences)}" if self.card_differences else "as published"


def saved_settings(directory: Path) -> RewardSettings:
    """Those of a checkpoint that was saved here."""
    return RewardSettings(**json.loads((directory / "config.json").read_text("utf-8"))[CONFIG_KEY])


def given_policies(asked: Any) -> dict[str, Any]:
    """Those of POLICIES that the settings of a training give: the fields of that name that are not None."""
    return {name: getattr(asked, name) for name in POLICIES if getattr(asked, name) is not None}


def _refuse_unknown(given: Mapping[str, Any], known: list[str], what: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise RewardInputError(f"unknown {what} {', '.join(unknown)}; expected some of: {', '.join(known)}")
