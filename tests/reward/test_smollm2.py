"""The scorer on a real language model: SmolLM2-135M-Instruct against a plain forward pass of transformers.

Run: python -m pytest tests/reward/test_smollm2.py
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reward.backend_transformers import TransformersBackend
from reward.encoding import ConversationEncoder
from reward.model import GeneralPreferenceModel
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings

torch.set_num_threads(1)
MODEL = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct"
ANSWERS = ("It is called the North Sea, and it is shallow.", "I do not know any sea, but Everest is a mountain.")
TALKS = [
    [
        {"role": "user", "content": "Which sea lies between Britain and Denmark?"},
        {"role": "assistant", "content": answer},
    ]
    for answer in ANSWERS
]


@pytest.mark.skipif(not MODEL.is_dir(), reason=f"no {MODEL}; `python scripts/smollm2.py {MODEL}` makes it")
def test_two_conversations_are_embedded_as_a_plain_forward_pass_does() -> None:
    settings = RewardSettings.published(6, True)
    model = GeneralPreferenceModel.from_backbone(MODEL, settings, seed=1, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    encoder = ConversationEncoder(tokenizer, settings, max_length=2048)
    found = PreferenceScorer(encoder, TransformersBackend(model), model.heads, settings).embed(TALKS)
    assert found.gate_NL is not None and model.heads.prompt_head is not None
    causal = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")
    for place, talk in enumerate(TALKS):
        ids = tokenizer(tokenizer.apply_chat_template(talk, tokenize=False))["input_ids"]
        prompt = tokenizer(tokenizer.apply_chat_template(talk[:1], tokenize=False))["input_ids"]
        ids[-1] = tokenizer.eos_token_id
        with torch.no_grad():
            states_TH = causal(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
            v_D = model.heads.value_head.weight @ states_TH[-1]
            gate_L = torch.softmax(model.heads.prompt_head.weight @ states_TH[len(prompt) - 1], dim=-1)
        torch.testing.assert_close(found.v_ND[place], v_D / v_D.norm(), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.gate_NL[place], gate_L, rtol=0, atol=1e-5)
    assert float((found.v_ND[0] - found.v_ND[1]).abs().max()) > 1e-2
