"""Tokenizers that do not fit their model: refused by name, not somewhere inside.

Run: python -m pytest tests/reward/test_odd_tokenizers.py
"""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from reward.errors import RewardInputError
from reward.model import GeneralPreferenceModel
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings
from tests.tiny import read_json, save_tiny_model


def test_a_tokenizer_with_ids_beyond_the_models_is_refused_at_the_first_row_that_has_one(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    GeneralPreferenceModel.from_backbone(base, RewardSettings.published(2)).save_pretrained(tmp_path / "gpm")
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<new>"}]
    scorer = PreferenceScorer.from_pretrained(tmp_path / "gpm", "transformers")
    assert len(scorer.embed([talk]).v_ND) == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "gpm")
    vocabulary = read_json(tmp_path / "gpm" / "config.json")["vocab_size"]
    while len(tokenizer) < vocabulary:
        tokenizer.add_tokens(f"<filler{len(tokenizer)}>")
    tokenizer.add_tokens("<new>")
    tokenizer.save_pretrained(tmp_path / "gpm")
    scorer = PreferenceScorer.from_pretrained(tmp_path / "gpm", "transformers")
    assert len(scorer.embed([[talk[0], {"role": "assistant", "content": "plain"}]]).v_ND) == 1
    with pytest.raises(
        RewardInputError, match=r"row 0: the tokenizer gives '<new>' the id \d+.*do not belong together"
    ):
        scorer.embed([talk])


def test_a_tokenizer_whose_greatest_length_is_no_number_is_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    GeneralPreferenceModel.from_backbone(base, RewardSettings.published(2)).save_pretrained(tmp_path / "gpm")
    path = tmp_path / "gpm" / "tokenizer_config.json"
    path.write_text(json.dumps(read_json(path) | {"model_max_length": "None"}), "utf-8")
    with pytest.raises(RewardInputError, match="model_max_length of its tokenizer is 'None', expected a number"):
        PreferenceScorer.from_pretrained(tmp_path / "gpm", "transformers")
