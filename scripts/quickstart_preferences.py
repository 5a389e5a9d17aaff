"""Preference pairs for the quick start: the starting policy answers, the oracle compares.

Writes train.jsonl and heldout.jsonl (one pair a line) and cycles.json (the share of decided triples that are cycles):

    python scripts/quickstart_preferences.py configs/quickstart.yaml models/quickstart-preferences
"""

import argparse
import hashlib
import importlib.util
import itertools
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

ANSWERS = 4
"""A prompt; every pair of them is compared."""
PROMPTS = {"train": 160, "heldout": 32}
"""Of each file, its first ones."""


ORACLE = Path("configs/quickstart_oracle.py")


def fingerprint(config: Any) -> str:
    """Of all that the pairs are made from: with other prompts, another oracle or other sampling they are others."""
    values = [config.policy.model, config.seed, config.prompts.system, config.rollout.max_tokens, config.rollout.top_k]
    files = [Path(config.prompts.train), Path(config.prompts.heldout), ORACLE, Path(__file__)]
    content = [json.dumps(values).encode(), *(path.read_bytes() for path in files)]
    return hashlib.sha256(b"\0".join(content)).hexdigest()


def load_oracle(path: Path) -> Any:
    """The module with `prefer`."""
    spec = importlib.util.spec_from_file_location("quickstart_oracle", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sample_answers(config: Any) -> dict[str, list[Any]]:
    """K answers of the starting policy to some training and held-out prompts; the engine has all of them at once."""
    from gpo.logs import Progress
    from rollout.engine import PolicyEngine, SampleRequest, Sampling, sampled_prompt
    from rollout.engine_settings import EngineSettings, prepare_environment
    from rollout.prompts import Prompt, load_prompts, render_prompt_ids
    from rollout.seeds import request_seed

    settings = EngineSettings(max_model_len=512, dtype=config.policy.dtype, threads=len(os.sched_getaffinity(0)))
    prepare_environment(settings)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.policy.model)
    engine = PolicyEngine(Path(config.policy.model), settings)
    sampling = Sampling(samples=ANSWERS, max_tokens=config.rollout.max_tokens, top_k=config.rollout.top_k)
    progress = Progress("answers of the starting policy", sum(PROMPTS.values()), "prompts")
    found: dict[str, list[Any]] = {split: [] for split in PROMPTS}

    def done(split: str, request: SampleRequest, output: Any) -> None:
        found[split].append(sampled_prompt(request, output, "start"))
        progress.update(sum(map(len, found.values())))

    for split, source in {"train": config.prompts.train, "heldout": config.prompts.heldout}.items():
        for prompt in load_prompts(source).prompts[: PROMPTS[split]]:
            asked = Prompt(prompt.prompt_id, (("system", config.prompts.system), *prompt.messages))
            ids = render_prompt_ids(tokenizer, asked)
            seed = request_seed(config.seed, 0, prompt.prompt_id, "preferences")
            request = SampleRequest(prompt.prompt_id, asked.as_messages(), ids, seed)
            engine.submit(request, sampling, partial(done, split, request))
    while engine.busy:
        engine.step()
    # In the order of their ids, not of their ends, so that the files are the same at every run.
    return {split: sorted(samples, key=lambda sample: sample.prompt_id) for split, samples in found.items()}


def label(oracle: Any, sample: Any) -> tuple[list[dict[str, Any]], int, int]:
    """Pairs of one prompt, and its decided and cyclic triples."""
    from gpo.evaluation.heldout_judge import answer_group

    group = answer_group(sample)
    answers = group.answers
    sign = {
        (i, j): oracle.prefer(group.messages, answers[i], answers[j])
        for i, j in itertools.permutations(range(len(answers)), 2)
    }
    pairs = [
        {
            "chosen": [*sample.prompt, {"role": "assistant", "content": answers[i].text}],
            "rejected": [*sample.prompt, {"role": "assistant", "content": answers[j].text}],
            "group": sample.prompt_id,
        }
        for (i, j), value in sign.items()
        if value > 0
    ]
    decided = cyclic = 0
    for i, j, k in itertools.combinations(range(len(answers)), 3):
        signs = {sign[i, j], sign[j, k], sign[k, i]}
        decided += 0.0 not in signs
        cyclic += len(signs) == 1 and 0.0 not in signs
    return pairs, decided, cyclic


def label_all(oracle: Any, samples: list[Any]) -> tuple[list[dict[str, Any]], int, int]:
    """All pairs, and counts of triples."""
    labelled = [label(oracle, sample) for sample in samples]
    pairs = list(itertools.chain.from_iterable(pairs for pairs, _, _ in labelled))
    return pairs, sum(decided for _, decided, _ in labelled), sum(cyclic for _, _, cyclic in labelled)


def lines(pairs: list[dict[str, Any]]) -> Iterator[str]:
    """JSON Lines."""
    return (json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    from gpo.config import RunConfig
    from gpo.files import write_json, write_text
    from gpo.modelfiles import with_compute_dtype
    from gpo.settings import read_settings

    config = read_settings(RunConfig, options.config)
    made_from, written = fingerprint(config), options.target / "cycles.json"
    if written.is_file() and json.loads(written.read_text("utf-8")).get("made_from") == made_from:
        print(f"{options.target} is there already")
        return
    config = with_compute_dtype(config, [])
    oracle = load_oracle(ORACLE)
    counts: dict[str, Any] = {"made_from": made_from}
    for split, samples in sample_answers(config).items():
        pairs, decided, cyclic = label_all(oracle, samples)
        write_text(options.target / f"{split}.jsonl", "".join(lines(pairs)))
        counts[split] = {"pairs": len(pairs), "decided_triples": decided, "cyclic_triples": cyclic}
        print(f"{split}: {len(pairs)} pairs; {cyclic} of {decided} decided triples are cycles ({cyclic / decided:.1%})")
    write_json(written, counts)


if __name__ == "__main__":
    main()
