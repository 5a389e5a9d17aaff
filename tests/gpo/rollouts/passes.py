"""One pass of shards through a pool of actors that fail by the words of their prompts."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpo.errors import StageError
from gpo.rollouts.jobs import Job, Shard
from gpo.rollouts.pool import Pool, Weights
from gpo.rollouts.stream import Stream
from rollout.engine import SampleRequest, Sampling
from rollout.engine_settings import EngineSettings
from tests.gpo.rollouts.faulty_actors import FaultySampler, FaultyScorer
from tests.gpo.small_runs import run_config

SHARD = 4


class Pass:
    """One pass of shards of SHARD prompts; special texts stand at the front."""

    def __init__(self, folder: Path, texts: list[str], prompts: int = 24, pause: float = 0.0, **cluster: Any) -> None:
        self.folder, self.pause = folder, pause
        settings = {"shape": "split", "threads": 1, "wait_seconds": 30.0} | cluster
        rollout = {"samples": 2, "shard_prompts": SHARD, "engine": {"max_sequences": 8}}
        self.pool = Pool(
            run_config(folder, cluster=settings, rollout=rollout),
            EngineSettings(max_model_len=8, sleep_level=int(settings["shape"] == "colocated")),
            str(folder),
            sampler=FaultySampler,
            scorer=FaultyScorer,
            record=lambda event, **line: self.lost.append(line["process"]),
        )
        self.lost: list[str] = []
        words = [*texts, *("plain" for _ in range(prompts - len(texts)))]
        self.requests = [
            SampleRequest(f"p{number}", [{"role": "user", "content": word}], [1], 100 + number)
            for number, word in enumerate(words)
        ]
        self.given_up: list[tuple[str, str]] = []
        self.finished: list[int] = []
        self.most_waiting = 0
        self.kill_after = 0
        """Finished shards behind which the sampler is killed; 0: it is not."""

    def shards(self) -> Iterator[Shard]:
        for index, start in enumerate(range(0, len(self.requests), SHARD)):
            yield Shard(index, self.requests[start : start + SHARD], str(self.folder / f"shard-{index}.json"))

    def _finished(self, shard: Shard, sampled: int) -> None:
        self.most_waiting = max(self.most_waiting, sampled - len(self.finished))
        self.finished.append(shard.index)
        if self.kill_after == len(self.finished):
            kill(self.pool.workers("sampler")[0].actor)

    def run(self, most_poison: int = 2) -> "Pass":
        def give_up(shard: Shard, prompt: str, work: str) -> None:
            self.given_up.append((prompt, work))
            if len(self.given_up) > most_poison:
                raise StageError("too much poison")

        job = Job(
            weights=Weights(str(self.folder), None),
            sampling=Sampling(samples=2, max_tokens=1),
            finish=lambda scorer, shard: scorer.finish.remote(shard.samples(), shard.path, self.pause),
            try_one=lambda scorer, shard, rows: scorer.try_one.remote(rows),
            finished=self._finished,
            give_up=give_up,
        )
        try:
            Stream(self.pool, self.shards(), job).run()
        finally:
            self.pool.close()
        return self

    def answers(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self.folder.glob("shard-*.json"):
            found |= json.loads(path.read_text())
        return found

    def expected(self, without: tuple[str, ...] = ()) -> dict[str, list[str]]:
        return {r.prompt_id: [f"{r.seed}/0", f"{r.seed}/1"] for r in self.requests if r.prompt_id not in without}


def kill(actor: Any) -> None:
    """SIGKILL to the process of a FaultySampler."""
    import ray

    os.kill(ray.get(actor.process.remote(), timeout=30), signal.SIGKILL)
