"""The canary: do trainer and engine hold the same weights?

A few fixed texts; the trainer's log-probabilities of them against the engine's. Reloading weights can go wrong without
an error (tied heads, half updates, a stale directory); the numbers of a fixed text cannot lie.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.prompts import ChatTokenizer, Prompt, render_prompt_ids

Rows = Sequence[Sequence[float]]

FIXED_TEXTS = (
    ("What is a good way to start the day?", "Drink a glass of water, open a window and write down one thing to do."),
    ("Explain why the sky is blue.", "Sunlight scatters on the air, and blue light is scattered more than red light."),
    ("Write a line about autumn.", "Leaves drift over the quiet road, and the evenings smell of smoke and rain."),
    ("How do I thank a colleague?", "Say what she did, say what it changed for you, and say it while others listen."),
)


RESOLUTION = 1e-6
"""Nats: the spacing of float32 at log-probabilities of about -10."""


@dataclass(frozen=True, slots=True)
class Gap:
    """How far two sets of log-probabilities of the same tokens are apart, in nats a token."""

    mean: float
    largest: float

    def at_least_resolution(self) -> "Gap":
        """Never below what float32 tells apart: two exact computations differ by so much, and it means nothing."""
        return Gap(max(self.mean, RESOLUTION), max(self.largest, RESOLUTION))


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
class Movement:
    """How much of the trainer's update the engine shows."""

    share: float
    """1: all of it; 0: none, the engine holds the weights of before. Slope of the engine's change on the trainer's."""
    error: float | None
    """Standard error of the share, from the noise floor; None where the trainer's numbers did not move at all."""

    @property
    def visible(self) -> bool:
        """Whether the update is above the noise, so that the share says anything."""
        return self.error is not None and self.error <= LARGEST_ERROR

    @property
    def complete(self) -> bool:
        """Whether the engine may hold all of the update."""
        return self.error is None or abs(self.share - 1) <= max(SMALLEST_TOLERANCE, ERRORS_TOLERATED * self.error)


LARGEST_ERROR = 0.14
"""About where the update's size is that of the noise, for the fixed texts."""
ERRORS_TOLERATED = 3.5
SMALLEST_TOLERANCE = 0.25


def movement(before: Rows, now: Rows, engine: Rows, floor: Gap) -> Movement:
    """The trainer's numbers before and after an update against the engine's after it.

    One number from all tokens: noise cancels in it, so it sees a stale engine where single gaps do not.
    """
    moved = [b - a for xs, ys in zip(before, now, strict=True) for a, b in zip(xs, ys, strict=True)]
    shown = [b - a for xs, ys in zip(before, engine, strict=True) for a, b in zip(xs, ys, strict=True)]
    square = sum(value * value for value in moved)
    if square == 0:
        return Movement(share=0.0, error=None)
    # The mean of a normal variable's size is 0.8 of its standard deviation.
    return Movement(
        share=sum(a * b for a, b in zip(moved, shown, strict=True)) / square,
        error=floor.at_least_resolution().mean / 0.8 / square**0.5,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison after a publish says."""

    gap: Gap
    floor: Gap
    update: Gap
    """How far the trainer's own numbers moved since the version before."""
    movement: Movement
    accepted: bool
    below_noise: bool
    """The update is smaller than the noise: the canary cannot see it, only hash and version can."""

    def sentence(self) -> str:
        """For the log."""
        text = (
            f"canary: trainer and engine differ by {self.gap.mean:.2g} nats a token (largest {self.gap.largest:.2g}); "
            f"the noise floor is {self.floor.mean:.2g} ({self.floor.largest:.2g})"
        )
        shown = "which is below the noise" if self.below_noise else f"the engine shows {self.movement.share:.0%} of it"
        return f"{text}; the update moved them by {self.update.mean:.2g}, {shown}"


def judge(found: Gap, floor: Gap, update: Gap, moved: Movement, factor: float) -> Verdict:
    """Accept a gap of mean and maximum up to `factor` times the floor's, and an update that the engine shows in full.

    An update below the noise shows in neither: there only the marker's hash and version can tell.
    """
    noise = floor.at_least_resolution()
    close = found.mean <= factor * noise.mean and found.largest <= factor * noise.largest
    return Verdict(
        gap=found,
        floor=floor,
        update=update,
        movement=moved,
        accepted=close and (moved.complete or not moved.visible),
        below_noise=not moved.visible,
    )
