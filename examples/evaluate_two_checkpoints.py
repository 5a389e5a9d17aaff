"""Which of two policies answers better, by a general preference model: a win rate with its interval.

    python examples/evaluate_two_checkpoints.py runs/quickstart/iterations/002/checkpoint \\
        models/smollm2-135m-instruct models/quickstart-gpm

Every answer of the one is compared with every answer of the other, prompt by prompt; the interval is a bootstrap over
prompts. `gpo eval` and `gpo tournament` do it for files of any size, and control for length.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpo.evaluation.winrate import win_rate
from reward import PreferenceScorer
from reward.preference import preference_probability

HELDOUT = Path("configs/data/quickstart_heldout.jsonl")
SAMPLES, MAX_TOKENS = 2, 48


def answers(directory: Path, prompts: list[str]) -> list[list[str]]:
    """Answers of a policy to each prompt."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    found = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        rendered = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        rows = model.generate(**rendered, do_sample=True, max_new_tokens=MAX_TOKENS, num_return_sequences=SAMPLES)
        found.append(tokenizer.batch_decode(rows[:, rendered["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


def main() -> None:
    """Command line: two policies, a reward model, and how many prompts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("reward", type=Path)
    parser.add_argument("--prompts", type=int, default=16, help="of the quick start's held-out ones (default: 16)")
    options = parser.parse_args()
    torch.manual_seed(0)
    lines = HELDOUT.read_text(encoding="utf-8").splitlines()[: options.prompts]
    prompts = [json.loads(line)["prompt"] for line in lines]
    first, second = answers(options.first, prompts), answers(options.second, prompts)
    scorer = PreferenceScorer.from_pretrained(options.reward)
    probabilities = []
    for prompt, own, other in zip(prompts, first, second, strict=True):
        table = scorer.table([{"role": "user", "content": prompt}], [*own, *other])
        score_KM = table[: len(own), len(own) :]
        probabilities.append(preference_probability(score_KM, scorer.tau).double().numpy())
    found = win_rate(probabilities)
    low, high = found.ci95
    print(
        f"the first wins {found.win_rate:.1%} [{low:.1%}, {high:.1%}] on {found.n_prompts} prompts, {SAMPLES} answers "
        "each"
    )


if __name__ == "__main__":
    main()
