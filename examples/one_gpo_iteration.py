"""One iteration of General Preference Optimization in plain Python, without Ray or vLLM: sample, score, target, train.

    python examples/one_gpo_iteration.py models/smollm2-135m-instruct models/quickstart-gpm my-policy

`gpo run` does the same with engines, shards, a journal, a canary and an evaluation; this is for reading and for trying
ideas.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpo import GPOConfig, GPOTrainer
from gpo.targets import preference_targets
from reward import PreferenceScorer

PROMPTS = [
    "How do I keep bread fresh?",
    "Name a good breakfast.",
    "Why is the sky blue?",
    "Say something kind to a friend who is tired.",
]
SAMPLES, MAX_TOKENS, BETA = 4, 48, 0.5


def sample(model: Any, tokenizer: Any, prompt: str) -> tuple[list[int], list[list[int]]]:
    """Ids of the prompt, and of K answers; an answer that was cut gets no invented end."""
    messages = [{"role": "user", "content": prompt}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    prompt_ids = list(rendered["input_ids"])
    rows = model.generate(
        torch.tensor([prompt_ids]), do_sample=True, max_new_tokens=MAX_TOKENS, num_return_sequences=SAMPLES
    )
    answers = [row[len(prompt_ids) :].tolist() for row in rows]
    end = tokenizer.eos_token_id
    return prompt_ids, [ids[: ids.index(end) + 1] if end in ids else ids for ids in answers]


def main() -> None:
    """Command line: policy, reward model, and where to write the new policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path)
    parser.add_argument("reward", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.policy)
    model = AutoModelForCausalLM.from_pretrained(options.policy, dtype=torch.float32)
    scorer = PreferenceScorer.from_pretrained(options.reward)

    rows = []
    for number, prompt in enumerate(PROMPTS):
        prompt_ids, answers = sample(model, tokenizer, prompt)
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        table_KK = scorer.table([{"role": "user", "content": prompt}], texts)
        target_K = preference_targets(table_KK, method="gpo", tau=scorer.tau, beta=BETA)
        for ids, text, target in zip(answers, texts, target_K.tolist(), strict=True):
            print(f"{target:+6.2f} nats  {prompt}  {' '.join(text.split())[:80]}")
            rows.append(
                {"prompt_id": str(number), "prompt_ids": prompt_ids, "completion_ids": ids, "target": float(target)}
            )

    arguments = GPOConfig(
        output_dir=str(options.output / "steps"),
        learning_rate=1e-5,
        batch_prompts=2,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to=[],
        logging_steps=1,
    )
    trainer = GPOTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(options.output))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
