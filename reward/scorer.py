"""PreferenceScorer: conversations in, embeddings and tables out.
What it is: encoder, back end and heads of one checkpoint behind two calls. Results are float32 on the CPU
whatever the backbone runs in. What it is not: it trains nothing, reads no data files and starts no Ray
actor.

Shape suffixes: N conversations, K answers to one prompt, D embedding width, L = D / 2 blocks, H hidden
size.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoTokenizer

from reward.backend_transformers import HiddenStates, TransformersBackend
from reward.encoding import Conversation, ConversationEncoder, EncodedConversation
from reward.errors import RewardInputError
from reward.heads import PreferenceHeads
from reward.model import GeneralPreferenceModel
from reward.preference import preference_table
from reward.settings import RewardSettings

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "transformers", "vllm")


@dataclass(frozen=True)
class Embeddings:
    """One row a conversation, in order."""

    v_ND: Tensor
    """float32; D = 1 is the reward of a Bradley-Terry model."""
    gate_NL: Tensor | None
    """float32, rows sum to 1; None without a gate."""
    truncated_N: Tensor
    """bool; the conversation was longer than max_length."""


class Backend(Protocol):
    """What a back end must do: hidden states of two positions for each token row, in order."""

    def hidden_states(self, rows: Sequence[EncodedConversation]) -> HiddenStates: ...


class PreferenceScorer:
    """Embeds conversations with one reward model."""

    def __init__(
        self, encoder: ConversationEncoder, backend: Backend, heads: PreferenceHeads, settings: RewardSettings
    ) -> None:
        self.encoder = encoder
        self.backend = backend
        self.heads = heads.eval()
        self.settings = settings

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        backend: str = "auto",
        dtype: str = "auto",
        max_length: int = 4096,
        *,
        device: str | None = None,
        attn_implementation: str | None = None,
        tokens_per_batch: int = 8192,
        trust_remote_code: bool = False,
        **policies: Any,
    ) -> "PreferenceScorer":
        """Open a checkpoint directory; `policies` override single settings that were saved with it."""
        _choose_backend(backend)
        model = GeneralPreferenceModel.from_pretrained(directory, dtype, attn_implementation, trust_remote_code)
        settings = model.settings.with_policies(**policies)
        model.heads.l2_normalize = settings.l2_normalize
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
        encoder = ConversationEncoder(tokenizer, settings, max_length)
        model.to(choose_device(device))
        return cls(encoder, TransformersBackend(model, tokens_per_batch), model.heads, settings)

    @property
    def tau(self) -> float:
        """Score units a log-odd: P = sigmoid(score / tau)."""
        return self.settings.tau

    @torch.no_grad()
    def embed(self, conversations: Sequence[Conversation]) -> Embeddings:
        """Embeddings (and gates) of conversations that end with an assistant's answer."""
        rows = self.encoder.encode(conversations)
        if not rows:
            return self._nothing()
        truncated_N = torch.tensor([row.truncated for row in rows])
        if truncated_N.any():
            logger.warning(
                "%d of %d conversations are longer than max_length = %d and were cut (policy %r)",
                int(truncated_N.sum()),
                len(rows),
                self.encoder.max_length,
                self.settings.truncation,
            )
        v_ND, gate_NL = self.heads(*self.backend.hidden_states(rows))
        return Embeddings(v_ND.cpu(), None if gate_NL is None else gate_NL.cpu(), truncated_N)

    def table(self, prompt_messages: Conversation, responses: Sequence[str]) -> Tensor:
        """Score_KK of every answer to one prompt over every other, exactly skew-symmetric, in float32."""
        if isinstance(responses, str) or len(responses) == 0:
            raise RewardInputError(f"responses is {responses!r:.80}, expected a list of at least one string")
        if isinstance(prompt_messages, str):
            raise RewardInputError('the prompt is a string, expected messages: [{"role": "user", "content": ...}]')
        answers = [{"role": "assistant", "content": response} for response in responses]
        found = self.embed([[*prompt_messages, answer] for answer in answers])
        # The rows' gates agree unless truncation cut the prompt differently; the mean favours no answer.
        gate_L = None if found.gate_NL is None else found.gate_NL.mean(0)
        return preference_table(found.v_ND, gate_L=gate_L)

    def _nothing(self) -> Embeddings:
        width = self.settings.value_head_dim
        gate_NL = torch.zeros(0, width // 2) if self.settings.gated else None
        return Embeddings(torch.zeros(0, width), gate_NL, torch.zeros(0, dtype=torch.bool))


def _choose_backend(asked: str) -> None:
    if asked not in BACKENDS:
        raise RewardInputError(f"backend is {asked!r}, expected one of: {', '.join(BACKENDS)}")
    if asked == "vllm":
        raise RewardInputError("backend 'vllm' does not exist yet; expected 'transformers' or 'auto'")
    if asked == "auto":
        logger.info("back end: transformers, because it is the only one so far")


def choose_device(asked: str | None) -> str:
    """The device to run on: the one asked for, else a GPU if torch finds one."""
    if asked is not None:
        return asked
    if torch.cuda.is_available():
        logger.info("device: cuda, because torch finds a GPU")
        return "cuda"
    logger.info("device: cpu, because torch finds no GPU")
    return "cpu"
