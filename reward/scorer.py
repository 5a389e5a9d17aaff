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

from reward.backend_transformers import HiddenStates, TransformersBackend
from reward.checkpoint import load_config, load_tokenizer
from reward.encoding import Conversation, ConversationEncoder, EncodedConversation
from reward.errors import RewardInputError
from reward.heads import PreferenceHeads, open_heads
from reward.model import GeneralPreferenceModel
from reward.placement import choose_placement
from reward.preference import preference_table
from reward.settings import RewardSettings

logger = logging.getLogger(__name__)


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
        """Open a checkpoint directory; `policies` override single settings that were saved with it.

        `dtype` "auto": as stored, but float32 for bfloat16 on a CPU without instructions for it. `device` and
        `attn_implementation` None: chosen, and logged with the reason. `tokens_per_batch` bounds what is computed at
        once. Raises RewardInputError for a directory that holds no whole reward model, and for options that cannot be.
        """
        asked: dict[str, Any] = {"attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
        place = choose_placement(directory, backend, dtype, device=device, **asked)
        for reason in place.reasons:
            logger.info("%s", reason)
        engine: Backend
        if place.backend == "vllm":
            # The device as the caller gave it: the vLLM that is installed runs on one kind only, and knows which.
            engine, heads, saved = _open_vllm(
                Path(directory),
                dtype=place.dtype,
                max_length=max_length,
                tokens_per_batch=tokens_per_batch,
                device=device,
                trust_remote_code=trust_remote_code,
            )
        else:
            model = GeneralPreferenceModel.from_pretrained(directory, place.dtype, **asked)
            heads, saved = model.heads, model.settings
            engine = TransformersBackend(model.to(place.device), tokens_per_batch, attn_implementation)
        settings = saved.with_policies(**policies)
        heads.l2_normalize = settings.l2_normalize
        tokenizer = load_tokenizer(directory, trust_remote_code)
        vocabulary = load_config(directory, trust_remote_code).get_text_config().vocab_size
        return cls(ConversationEncoder(tokenizer, settings, max_length, vocabulary), engine, heads, settings)

    @property
    def tau(self) -> float:
        """Score units a log-odd: P = sigmoid(score / tau)."""
        return self.settings.tau

    @torch.no_grad()
    def embed(self, conversations: Sequence[Conversation]) -> Embeddings:
        """Embeddings (and gates) of conversations that end with an assistant's answer.

        Raises RewardInputError that names a bad conversation by its place.
        """
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
        """Score_KK of every answer to one prompt over every other, exactly skew-symmetric, in float32.

        Raises RewardInputError for anything but messages and a list of texts.
        """
        if isinstance(responses, str) or len(responses) == 0:
            raise RewardInputError(f"responses is {responses!r:.80}, expected a list of at least one string")
        if isinstance(prompt_messages, str):
            raise RewardInputError('the prompt is a string, expected messages: [{"role": "user", "content": ...}]')
        if len(prompt_messages) == 0:
            raise RewardInputError("the prompt has no messages, expected at least one that the answers reply to")
        answers = [{"role": "assistant", "content": response} for response in responses]
        found = self.embed([[*prompt_messages, answer] for answer in answers])
        # The rows' gates agree unless truncation cut the prompt differently; the mean favours no answer.
        gate_L = None if found.gate_NL is None else found.gate_NL.mean(0)
        return preference_table(found.v_ND, gate_L=gate_L)

    def _nothing(self) -> Embeddings:
        width = self.settings.value_head_dim
        gate_NL = torch.zeros(0, width // 2) if self.settings.gated else None
        return Embeddings(torch.zeros(0, width), gate_NL, torch.zeros(0, dtype=torch.bool))


def _open_vllm(
    directory: Path,
    *,
    dtype: str,
    max_length: int,
    tokens_per_batch: int,
    device: str | None,
    trust_remote_code: bool,
) -> tuple["Backend", PreferenceHeads, RewardSettings]:
    """Heads are read here and the backbone by the engine only."""
    from reward.backend_vllm import VllmBackend, require_vllm

    require_vllm()
    config = load_config(directory, trust_remote_code)
    heads, settings = open_heads(directory, int(config.get_text_config().hidden_size))
    engine = VllmBackend(
        directory,
        config,
        gated=settings.gated,
        dtype=dtype,
        max_length=max_length,
        tokens_per_batch=tokens_per_batch,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    return engine, heads, settings
