"""What the rollout benchmark measures with: the run's own pool, and ways to call its parts alone."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.frame import measured_dtype
from gpo.cluster.runtime import ray_session
from gpo.config import RunConfig
from gpo.rollouts.jobs import Job, Shard
from gpo.rollouts.logged_sampler import LoggedSampler
from gpo.rollouts.pool import Pool, Weights
from gpo.rollouts.stream import Stream
from rollout.engine import SampleRequest, Sampling
from rollout.engine_settings import EngineSettings

SHORT = ("Reply with one word: what colour is {}?", "Answer yes or no: is {} useful?")
LONG = ("Write a long story about {}.", "Explain in detail where {} comes from, step by step.")
TOPICS = ("bread", "rain", "chess", "trains", "honey", "paper", "clocks", "rivers", "salt", "wool", "glass", "maps")
CHEAP = '"""Equal."""\n\n\ndef prefer(messages, a, b):\n    return 0.0\n'


class BenchSampler(LoggedSampler):
    """The run's sampler, whose engine may also be called directly."""

    async def direct(self, requests: list[SampleRequest], sampling: Sampling) -> int:
        """Plain `LLM.generate` on everything at once; returns the number of tokens."""
        from vllm import SamplingParams, TokensPrompt

        parameters = [
            SamplingParams(
                n=sampling.samples, temperature=sampling.temperature, max_tokens=sampling.max_tokens, seed=request.seed
            )
            for request in requests
        ]
        prompts = [TokensPrompt(prompt_token_ids=request.prompt_ids) for request in requests]
        outputs = self._loaded()._llm.generate(prompts, parameters, use_tqdm=False)
        return sum(len(answer.token_ids) for output in outputs for answer in output.outputs)

    async def forget_prefixes(self) -> None:
        """So that no round finds the prompts of the one before in its cache."""
        self._loaded()._llm.reset_prefix_cache()


