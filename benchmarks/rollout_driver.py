"""Prompts through the driver with instant engines: samples a second end to end, memory of the driver, linear time.

Everything is the run's own (pool, stream, Ray actors, object store, tables, targets, Parquet, journal) but the two
models: the sampler answers at once with fixed-length random ids, the scorer embeds at once with random vectors. The
driver holds all prompts as a run does; what they take is told on a line of its own, and the growth of its memory is
what its resident size rises above that while they go through, looked at some times a second. A tenth of the prompts and
all of them take turns, each pass in a process of its own, behind a small one that is not counted.

    python -m benchmarks.rollout_driver --prompts 1000000 --output runs/bench-driver.json
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.frame import Claim, at_least, at_most, claim_lines, over_rounds, write_report
from gpo.cluster.runtime import ray_session
from gpo.config import RunConfig
from gpo.context import RunContext
from gpo.cpu import keep_from_collections
from gpo.journal import open_run
from gpo.prompts import TokenizedPrompt
from gpo.rollouts.pool import Pool
from gpo.rollouts.scoring import ShardScorer
from gpo.rollouts.stage import generate_and_score
from gpo.training.forward_process import ForwardProcess
from reward.source import ModelSource
from rollout.engine import SampleRequest, Sampling
from rollout.engine_settings import EngineSettings
from rollout.prompts import Prompt
from rollout.records import SampledPrompt
from rollout.sampler import SampleReport, report_of

SAMPLES, ANSWER_TOKENS, WIDTH = 8, 16, 8
SECONDS_BETWEEN_LOOKS = 0.2
TEXT = "An answer of sixteen tokens, more or less, as short ones go."


class InstantSampler:
    """Answers at once; the ids differ between answers, so that Parquet cannot cheat."""

    def __init__(self, settings: EngineSettings, logs: str) -> None:
        self._random = random.Random(0)

    def load(self, model: str, version: str | None) -> str:
        """Nothing to load."""
        return "start"

    def sample(self, requests: list[SampleRequest], sampling: Sampling) -> tuple[list[SampledPrompt], SampleReport]:
        """K answers to each prompt."""
        started = time.perf_counter()
        rows = [
            SampledPrompt(
                prompt_id=request.prompt_id,
                prompt=request.prompt,
                prompt_ids=request.prompt_ids,
                seed=request.seed,
                weight_version="start",
                completion=[TEXT] * sampling.samples,
                completion_ids=[self._random.choices(range(49152), k=ANSWER_TOKENS) for _ in range(sampling.samples)],
                finish_reason=["stop"] * sampling.samples,
            )
            for request in requests
        ]
        return rows, report_of(rows, time.perf_counter() - started)


class InstantEmbedder:
    """Random unit vectors instead of a forward pass."""

    tau = 0.1

    def embed(self, conversations: list[Any]) -> Any:
        """As `PreferenceScorer.embed`."""
        from reward.scorer import Embeddings

        count = len(conversations)
        v_ND = torch.nn.functional.normalize(torch.randn(count, WIDTH), dim=-1)
        return Embeddings(v_ND, torch.full((count, WIDTH // 2), 2 / WIDTH), torch.zeros(count, dtype=torch.bool))


class InstantScorer(ShardScorer):
    """The run's own scorer around an instant model."""

    def source(self, name: str) -> Any:
        """The one source."""
        if name not in self._sources:
            self._sources[name] = ModelSource(InstantEmbedder())  # type: ignore[arg-type]
        return self._sources[name]


def resident_mib() -> float:
    """What this process holds now."""
    return float(psutil.Process().memory_info().rss) / 2**20


@contextmanager
def most_memory() -> Iterator[list[float]]:
    """A list of one number: the most MiB that this process held at any look inside."""
    most, over = [resident_mib()], threading.Event()

    def look() -> None:
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            most[0] = max(most[0], resident_mib())

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield most
    finally:
        over.set()
        watch.join()
        most[0] = max(most[0], resident_mib())


def _prompt(number: int) -> TokenizedPrompt:
    prompt = Prompt(f"{number:016x}", (("user", f"Say something about number {number}."),))
    return TokenizedPrompt(prompt, [1, 2, 3, 4, number % 49152, 6, 7, 8])


