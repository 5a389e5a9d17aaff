"""A checkpoint saved by us and read back the way the model card's code reads it gives the same embeddings.

What it is: the card's own code is not at hand offline, so this is a reader of our own making, working as the card's is
known to work. A subclass of the configuration's own causal class gets two more bias-free Linear layers, `value_head`
and `prompt_head`, which `from_pretrained` fills from our directory by their names. Conversations are rendered with the
chat template, tokenised with special tokens on, cut on the right and padded on the left; the last id is overwritten by
EOS; the embedding is read in the last column, the gate at the column that the prompt's own length gives. Two things
differ from the card on purpose: attention is sdpa instead of flash, and everything is float32.
What it is not: a copy of that code, nor proof about the real 8B weights.

Run: python -m pytest tests/reward/test_card_reader.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from reward.model import GeneralPreferenceModel
from reward.preference import preference_table
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings
from tests.reward.training_data import train
from tests.tiny import read_json, save_tiny_model

torch.set_num_threads(1)
TOLERANCE = 1e-5
# Far from the value that a reader takes who does not find it.
ROPE = {"rope_type": "default", "rope_theta": 300.0}

Conversation = list[dict[str, str]]


def card_class(config: PretrainedConfig, width: int, gated: bool) -> type[PreTrainedModel]:
    """The causal class of this kind of config, with the two heads of the published layout."""
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]

    class WithHeads(causal):
        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            self.value_head = nn.Linear(config.hidden_size, width, bias=False)
            if gated:
                self.prompt_head = nn.Linear(config.hidden_size, width // 2, bias=False)

    return WithHeads


class CardReader:
    """The pipeline: one directory in, embeddings and gates of a left-padded batch out."""

    def __init__(self, directory: Path, width: int, gated: bool, max_length: int) -> None:
        kind = card_class(AutoConfig.from_pretrained(directory), width, gated)
        self.model, self.loading = kind.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
        )
        self.model.eval()
        self.gated = gated
        self.max_length = max_length
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.tokenizer.padding_side = "left"
        self.tokenizer.truncation_side = "right"

    def _ids(self, messages: Conversation) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        ids = self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        return list(ids)

    @torch.no_grad()
    def read(self, conversations: list[Conversation]) -> tuple[Tensor, Tensor | None]:
        rows = [self._ids(messages) for messages in conversations]
        prompt_lengths = [len(self._ids(messages[:1])) for messages in conversations]
        batch = self.tokenizer.pad({"input_ids": rows}, padding=True, return_tensors="pt")
        ids_NT, mask_NT = batch["input_ids"], batch["attention_mask"]
        ids_NT[:, -1], mask_NT[:, -1] = self.tokenizer.eos_token_id, 1
        position_NT = (mask_NT.cumsum(-1) - 1).masked_fill(mask_NT == 0, 1)
        hidden_NTH = self.model.model(
            input_ids=ids_NT, attention_mask=mask_NT, position_ids=position_NT
        ).last_hidden_state
        v_ND = F.normalize(self.model.value_head(hidden_NTH)[:, -1], p=2, dim=-1)
        if not self.gated:
            return v_ND, None
        responses = [len(row) - length for row, length in zip(rows, prompt_lengths, strict=True)]
        columns = [ids_NT.shape[1] - response - 1 for response in responses]
        prompt_NH = hidden_NTH[torch.arange(len(rows)), columns]
        return v_ND, torch.softmax(self.model.prompt_head(prompt_NH), dim=-1)


def talk(*texts: str, system: str | None = None) -> Conversation:
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


CONVERSATIONS = [
    talk("Name a sea.", "The North Sea."),
    talk("Name a sea.", "There are many seas; one of them, grey and cold in winter, is the North Sea."),
    talk("Name a sea.", ""),
    talk("Tides?", "Twice a day.", "And why?", "The moon pulls at the water, ünd the sun helps."),
    talk("Name a lake.", "Como", system="Answer in one word."),
]


def save_ours(
    directory: Path,
    tied: bool,
    gated: bool,
    model_type: str = "llama",
    dtype: torch.dtype = torch.float32,
    shards: str = "5GB",
) -> Path:
    base = save_tiny_model(directory / "base", model_type, tied, dtype=dtype, rope_parameters=ROPE)
    settings = RewardSettings.published(6, gated)
    assert settings.card_compatible
    model = GeneralPreferenceModel.from_backbone(base, settings, seed=4)
    # Through a loaded model, so that the tokenizer is copied as it is for a user who goes on from a checkpoint.
    model.save_pretrained(directory / "first", max_shard_size=shards)
    again = GeneralPreferenceModel.from_pretrained(directory / "first")
    again.save_pretrained(directory / "ours", max_shard_size=shards)
    return directory / "ours"


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("max_length", [512, 60, 30], ids=["whole", "cut", "cut-in-the-prompt"])
def test_the_cards_way_of_reading_gives_our_embeddings(
    tied: bool, gated: bool, max_length: int, tmp_path: Path
) -> None:
    directory = save_ours(tmp_path, tied, gated)
    reader = CardReader(directory, 6, gated, max_length)
    assert not reader.loading["missing_keys"] and not reader.loading["mismatched_keys"]
    card_ND, card_NL = reader.read(CONVERSATIONS)
    ours = PreferenceScorer.from_pretrained(directory, max_length=max_length).embed(CONVERSATIONS)
    torch.testing.assert_close(ours.v_ND, card_ND, rtol=0, atol=TOLERANCE)
    assert (ours.gate_NL is None) == (card_NL is None) == (not gated)
    if ours.gate_NL is not None:
        torch.testing.assert_close(ours.gate_NL, card_NL, rtol=0, atol=TOLERANCE)
    assert bool(ours.truncated_N.any()) == (max_length < 512)


@pytest.mark.parametrize(
    ("model_type", "dtype", "shards"),
    [
        ("gemma", torch.float32, "5GB"),
        ("gemma", torch.bfloat16, "60KB"),
        ("llama", torch.bfloat16, "5GB"),
        ("llama", torch.float32, "60KB"),
    ],
    ids=["gemma", "gemma-bf16-sharded", "llama-bf16", "llama-sharded"],
)
def test_other_families_types_and_shards_are_read_alike(
    model_type: str, dtype: torch.dtype, shards: str, tmp_path: Path
) -> None:
    """The reader computes in float32 what is stored in bfloat16; Gemma's template knows no system message."""
    directory = save_ours(tmp_path, model_type == "gemma", True, model_type, dtype, shards)
    assert len(list(directory.glob("*.safetensors"))) > (1 if shards == "60KB" else 0)
    # The names by which transformers 4.43 finds them, the version that the card's code was written for.
    config = read_json(directory / "config.json")
    assert (config["rope_theta"], config["rope_scaling"]) == (300.0, None)
    assert config["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert read_json(directory / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    talks = [one for one in CONVERSATIONS if one[0]["role"] != "system" or model_type != "gemma"]
    reader = CardReader(directory, 6, True, 512)
    assert not reader.loading["missing_keys"] and not reader.loading["mismatched_keys"]
    card_ND, card_NL = reader.read(talks)
    ours = PreferenceScorer.from_pretrained(directory, dtype="float32").embed(talks)
    torch.testing.assert_close(ours.v_ND, card_ND, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(ours.gate_NL, card_NL, rtol=0, atol=TOLERANCE)


def test_the_comparison_would_see_a_wrong_reading(tmp_path: Path) -> None:
    """Another policy, or another answer, is further away than the tolerance by orders of magnitude."""
    directory = save_ours(tmp_path, tied=False, gated=True)
    card_ND, card_NL = CardReader(directory, 6, True, 512).read(CONVERSATIONS)
    assert card_NL is not None
    single = PreferenceScorer.from_pretrained(directory, bos_policy="single").embed(CONVERSATIONS)
    assert float((single.v_ND - card_ND).abs().max()) > 100 * TOLERANCE
    later = PreferenceScorer.from_pretrained(directory, gate_prompt="all_but_last").embed(CONVERSATIONS)
    assert later.gate_NL is not None
    assert float((later.gate_NL - card_NL).abs().max()) > 100 * TOLERANCE
    table_KK = preference_table(card_ND[:3], gate_L=card_NL[0])
    assert float(table_KK.abs().max()) > 100 * TOLERANCE


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_cards_way_reads_what_a_training_leaves(precision: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama", rope_parameters=ROPE)
    train(tmp_path, base, "trained", epochs=2, precision=precision, value_head_dim=6)
    reader = CardReader(tmp_path / "trained", 6, True, 512)
    assert not reader.loading["missing_keys"] and not reader.loading["mismatched_keys"]
    card_ND, card_NL = reader.read(CONVERSATIONS)
    ours = PreferenceScorer.from_pretrained(tmp_path / "trained", dtype="float32").embed(CONVERSATIONS)
    torch.testing.assert_close(ours.v_ND, card_ND, rtol=0, atol=TOLERANCE)
    assert ours.gate_NL is not None and card_NL is not None
    torch.testing.assert_close(ours.gate_NL, card_NL, rtol=0, atol=TOLERANCE)