class Bench:
    """Ray, a pool with one sampler and one scorer, and the weights loaded."""

    def __init__(self, config: RunConfig, model: Path, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._weights = Weights(str(model), None)
        rollout = config.rollout
        self._sampling = Sampling(samples=rollout.samples, max_tokens=rollout.max_tokens)
        self._passes = 0

    def __enter__(self) -> "Bench":
        self._ray = ray_session(self._config, self._folder, "benchmark")
        self._ray.__enter__()
        settings = EngineSettings(
            max_model_len=256,
            dtype=measured_dtype("auto"),
            threads=self._config.cluster.threads,
            max_sequences=self._config.rollout.engine.max_sequences,
        )
        self._pool = Pool(self._config, settings, str(self._folder / "logs"), sampler=BenchSampler)
        self._sampler = self._pool.samplers(self._weights)[0]
        self._pool.scorers()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ray.__exit__(*error)

    def direct(self, requests: list[SampleRequest]) -> float:
        """Tokens a second of the engine alone, all prompts at once."""
        import ray

        ray.get(self._sampler.forget_prefixes.remote())
        started = time.perf_counter()
        tokens: int = ray.get(self._sampler.direct.remote(requests, self._sampling))
        return tokens / (time.perf_counter() - started)

    def through_the_pool(self, requests: list[SampleRequest]) -> float:
        """Tokens a second from the first prompt handed out to the last shard's file."""
        tokens = 0

        def finished(shard: Shard, summary: Any) -> None:
            nonlocal tokens
            tokens += summary.tokens

        seconds = self._stream(self._shards(requests), finished)
        return tokens / seconds

    def both(self, requests: list[SampleRequest]) -> float:
        """Seconds to sample and score."""
        return self._stream(self._shards(requests), lambda shard, summary: None)

    def answers(self, parts: list[list[SampleRequest]]) -> dict[str, list[list[int]]]:
        """Token ids of the answers to each prompt, one part after the other."""
        import ray

        found = {}
        for part in parts:
            ray.get(self._sampler.forget_prefixes.remote())
            rows, _ = ray.get(self._sampler.sample.remote(part, self._sampling))
            found.update({row.prompt_id: row.completion_ids for row in rows})
        return found

    def sample_alone(self, requests: list[SampleRequest]) -> tuple[float, list[Any]]:
        """Seconds to sample all shards with nothing else at work, and the samples."""
        import ray

        ray.get(self._sampler.forget_prefixes.remote())
        started = time.perf_counter()
        pairs = [
            self._sampler.sample.options(num_returns=2).remote(shard.requests, self._sampling)
            for shard in self._shards(requests)
        ]
        ray.get([report for _, report in pairs])
        return time.perf_counter() - started, [rows for rows, _ in pairs]

    def score_alone(self, rows: list[Any]) -> float:
        """Seconds to score and write them with nothing else at work."""
        import ray

        self._passes += 1
        scorer = self._pool.scorers()[0]
        started = time.perf_counter()
        ray.get([scorer.score_shard.remote(part, str(self._path(index)), []) for index, part in enumerate(rows)])
        return time.perf_counter() - started

    def _path(self, index: int) -> Path:
        return self._folder / "shards" / str(self._passes) / f"shard-{index:05d}.parquet"

    def _shards(self, requests: list[SampleRequest]) -> Iterator[Shard]:
        size = self._config.rollout.shard_prompts
        for index, start in enumerate(range(0, len(requests), size)):
            yield Shard(index, requests[start : start + size], str(self._path(index)))

    def _stream(self, shards: Iterator[Shard], finished: Any) -> float:
        import ray

        self._passes += 1
        ray.get(self._sampler.forget_prefixes.remote())
        job = Job(
            weights=self._weights,
            sampling=self._sampling,
            finish=lambda scorer, shard: scorer.score_shard.remote(shard.samples(), shard.path, []),
            try_one=lambda scorer, shard, rows: scorer.try_to_score.remote(rows, []),
            finished=finished,
            give_up=lambda shard, prompt, work: None,
        )
        started = time.perf_counter()
        Stream(self._pool, shards, job).run()
        return time.perf_counter() - started


def bench_config(
    model: Path,
    folder: Path,
    *,
    samples: int,
    max_tokens: int,
    shape: str,
    threads: int,
    source: str = "",
    sequences: int = 128,
    shard_prompts: int = 8,
) -> RunConfig:
    """A run's config; without a source all answers are equal, which costs nothing to find out.

    The engine holds so many `sequences` at a time.
    """
    taste = folder / "equal.py"
    taste.write_text(CHEAP)
    return RunConfig.model_validate(
        {
            "name": "bench",
            "policy": {"model": str(model)},
            "prompts": {"train": "none"},
            "rollout": {
                "samples": samples,
                "max_tokens": max_tokens,
                "shard_prompts": shard_prompts,
                "engine": {"max_sequences": sequences},
            },
            "preference": {"sources": {"it": source or f"python:{taste}:prefer"}, "train_on": "it"},
            "target": {"beta": 1.0},
            "cluster": {"shape": shape, "threads": threads},
        }
    )


def requests_for(model: Path, count: int) -> list[SampleRequest]:
    """Prompts whose answers are short and long in turn."""
    from transformers import AutoTokenizer

    from rollout.prompts import Prompt, render_prompt_ids
    from rollout.seeds import request_seed

    tokenizer = AutoTokenizer.from_pretrained(model)
    found = []
    for number in range(count):
        form = (SHORT + LONG)[number % 4]
        text = form.format(TOPICS[number // 4 % len(TOPICS)]) + ("" if number < 48 else f" ({number})")
        prompt = Prompt(f"{number:04d}", (("user", text),))
        ids = render_prompt_ids(tokenizer, prompt)
        found.append(SampleRequest(prompt.prompt_id, prompt.as_messages(), ids, request_seed(0, 1, prompt.prompt_id)))
    return found


def write_gpm(model: Path, target: Path) -> Path:
    """A preference model of the policy's own size, with random heads: scoring costs the same."""
    from transformers import AutoTokenizer

    from reward import GeneralPreferenceModel
    from reward.settings import RewardSettings

    made = GeneralPreferenceModel.from_backbone(model, RewardSettings.published(4, True), seed=3)
    made.save_pretrained(target, AutoTokenizer.from_pretrained(model))
    return target
