"""The run that proofs kill and disturb: its settings, its stages, and when each of its processes is there in them.

`generate` lasts: an engine that holds three answers at a time writes eight shards of a prompt each, and samplers and
scorers take turns after every second one. With the settings of other tests it is over before anybody can be killed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from tests.cluster.workplace import FORWARD, LEARNER, SAMPLER, SCORER
from tests.e2e.tiny_run import command, journal
from tests.proof.outcome import EQUAL_TOKENS, SECONDS

SETTINGS = (
    "baseline.kind=previous", "baseline.samples=1", "prompts.per_iteration=8", EQUAL_TOKENS,
    "rollout.shard_prompts=1", "rollout.max_tokens=96", "rollout.engine.max_sequences=3", "cluster.waiting_shards=2",
)  # fmt: skip
START = "start"
TITLES = {"sampler": SAMPLER, "scorer": SCORER, "learner": LEARNER, "forward": FORWARD}
"""What the titles of those processes have in them."""
MUST_MEET = {
    "sampler": ("generate",),
    "scorer": ("generate",),
    "learner": ("train",),
    "forward": ("canary",),
    "driver": ("generate", "publish"),
    "node": ("generate",),
}
"""Victim -> stages without which a matrix of kills proves too little of it."""
SHORTEST_SECONDS = 0.2
"""A look takes some hundredths of a second."""
SHORTEST_OF_DRIVER = 0.03
"""It need not be looked for, and a publish takes less than a tenth of a second."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A config, and how many iterations its runs have: the stages of the second are those of the first, once more."""

    config: Path
    iterations: int

    @property
    def last_stage(self) -> str:
        """Behind it a run only says that it is done."""
        return f"evaluate {self.iterations}"

    def command(self, out: Path, *overrides: str) -> list[str]:
        """Of a run in `out`."""
        return command(self.config, out, f"iterations={self.iterations}", *SETTINGS, *overrides)


@dataclass(frozen=True, slots=True)
class Window:
    """When a victim is there in a stage, in seconds since that began; START began with the command."""

    stage: str
    first: float
    last: float


@dataclass(slots=True)
class Windows:
    """Of every victim: the windows, those that must be met first, and the seconds of those that are too short."""

    met: dict[str, list[Window]] = field(default_factory=dict)
    left_out: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, victim: str, window: Window, shortest: float) -> None:
        """The next one in the order of the run."""
        seconds = window.last - window.first
        if seconds < shortest:
            self.left_out.setdefault(victim, {})[window.stage] = round(seconds, 3)
            return
        found = self.met.setdefault(victim, [])
        found.append(window)
        found.sort(key=lambda one: kind_of(one.stage) not in MUST_MEET[victim])

    def line(self, victims: list[str]) -> dict[str, Any]:
        """What the log keeps of them."""
        met = {
            victim: {one.stage: [round(one.first, 2), round(one.last, 2)] for one in self.met.get(victim, [])}
            for victim in victims
        }
        return {"windows": met, "left_out": {victim: self.left_out.get(victim, {}) for victim in victims}}

    def lacking(self, victims: list[str]) -> list[str]:
        """Which victims cannot be met in which of the stages that they must be met in."""
        return [
            f"{victim} in {stage}"
            for victim in victims
            for stage in MUST_MEET[victim]
            if stage not in {kind_of(one.stage) for one in self.met.get(victim, [])}
        ]

    def shared_out(self, victim: str, moments: int) -> list[tuple[Window, int]]:
        """So many moments over the victim's windows in turn: each window with a number of its own."""
        found = self.met[victim]
        return [(found[moment % len(found)], moment // len(found)) for moment in range(moments)]


def kind_of(stage: str) -> str:
    """Its name without the iteration."""
    return stage.split()[0]


def times_of(out: Path, event: str) -> dict[str, float]:
    """Stages that have begun (`begin`) or ended (`stage`), as `name iteration`, with the wall time, in their order."""
    return {f"{line['stage']} {line['iteration']}": line["time"] for line in journal(out) if line["event"] == event}


def over(stage: str, out: Path) -> bool:
    """Whether the journal has the end of the stage."""
    return bool(times_of(out, "begin")) if stage == START else stage in times_of(out, "stage")


def windows_of(process: "Popen[Any]", out: Path, there: Callable[[str], set[str]]) -> Windows:
    """Watch an undisturbed run to its end; `there` tells which victims are there in a stage at the moment.

    The driver is there all the time, so its windows are the stages themselves.
    """
    started, looks = time.time(), dict[tuple[str, str], list[float]]()
    while process.poll() is None and time.time() - started < SECONDS:
        stage, begun = list({START: started, **times_of(out, "begin")}.items())[-1]
        moment = time.time() - begun
        for victim in there(stage):
            looks.setdefault((victim, stage), []).append(moment)
        time.sleep(0.02)
    assert process.wait(SECONDS) == 0, "the undisturbed run"
    begun_at, ended_at = times_of(out, "begin"), times_of(out, "stage")
    found = Windows()
    found.add("driver", Window(START, 0.0, min(begun_at.values()) - started), SHORTEST_OF_DRIVER)
    for stage, begun in begun_at.items():
        found.add("driver", Window(stage, 0.0, ended_at[stage] - begun), SHORTEST_OF_DRIVER)
    for victim in dict.fromkeys(victim for victim, _ in looks):
        for stage in (START, *begun_at):
            # One that must be met is told as too short where no look fell into it.
            unseen = [0.0] if kind_of(stage) in MUST_MEET[victim] else []
            if moments := looks.get((victim, stage), unseen):
                found.add(victim, Window(stage, min(moments), max(moments)), SHORTEST_SECONDS)
    return found
