"""How long an iteration takes, from rates that a run has measured. No torch, no Ray.

seconds = generate + train + publish + evaluate, where (n: of this config, r: of the run that was measured)

  sample    answers_n · tokens_n / (tokens a second of one sampler) / samplers
  score     answers_n · (scoring seconds an answer) · (length_n / length_r) / scorers
  generate  sample + score in `colocated`, the longer of the two in `split`; plus what the stage took beside them
  train     start_r + steps' seconds_r · (answers_n · length_n · epochs_n) / (answers_r · length_r · epochs_r) ·
            workers_r / workers_n
  publish   as measured
  evaluate  evaluate_r · held-out answers_n / held-out answers_r (each iteration is judged against all before: the mean)

length: mean tokens of an answer; a config cannot know it and takes the measured one, at most rollout.max_tokens.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpo.config import RunConfig
from gpo.errors import UserError
from gpo.files import read_json_lines
from gpo.journal import read_config_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of one process each, as a run measured them (or as given)."""

    sampled_tokens_a_second: float
    scored_answers_a_second: float
    trained_tokens_a_second: float
    """Answer tokens, one pass, one learner."""
    answer_tokens: float
    """Mean length of an answer."""
    generate_overhead_seconds: float = 0.0
    train_start_seconds: float = 0.0
    publish_seconds: float = 0.0
    evaluate_seconds_an_answer: float = 0.0


@dataclass(frozen=True, slots=True)
class IterationTime:
    """Seconds of the parts of an iteration."""

    sample: float
    score: float
    generate: float
    train: float
    publish: float
    evaluate: float

    @property
    def total(self) -> float:
        """Of the four stages."""
        return self.generate + self.train + self.publish + self.evaluate


def measured_rates(run: Path) -> Rates:
    """Rates of a run directory's last iteration that was finished in one go; raises UserError where there is none."""
    config = RunConfig.model_validate(read_config_of(run))
    journal = read_json_lines(run / "journal.jsonl")
    finished = sorted({line["iteration"] for line in journal if _is_stage(line, "evaluate")}, reverse=True)
    timed = [number for number in finished if _is_timed(journal, number)]
    if not timed:
        why = "every one was interrupted and lacks timings" if finished else "none is finished"
        raise UserError(f"--rates {run}: no iteration of this run has rates, {why}; let it finish one, or give another")
    stages = _stages(journal, timed[0])
    shards = _lines(journal, timed[0], "shard")
    generate, train = stages["generate"], stages["train"]
    answers, length = generate["answers"], generate["mean_length_tokens"]
    sampling = sum(line["sample_seconds"] for line in shards)
    scoring = sum(line["score_seconds"] for line in shards)
    busy = _together(config, sampling / config.cluster.samplers, scoring / config.cluster.scorers)
    passes = config.train.epochs / config.train.workers
    return Rates(
        sampled_tokens_a_second=answers * length / sampling,
        scored_answers_a_second=answers / scoring,
        trained_tokens_a_second=answers * length * passes / train["train_seconds"],
        answer_tokens=length,
        generate_overhead_seconds=max(0.0, generate["seconds"] - busy),
        train_start_seconds=max(0.0, train["seconds"] - train["train_seconds"]),
        publish_seconds=stages["publish"]["seconds"],
        evaluate_seconds_an_answer=stages["evaluate"]["seconds"] / _heldout_answers(config),
    )


def _lines(journal: list[dict[str, Any]], iteration: int, event: str) -> list[dict[str, Any]]:
    return [line for line in journal if line.get("event") == event and line.get("iteration") == iteration]


def _stages(journal: list[dict[str, Any]], iteration: int) -> dict[str, dict[str, Any]]:
    """Each stage's line, the last one that tells of it."""
    return {line["stage"]: line for line in _lines(journal, iteration, "stage")}


def _is_timed(journal: list[dict[str, Any]], iteration: int) -> bool:
    """Every stage was begun once, so its seconds are all there; every shard has been seen to be made."""
    shards = _lines(journal, iteration, "shard")
    begun = [line["stage"] for line in _lines(journal, iteration, "begin")]
    return (
        len(begun) == len(set(begun))
        and sum(line.get("sample_seconds", 0.0) for line in shards) > 0
        and sum(line.get("score_seconds", 0.0) for line in shards) > 0
        and all("sample_seconds" in line for line in shards)
        and "train_seconds" in _stages(journal, iteration).get("train", {})
    )


def _together(config: RunConfig, sample: float, score: float) -> float:
    return sample + score if config.cluster.shape == "colocated" else max(sample, score)


def _is_stage(line: dict[str, Any], stage: str) -> bool:
    return line.get("event") == "stage" and line.get("stage") == stage and line.get("iteration", 0) > 0


def _heldout_answers(config: RunConfig) -> int:
    return config.prompts.heldout_count * config.evaluation.samples


def given_rates(words: list[str]) -> dict[str, float]:
    """`name=number` words as fields of Rates; raises UserError for others."""
    known = Rates.__dataclass_fields__
    found: dict[str, float] = {}
    for word in words:
        name, equals, text = word.partition("=")
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if name not in known or not equals or not 0 <= number < float("inf"):
            raise UserError(f"--rate {word}: expected NAME=NUMBER with one of {', '.join(known)}")
        found[name] = number
    return found


def rates_from(run: Path | None, words: list[str]) -> Rates | None:
    """Measured rates with given ones in their place; None where neither is given. Raises UserError for half of them."""
    given = given_rates(words)
    if run is not None:
        return Rates(**(asdict(measured_rates(run)) | given))
    if not given:
        return None
    needed = ("sampled_tokens_a_second", "scored_answers_a_second", "trained_tokens_a_second", "answer_tokens")
    missing = [name for name in needed if not given.get(name)]
    if missing:
        raise UserError(f"--rate: without --rates RUN_DIR these are needed too, above 0: {', '.join(missing)}")
    return Rates(**given)


def iteration_time(config: RunConfig, rates: Rates, prompts: int) -> IterationTime:
    """Seconds of an iteration of so many prompts."""
    answers = prompts * config.rollout.samples
    length = min(rates.answer_tokens, config.rollout.max_tokens)
    sample = answers * length / rates.sampled_tokens_a_second / config.cluster.samplers
    score = answers / rates.scored_answers_a_second * (length / rates.answer_tokens) / config.cluster.scorers
    steps = answers * length * config.train.epochs / rates.trained_tokens_a_second / config.train.workers
    return IterationTime(
        sample=sample,
        score=score,
        generate=_together(config, sample, score) + rates.generate_overhead_seconds,
        train=steps + rates.train_start_seconds,
        publish=rates.publish_seconds,
        evaluate=rates.evaluate_seconds_an_answer * _heldout_answers(config),
    )


def balanced_pools(config: RunConfig, rates: Rates, devices: int) -> tuple[int, int]:
    """(samplers, scorers) that share so many devices and finish together in `split`; at least one of each."""
    length = min(rates.answer_tokens, config.rollout.max_tokens)
    sample = length / rates.sampled_tokens_a_second
    score = length / rates.answer_tokens / rates.scored_answers_a_second
    most = devices // config.rollout.engine.tensor_parallel
    pairs = [(samplers, devices - samplers * config.rollout.engine.tensor_parallel) for samplers in range(1, most + 1)]
    fitting = [(samplers, scorers) for samplers, scorers in pairs if scorers >= 1] or [(1, 1)]
    return min(fitting, key=lambda pair: max(sample / pair[0], score / pair[1]))
