"""The canary: do trainer and engine hold the same weights?

A few fixed texts; the trainer's log-probabilities of them against the engine's. Reloading weights can go wrong without
an error (tied heads, half updates, a stale directory); the numbers of a fixed text cannot lie.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.prompts import ChatTokenizer, Prompt, render_prompt_ids

FIXED_TEXTS = (
    ("What is a good way to start the day?", "Drink a glass of water, open a window and write down one thing to do."),
    ("Explain why the sky is blue.", "Sunlight scatters on the air, and blue light is scattered more than red light."),
    ("Write a line about autumn.", "Leaves drift over the quiet road, and the evenings smell of smoke and rain."),
    ("How do I thank a colleague?", "Say what she did, say what it changed for you, and say it while others listen."),
)


@dataclass(frozen=True, slots=True)
class Gap:
    """How far two sets of log-probabilities of the same tokens are apart, in nats a token."""

    mean: float
    largest: float


def canary_rows(tokenizer: ChatTokenizer) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) of the fixed texts under this tokenizer and template."""
    rows = []
    for question, answer in FIXED_TEXTS:
        prompt = Prompt(prompt_id="canary", messages=(("user", question),))
        encode = getattr(tokenizer, "encode")  # noqa: B009 - not part of what prompts need of a tokenizer
        rows.append((render_prompt_ids(tokenizer, prompt), list(encode(answer, add_special_tokens=False))))
    return rows


def gap(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Gap:
    """Mean and largest absolute difference; raises ValueError when the shapes differ or a number is not finite."""
    differences = [abs(a - b) for xs, ys in zip(ours, theirs, strict=True) for a, b in zip(xs, ys, strict=True)]
    if not all(value < float("inf") for value in differences):
        raise ValueError("a log-probability of the canary is not a finite number: the weights are broken")
    return Gap(mean=sum(differences) / len(differences), largest=max(differences))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison after a publish says."""

    gap: Gap
    floor: Gap
    update: Gap | None
    """How far the trainer's own numbers moved since the version before; None at the start."""
    accepted: bool
    below_noise: bool
    """The update is smaller than the noise: the canary cannot see it, only hash and version can."""

    def sentence(self) -> str:
        """For the log."""
        text = (
            f"canary: trainer and engine differ by {self.gap.mean:.4f} nats a token (largest {self.gap.largest:.3f}); "
            f"the noise floor is {self.floor.mean:.4f} ({self.floor.largest:.3f})"
        )
        if self.update is not None:
            text += f"; the update moved them by {self.update.mean:.4f}"
            text += ", which is below the noise" if self.below_noise else ""
        return text


def judge(found: Gap, floor: Gap, update: Gap | None, factor: float) -> Verdict:
    """Accept a gap of mean and maximum up to `factor` times the floor's."""
    accepted = found.mean <= factor * floor.mean and found.largest <= factor * floor.largest
    below = update is not None and update.mean <= floor.mean
    return Verdict(gap=found, floor=floor, update=update, accepted=accepted, below_noise=below)