def driver_config(folder: Path, shard_prompts: int) -> RunConfig:
    """A run of a sampler and two scorers side by side: one could not keep up with a sampler that does nothing."""
    return RunConfig.model_validate(
        {
            "name": "driver",
            "iterations": 1,
            "policy": {"model": str(folder)},
            "prompts": {"train": "none"},
            "rollout": {"samples": SAMPLES, "max_tokens": ANSWER_TOKENS, "shard_prompts": shard_prompts},
            "preference": {"sources": {"it": "gpm:none"}, "train_on": "it"},
            "target": {"beta": 1.0},
            "cluster": {"shape": "split", "threads": 1, "scorers": 2},
        }
    )


def one_pass(count: int, folder: Path, shard_prompts: int) -> dict[str, Any]:
    """Generate and score `count` prompts; the start of Ray and its actors is not in the time."""
    config = driver_config(folder, shard_prompts)
    with ray_session(config, folder, "benchmark"):
        pool = Pool(
            config,
            EngineSettings(max_model_len=64),
            str(folder / "logs"),
            sampler=InstantSampler,
            scorer=InstantScorer,
        )

        def run(name: str, prompts: list[TokenizedPrompt]) -> dict[str, Any]:
            directory = open_run(folder / name, config, fresh=False, versions={}, data={})
            context = RunContext(config, directory, pool, ForwardProcess(config, str(folder / "logs")), [prompts], [])
            return generate_and_score(context, 1)

        run("warm-up", [_prompt(number) for number in range(4 * shard_prompts)])
        without_prompts = resident_mib()
        prompts = [_prompt(number) for number in range(count)]
        keep_from_collections()  # As a run does.
        before = resident_mib()
        started = time.perf_counter()
        with most_memory() as most:
            result = run("measured", prompts)
        seconds = time.perf_counter() - started
    files = list((folder / "measured/iterations/001/rollouts").iterdir())
    assert (result["prompts"], result["answers"], len(files)) == (count, count * SAMPLES, -(-count // shard_prompts))
    return {
        "prompts": count,
        "samples_a_second": round(count * SAMPLES / seconds),
        "seconds": round(seconds, 2),
        "prompts_mib": round(before - without_prompts, 1),
        "driver_growth_mib": round(most[0] - before, 1),
        "parquet_mib": round(sum(path.stat().st_size for path in files) / 2**20, 1),
    }


def pass_of(count: int, shard_prompts: int) -> dict[str, Any]:
    """One pass in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.rollout_driver", "--one-pass", "--prompts", str(count)]
    done = subprocess.run(
        [*words, "--shard-prompts", str(shard_prompts)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found


def measure(prompts: int, shard_prompts: int, rounds: int) -> dict[str, Any]:
    """A tenth and the whole in turn; medians over the rounds, the time's ratio within each."""
    pass_of(min(shard_prompts, prompts), shard_prompts)
    turns = [[pass_of(count, shard_prompts) for count in (prompts // 10, prompts)] for _ in range(rounds)]
    return {
        "prompts": prompts,
        "passes": turns,
        "samples_a_second": over_rounds([whole["samples_a_second"] for _, whole in turns]),
        "driver_growth_mib": over_rounds([whole["driver_growth_mib"] for _, whole in turns]),
        "time_of_the_whole_to_ten_tenths": over_rounds(
            [whole["seconds"] / (10 * tenth["seconds"]) for tenth, whole in turns]
        ),
    }


def claims_of(found: dict[str, Any]) -> list[Claim]:
    """What the driver promises of a million prompts."""
    speed, growth, line = (
        found[name] for name in ("samples_a_second", "driver_growth_mib", "time_of_the_whole_to_ten_tenths")
    )
    what = f"driver: samples a second, {found['prompts']:,} prompts"
    return [
        at_least(what, speed["median"], 20_000, speed["spread"]),
        at_most("driver: growth of its memory, MiB", growth["median"], 200, growth["spread"]),
        at_most("driver: time of the whole / ten times that of a tenth", line["median"], 1.1, line["spread"]),
    ]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    # With the default of 32 a million prompts would be 31,250 files, and their opening and flushing most of the time.
    parser.add_argument("--shard-prompts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/bench-driver.json"))
    parser.add_argument("--one-pass", action="store_true", help="this many prompts, in this process")
    options = parser.parse_args()
    if options.one_pass:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(one_pass(options.prompts, Path(folder), options.shard_prompts)))
        return
    found = measure(options.prompts, options.shard_prompts, options.rounds)
    print(f"the prompts themselves: {found['passes'][-1][1]['prompts_mib']} MiB")
    print("\n".join(claim_lines(claims_of(found))))
    write_report(found, claims_of(found), options.output)


if __name__ == "__main__":
    main()
