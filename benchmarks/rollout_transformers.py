"""The peer of the rollout benchmark: transformers' `generate`, batched, on the same prompts, K and lengths.

python -m benchmarks.rollout_transformers MODEL PROMPTS SAMPLES LONGEST

It prints a line when it is warm, then one for each line that it reads: a round over all prompts.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.frame import measured_dtype
from benchmarks.rollout_parts import requests_for
from gpo.cpu import prepare_process
from rollout.engine import SampleRequest

BATCH_PROMPTS, WARM_UP_PROMPTS = 32, 8


def one_round(model: Any, tokenizer: Any, requests: list[SampleRequest], samples: int, longest: int) -> dict[str, Any]:
    """Tokens a second; a token after the end of an answer does not count."""
    tokens = 0
    started = time.perf_counter()
    for first in range(0, len(requests), BATCH_PROMPTS):
        batch = requests[first : first + BATCH_PROMPTS]
        width = max(len(request.prompt_ids) for request in batch)
        ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            mask[row, width - len(request.prompt_ids) :] = 1
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=samples,
                max_new_tokens=longest,
                pad_token_id=tokenizer.pad_token_id,
            )
        for answer in found[:, width:].tolist():
            tokens += answer.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in answer else len(answer)
    seconds = time.perf_counter() - started
    return {"tokens": tokens, "seconds": round(seconds, 2), "tokens_a_second": round(tokens / seconds, 1)}


def main() -> None:
    """Warm up, then a round whenever asked."""
    model_path, prompts, samples, longest = Path(sys.argv[1]), *(int(word) for word in sys.argv[2:5])
    prepare_process(len(os.sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    # As the engine does: never in bfloat16 that is emulated.
    dtype = getattr(torch, measured_dtype("auto"))
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype).eval()
    requests = requests_for(model_path, prompts)
    torch.manual_seed(0)
    print(json.dumps(one_round(model, tokenizer, requests[:WARM_UP_PROMPTS], samples, longest)), flush=True)
    for _ in sys.stdin:
        print(json.dumps(one_round(model, tokenizer, requests, samples, longest)), flush=True)


if __name__ == "__main__":
    main()
