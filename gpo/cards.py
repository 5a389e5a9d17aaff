"""Model cards: what stands beside published weights, so that who finds them knows what they are and are not.

A card is Markdown with the hub's YAML head (written by huggingface_hub). Text from configs is put in as code.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from gpo import __version__
from gpo.config import RunConfig
from gpo.files import read_json, write_text
from gpo.journal import RunDirectory
from gpo.settings import dump_yaml
from reward.settings import RewardSettings

CARD = "README.md"


def write_policy_card(config: RunConfig, directory: RunDirectory, iteration: int) -> None:
    """README.md of an iteration's checkpoint, from its evaluation.json."""
    evaluation = read_json(directory.evaluation(iteration))
    data = read_json(directory.root / "run.json").get("data_sha256", {})
    write_text(directory.checkpoint(iteration) / CARD, policy_card(config, evaluation, data))


def policy_card(config: RunConfig, evaluation: dict[str, Any], data_sha256: dict[str, str]) -> str:
    """The card of a policy: base, data, judge, settings, what was measured, limits."""
    head = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=["gpo", "general-preference-optimization"]
    )
    trained_on = config.preference.train_on
    rows = [
        f"| {code(judge)}{', trained on' if judge == trained_on else ''} | {rate(verdict['vs_start'])} | "
        f"{verdict['vs_start']['n_prompts']} |"
        for judge, verdict in evaluation["judges"].items()
    ]
    files = [f"* {code(name)}, SHA-256 `{sha256[:16]}…`" for name, sha256 in sorted(data_sha256.items())]
    return "\n".join(
        [
            f"---\n{head.to_yaml()}\n---\n",
            f"# {code(config.name)}, iteration {evaluation['iteration']} of {config.iterations}\n",
            f"{code(Path(config.policy.model).name)}, aligned by general preference optimization (arXiv 2410.02197) "
            f"with gpo {__version__}: self-play in which answers are compared with each other by {code(trained_on)} "
            f"({code(config.preference.sources[trained_on])}).\n",
            "## Data\n",
            f"Prompts: {code(config.prompts.train)}. All answers were sampled from the policy itself.\n",
            *files,
            "\n## What was measured\n",
            "Win rate against the start on held-out prompts, with 95 % bootstrap intervals over prompts:\n",
            "| judge | win rate | prompts |\n|---|---|---|",
            *rows,
            f"\n{evaluation['length_tokens']:.1f} tokens an answer, {evaluation['ended_share']:.0%} end by themselves; "
            f"{evaluation['kl_nats_per_answer']:.2f} nats KL from the start an answer.\n",
            "## Limits\n",
            "The judge that was trained on prefers this model by construction; that says little about truth, safety or "
            "use beyond prompts like those above. None of that was measured here. What the base model may be used for, "
            "and its licence, hold for this one too.\n",
            "## Settings\n",
            f"{fence(dump_yaml(config), 'yaml')}\n",
        ]
    )


def reward_card(settings: dict[str, Any], metrics: dict[str, Any], conventions: RewardSettings) -> str:
    """The card of a reward model.

    `settings`: as given to `gpo reward train` (`backbone`, `train`, `heldout` are named); `metrics`: what
    `training_metrics.json` holds, `train` and `heldout` with `accuracy` and `pairs`; `conventions`: as saved with it.
    """
    head = ModelCardData(library_name="gpo", tags=["reward-model", "general-preference-model"])
    kind = "general preference model" if conventions.head == "gpm" else "Bradley-Terry reward model"
    rows = [
        f"| {name} | {metrics[split]['accuracy']:.1%} | {metrics[split]['pairs']:.0f} |"
        for name, split in (("training pairs", "train"), ("held-out pairs", "heldout"))
        if metrics.get(split) and metrics[split].get("accuracy") is not None
    ]
    return "\n".join(
        [
            f"---\n{head.to_yaml()}\n---\n",
            f"# A {kind} on {code(Path(str(settings['backbone'])).name)}\n",
            "```python\nfrom reward import GeneralPreferenceModel, PreferenceScorer\n\n"
            'scorer = PreferenceScorer.from_pretrained("DIRECTORY")\n'
            'table = scorer.table([{"role": "user", "content": question}], [answer, other])\n'
            "print(table[0, 1])  # of answer over other\n"
            'model = GeneralPreferenceModel.from_pretrained("DIRECTORY")\n```\n',
            f"The score divided by tau ({conventions.tau:g}) is log-odds. Conventions: {conventions.described}.\n",
            f"Made by gpo {__version__}.\n",
            "## Data\n",
            f"Pairs: {code(str(settings['train']))}; held out: {code(str(settings['heldout']))}.\n",
            "## What was measured\n",
            "| pairs | accuracy | count |\n|---|---|---|",
            *rows,
            "\n## Limits\n",
            "It says which of two answers those who labelled the pairs would prefer, on prompts like those of the "
            "pairs, and nothing about truth or safety. Its scores compare answers to the same prompt only.\n",
            "## Settings\n",
            f"{fence(json.dumps(settings, indent=2, ensure_ascii=False, default=str), 'json')}\n",
        ]
    )


def rate(entry: dict[str, Any]) -> str:
    """A win rate with its interval."""
    low, high = entry["ci95"]
    return f"{entry['win_rate']:.1%} [{low:.1%}, {high:.1%}]"


def code(text: str) -> str:
    """Text as code on one line, whatever is in it."""
    return f"`{' '.join(text.replace('`', chr(39)).replace('|', '/').split())}`"


def fence(text: str, language: str) -> str:
    """A block of code that no text inside can end."""
    longest = max((len(run) for run in text.split() if set(run) == {"`"}), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"
