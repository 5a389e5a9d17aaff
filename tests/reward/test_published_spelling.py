"""What we save is spelled as transformers 4.43 reads it, and transformers 5 reads the same from it.

What it is: the names in the files; the authors' versions are not installed here. What it is not: proof that weights of
every model type are named alike in both.

Run: python -m pytest tests/reward/test_published_spelling.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from reward.model import GeneralPreferenceModel
from reward.published_spelling import published_config, respell_tokenizer
from reward.settings import RewardSettings
from tests.reward import published
from tests.tiny import LLAMA_TEMPLATE, make_tokenizer, read_json, save_tiny_model

torch.set_num_threads(1)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def save(folder: Path, tokenizer: Any = None, model_type: str = "llama", **changes: Any) -> Path:
    base = save_tiny_model(folder / "base", model_type, dtype=torch.bfloat16, **changes)
    GeneralPreferenceModel.from_backbone(base, RewardSettings.published(6)).save_pretrained(folder / "gpm", tokenizer)
    return folder / "gpm"


def test_rotary_positions_and_type_are_told_under_the_old_names_too(tmp_path: Path) -> None:
    rope = {**LLAMA3, "rope_theta": 500000.0}
    directory = save(tmp_path, rope_parameters=rope)
    config = read_json(directory / "config.json")
    assert (config["rope_theta"], config["rope_scaling"], config["rope_parameters"]) == (500000.0, LLAMA3, rope)
    assert config["torch_dtype"] == "bfloat16" and "dtype" not in config
    found = AutoConfig.from_pretrained(directory)
    assert found.rope_parameters == rope and found.dtype == torch.bfloat16


def test_plain_rotary_positions_have_no_scaling(tmp_path: Path) -> None:
    directory = save(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 700.0})
    config = read_json(directory / "config.json")
    assert (config["rope_theta"], config["rope_scaling"]) == (700.0, None)
    assert AutoConfig.from_pretrained(directory).rope_parameters["rope_theta"] == 700.0


def test_gpt_neox_has_names_of_its_own() -> None:
    config = AutoConfig.for_model("gpt_neox", rotary_emb_base=300, rotary_pct=0.5).to_dict()
    spelled = published_config(config, "float32")
    assert (spelled["rotary_emb_base"], spelled["rotary_pct"], spelled["rope_scaling"]) == (300, 0.5, None)
    del spelled["rope_parameters"]
    assert AutoConfig.for_model(**spelled).rope_parameters == config["rope_parameters"]


@published.present
def test_a_published_config_keeps_its_spelling(tmp_path: Path) -> None:
    source = published.checkpoint("llama_d6_gated")
    GeneralPreferenceModel.from_pretrained(source).save_pretrained(tmp_path)
    found = read_json(tmp_path / "config.json")
    assert {name: found[name] for name in found if name != "gpo_reward"} == read_json(source / "config.json")


@pytest.mark.parametrize("given", [False, True], ids=["copied", "given"])
def test_the_tokenizer_has_a_class_and_names_that_old_readers_know(given: bool, tmp_path: Path) -> None:
    directory = save(tmp_path, make_tokenizer() if given else None)
    config = read_json(directory / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|start|>", "<|end|>"] and "extra_special_tokens" not in config
    assert config["chat_template"] == LLAMA_TEMPLATE and not (directory / "chat_template.jinja").exists()
    ours, wanted = AutoTokenizer.from_pretrained(directory), make_tokenizer()
    assert (ours.eos_token, ours.extra_special_tokens) == (wanted.eos_token, wanted.extra_special_tokens)
    talk = [{"role": "user", "content": "ünd <|end|> "}]
    text = ours.apply_chat_template(talk, tokenize=False)
    assert text == wanted.apply_chat_template(talk, tokenize=False)
    assert ours(text)["input_ids"] == wanted(text)["input_ids"]


def test_saving_where_a_template_lies_puts_ours_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "gpm").mkdir()
    (tmp_path / "gpm" / "chat_template.jinja").write_text("another", "utf-8")
    assert AutoTokenizer.from_pretrained(save(tmp_path)).chat_template == LLAMA_TEMPLATE


def bpe_file(folder: Path, merges: list[tuple[str, str]]) -> Path:
    pieces = sorted({piece for pair in merges for piece in (*pair, "".join(pair))})
    core = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=merges))
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>").save_pretrained(folder)
    respell_tokenizer(folder)
    return folder


def test_merges_become_texts_unless_a_piece_holds_a_space(tmp_path: Path) -> None:
    plain = bpe_file(tmp_path / "plain", [("a", "b"), ("ab", "ü")])
    assert read_json(plain / "tokenizer.json")["model"]["merges"] == ["a b", "ab ü"]
    assert AutoTokenizer.from_pretrained(plain).tokenize("aba") == ["ab", "a"]
    spaced = bpe_file(tmp_path / "spaced", [("a", "b"), (" ", "a")])
    assert read_json(spaced / "tokenizer.json")["model"]["merges"] == [["a", "b"], [" ", "a"]]
    assert json.loads((spaced / "tokenizer_config.json").read_text("utf-8"))["eos_token"] == "<end>"
