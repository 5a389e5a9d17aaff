"""A process that runs the trainer's forward outside training: canary of the start, KL of held-out answers."""

import os
from pathlib import Path
from typing import Any

from gpo.config import PolicyConfig
from gpo.cpu import give_back_models, keep_from_collections, leave_out_sklearn
from gpo.logs import log_to_file


class ForwardActor:
    """Loads a model for each call and forgets it, so that it costs memory only while it works."""

    def __init__(self, policy: dict[str, Any], logs: str, threads: int) -> None:
        log_to_file(Path(logs), f"forward-{os.getpid()}")
        import torch

        leave_out_sklearn()
        import gpo.training.forward  # noqa: F401  # its seconds pass while other processes start

        torch.set_num_threads(threads)
        self._policy = PolicyConfig.model_validate(policy)
        keep_from_collections()

    def canary_logps(self, model: str) -> list[list[float]]:
        """log p of the canary's answer tokens."""
        from reward.checkpoint import load_tokenizer
        from rollout.canary import canary_rows

        rows = canary_rows(load_tokenizer(Path(model), self._policy.trust_remote_code))
        return self._token_logps(model, rows)

    def answer_logps(self, model: str, answers: str, prompts: int) -> list[float]:
        """log p in nats of the first held-out answer of each of the first `prompts` prompts of an answers file."""
        from gpo.evaluation.heldout_judge import read_answers

        samples = read_answers(answers)[:prompts]
        rows = [(sample.prompt_ids, sample.completion_ids[0]) for sample in samples]
        return [sum(logps) for logps in self._token_logps(model, rows)]

    def _token_logps(self, model: str, rows: list[tuple[list[int], list[int]]]) -> list[list[float]]:
        from gpo.training.forward import load_policy, token_logps
        from gpo.training.log_probs import add_log_prob_head

        asked, trust = self._policy.attention, self._policy.trust_remote_code
        try:
            # This process reserves no device, so the model stays on the CPU.
            policy = load_policy(Path(model), attention=asked, device="cpu", trust_remote_code=trust).eval()
            add_log_prob_head(policy)
            return [row.tolist() for row in token_logps(policy, rows, self._policy.dtype)]
        finally:
            policy = None
            give_back_models()  # Between two questions others need it.
