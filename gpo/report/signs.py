"""The reward-hacking watch: what to look at when a win rate rises for the wrong reason. Plain values in and out.

A sign is a number with the limit beyond which a person should read samples. It is a hint, not a verdict.
"""

from dataclasses import dataclass
from typing import Any

LENGTH_RATIO = 1.5
LENGTH_CORRELATION = 0.5
CUT_SHARE = 0.25
TWIN_SHARE = 0.2
JUDGE_GAP = 0.1
KL_NATS = 30.0


@dataclass(frozen=True, slots=True)
class Sign:
    """One number of an iteration, and whether it is beyond its limit.

    What the run itself warned of is a sentence with its numbers in it: a name without value and limit.
    """

    iteration: int
    name: str
    value: str
    limit: str
    beyond: bool

    def sentence(self) -> str:
        """All of it on one line."""
        return f"{self.name}: {self.value} (without remark: {self.limit})" if self.limit else self.name


def watch(story: dict[str, Any]) -> list[Sign]:
    """The signs of the newest iteration there is something to say of."""
    signs: list[Sign] = []
    rollouts, evaluations = story["rollouts"]["iterations"], story["evaluations"]
    if rollouts:
        signs += _of_rollouts(rollouts[0], rollouts[-1])
    if evaluations:
        signs += _of_evaluation(evaluations[-1], story["run"]["trained_on"])
    return signs


def _of_rollouts(first: dict[str, Any], last: dict[str, Any]) -> list[Sign]:
    number = last["iteration"]
    ratio = last["length_tokens"] / max(first["length_tokens"], 1e-9)
    signs = [
        Sign(
            number,
            "length of training answers against iteration 1",
            f"{ratio:.2f} times",
            f"{1 / LENGTH_RATIO:.2f} to {LENGTH_RATIO:.2f} times",
            not 1 / LENGTH_RATIO <= ratio <= LENGTH_RATIO,
        ),
        Sign(
            number,
            "answers cut at the token limit",
            f"{last['cut_share']:.0%}",
            f"up to {CUT_SHARE:.0%}",
            last["cut_share"] > CUT_SHARE,
        ),
        Sign(
            number,
            "answers that stand twice among a prompt's K, word for word",
            f"{last['twin_share']:.0%}",
            f"up to {TWIN_SHARE:.0%}",
            last["twin_share"] > TWIN_SHARE,
        ),
    ]
    correlation = last["length_score_correlation"]
    if correlation is not None:
        name = "correlation of length and score within a prompt"
        limit = f"-{LENGTH_CORRELATION} to {LENGTH_CORRELATION}"
        signs.append(Sign(number, name, f"{correlation:+.2f}", limit, abs(correlation) > LENGTH_CORRELATION))
    return signs


def _of_evaluation(evaluation: dict[str, Any], trained_on: str | None) -> list[Sign]:
    number, judges = evaluation["iteration"], evaluation["judges"]
    kl = evaluation["kl_nats_per_answer"]
    signs = [Sign(number, "KL from the start, an answer", f"{kl:.1f} nats", f"up to {KL_NATS:.0f} nats", kl > KL_NATS)]
    others = [judge for judge in judges if judge != trained_on]
    if trained_on in judges and others:
        own = judges[trained_on]["vs_start"]["win_rate"]
        for other in others:
            gap = own - judges[other]["vs_start"]["win_rate"]
            name = f"win rate by {trained_on}, which is trained on, minus that by {other}"
            signs.append(
                Sign(number, name, f"{100 * gap:+.1f} points", f"up to {100 * JUDGE_GAP:.0f} points", gap > JUDGE_GAP)
            )
    # The run looks at more than stands here: length control, and judges that part ways over iterations.
    told = [*evaluation.get("warnings", []), evaluation.get("watch_off")]
    return signs + [Sign(number, text, "", "", True) for text in told if text is not None]
