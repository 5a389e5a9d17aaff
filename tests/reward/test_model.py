"""Checkpoints in and out, the forward pass on four architectures, and what is refused."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from reward.checkpoint import read_tensors
from reward.encoding import ConversationEncoder, EncodedConversation
from reward.errors import RewardInputError
from reward.heads import PreferenceHeads
from reward.model import GeneralPreferenceModel, pad_rows
from reward.settings import RewardSettings
from tests.reward import published
from tests.tiny import make_tiny_model, make_tokenizer, save_tiny_model

torch.set_num_threads(1)
ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma", "gemma2"]
GPM6 = RewardSettings.published(6, True)


def row(ids: list[int], prompt_end: int = 2) -> EncodedConversation:
    return EncodedConversation(ids, prompt_end, prompt_end + 1, False, True)


ROWS = [row([256, 10, 20, 30, 257]), row([256, 5, 6, 7, 8, 9, 10, 257], 4), row([1, 2, 3])]


def save_reward_model(directory: Path, settings: RewardSettings = GPM6, **changes: Any) -> Path:
    base = save_tiny_model(directory / "base", **changes)
    GeneralPreferenceModel.from_backbone(base, settings, seed=1).save_pretrained(directory / "reward")
    return directory / "reward"


def outputs(model: GeneralPreferenceModel, rows: list[EncodedConversation] = ROWS) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        v_ND, gate_NL = model(*pad_rows(rows))
    assert gate_NL is not None
    return v_ND, gate_NL


def slow_embedding(directory: Path, one: EncodedConversation) -> tuple[Tensor, Tensor]:
    """One row through transformers' own causal model and the heads by hand, in eager attention."""
    causal = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    heads = read_tensors(directory, ["value_head.weight", "prompt_head.weight"])
    with torch.no_grad():
        states = causal(torch.tensor([one.input_ids]), output_hidden_states=True).hidden_states[-1][0]
    v_D = heads["value_head.weight"].float() @ states[-1].float()
    gate_L = torch.softmax(heads["prompt_head.weight"].float() @ states[one.prompt_end].float(), 0)
    return v_D / v_D.norm(), gate_L


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_agrees_with_its_own_causal_model_row_by_row(model_type: str, tmp_path: Path) -> None:
    directory = save_reward_model(tmp_path, model_type=model_type, tied=model_type.startswith("gemma"))
    v_ND, gate_NL = outputs(GeneralPreferenceModel.from_pretrained(directory))
    for place, one in enumerate(ROWS):
        slow_D, slow_L = slow_embedding(directory, one)
        torch.testing.assert_close(v_ND[place], slow_D, rtol=0, atol=1e-5)
        torch.testing.assert_close(gate_NL[place], slow_L, rtol=0, atol=1e-5)


def test_capped_attention_runs_eager_whatever_was_asked_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = save_reward_model(tmp_path, model_type="gemma2", tied=True)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model = GeneralPreferenceModel.from_pretrained(directory, attn_implementation="sdpa")
    assert model.backbone.config._attn_implementation == "eager"
    assert "eager instead of sdpa" in caplog.text


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_and_batching_change_nothing_beyond_rounding(attention: str, tmp_path: Path) -> None:
    directory = save_reward_model(tmp_path)
    model = GeneralPreferenceModel.from_pretrained(directory, attn_implementation=attention)
    together, gates = outputs(model)
    for place, one in enumerate(ROWS):
        alone, gate = outputs(model, [one])
        torch.testing.assert_close(together[place], alone[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(gates[place], gate[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "tied", "dtype", "shards"),
    [
        ("llama", False, torch.float32, "5GB"),
        ("llama", False, torch.bfloat16, "100KB"),
        ("qwen2", True, torch.float32, "100KB"),
        ("gemma", True, torch.bfloat16, "5GB"),
    ],
)
def test_saving_and_reloading_is_bit_equal_in_the_published_layout(
    model_type: str, tied: bool, dtype: torch.dtype, shards: str, tmp_path: Path
) -> None:
    base = save_tiny_model(tmp_path / "base", model_type, tied, dtype=dtype, max_shard_size=shards)
    model = GeneralPreferenceModel.from_backbone(base, GPM6, seed=3)
    model.save_pretrained(tmp_path / "one", max_shard_size=shards)
    again = GeneralPreferenceModel.from_pretrained(tmp_path / "one")
    assert again.backbone.dtype == dtype and again.settings == GPM6
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    for one, two in zip(outputs(model), outputs(again), strict=True):
        assert torch.equal(one, two) and one.dtype == torch.float32
    again.save_pretrained(tmp_path / "two", max_shard_size=shards)
    first, second = all_tensors(tmp_path / "one"), all_tensors(tmp_path / "two")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert ("lm_head.weight" in first) == (not tied)
    assert {name for name in first if not name.startswith("model.")} - {"lm_head.weight"} == {
        "value_head.weight",
        "prompt_head.weight",
    }


def all_tensors(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_a_saved_model_names_the_published_class_and_brings_its_tokenizer(tmp_path: Path) -> None:
    directory = save_reward_model(tmp_path)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["CustomRewardModel"]
    assert config["gpo_reward"]["value_head_dim"] == 6
    conversation = [{"role": "user", "content": "hi"}]
    rendered = AutoTokenizer.from_pretrained(directory).apply_chat_template(conversation, tokenize=False)
    assert rendered == make_tokenizer().apply_chat_template(conversation, tokenize=False)
    assert not [path for path in directory.iterdir() if path.name.startswith(".")]


def test_saving_over_a_sharded_checkpoint_leaves_no_old_shard(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    model = GeneralPreferenceModel.from_backbone(base, GPM6)
    model.save_pretrained(tmp_path / "out", max_shard_size="100KB")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    model.save_pretrained(tmp_path / "out", tokenizer=make_tokenizer())
    assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.safetensors"]
    assert torch.equal(outputs(model)[0], outputs(GeneralPreferenceModel.from_pretrained(tmp_path / "out"))[0])


def test_a_loaded_causal_model_keeps_its_language_head(tmp_path: Path) -> None:
    causal = make_tiny_model("llama", tied=False)
    model = GeneralPreferenceModel.from_backbone(causal, RewardSettings.published(1))
    model.save_pretrained(tmp_path / "bt", tokenizer=make_tokenizer())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "bt")
    assert torch.equal(again.lm_head.weight, causal.lm_head.weight)
    assert GeneralPreferenceModel.from_pretrained(tmp_path / "bt").settings == RewardSettings.published(1)


def test_gpt_neox_keeps_its_language_head_under_its_own_name(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "gpt_neox")
    causal = AutoModelForCausalLM.from_pretrained(base)
    for name, start in (("file", base), ("live", causal)):
        GeneralPreferenceModel.from_backbone(start, GPM6).save_pretrained(tmp_path / name, make_tokenizer())
        found = all_tensors(tmp_path / name)
        assert torch.equal(found["embed_out.weight"], causal.lm_head.weight) and "lm_head.weight" not in found


def test_fresh_heads_depend_on_the_seed_alone_and_have_the_published_spread() -> None:
    heads = [PreferenceHeads(2000, 8, gated=True, l2_normalize=True) for _ in range(3)]
    for head, seed in zip(heads, (5, 5, 6), strict=True):
        head.initialise(seed)
    assert torch.equal(heads[0].value_head.weight, heads[1].value_head.weight)
    assert not torch.equal(heads[0].value_head.weight, heads[2].value_head.weight)
    assert float(heads[0].value_head.weight.detach().std() * 2001) == pytest.approx(1.0, rel=0.03)


def test_heads_compute_in_float32_even_under_autocast_and_for_bfloat16_states() -> None:
    heads = PreferenceHeads(64, 6, gated=True, l2_normalize=True)
    states_NH = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    plain_ND, plain_NL = heads(states_NH, states_NH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast_ND, cast_NL = heads(states_NH, states_NH)
    assert cast_ND.dtype == torch.float32
    assert torch.equal(plain_ND, cast_ND) and torch.equal(plain_NL, cast_NL)


def test_a_zero_embedding_stays_finite() -> None:
    heads = PreferenceHeads(64, 6, gated=False, l2_normalize=True)
    v_ND, gate_NL = heads(torch.zeros(1, 64))
    assert torch.equal(v_ND, torch.zeros(1, 6)) and gate_NL is None


def test_gradients_reach_backbone_and_heads(tmp_path: Path) -> None:
    model = GeneralPreferenceModel.from_pretrained(save_reward_model(tmp_path))
    v_ND, gate_NL = model(*pad_rows(ROWS))
    (v_ND[:, 0].sum() + gate_NL[:, 0].sum()).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@published.present
@pytest.mark.parametrize("name", ["llama_d6_gated", "llama_d2_ungated", "llama_bt"])
def test_published_checkpoints_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    model = GeneralPreferenceModel.from_pretrained(published.checkpoint(name))
    facts = published.load("cases.json")["checkpoints"][name]
    for field in ("head", "value_head_dim", "gated", "l2_normalize", "tau"):
        assert getattr(model.settings, field) == facts[field]
    model.save_pretrained(tmp_path)
    before, after = all_tensors(published.checkpoint(name)), all_tensors(tmp_path)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_other_policies_are_saved_with_the_checkpoint_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = RewardSettings.published(4, False, l2_normalize=False, tau=0.5, eos_policy="append")
    with caplog.at_level(logging.INFO):
        directory = save_reward_model(tmp_path, settings)
    assert "not card-compatible: l2_normalize, eos_policy" in caplog.text
    assert GeneralPreferenceModel.from_pretrained(directory).settings == settings


def rewrite(directory: Path, changes: dict[str, Tensor | None]) -> None:
    tensors: dict[str, Tensor | None] = {**load_file(directory / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_head.weight": None}, "no tensor 'value_head.weight'"),
        ({"value_head.weight": torch.zeros(3, 64)}, "3 rows, expected an even number or 1"),
        ({"value_head.weight": torch.zeros(8, 64)}, "3 rows next to a value head of 8"),
        ({"value_head.weight": torch.zeros(6, 32)}, r"shape \[6, 32\], expected \[rows, 64\]"),
        ({"prompt_head.weight": None}, "gpo_reward.gated = True, the head tensors say False"),
        ({"model.norm.weight": None}, "lacks 1 tensors of its backbone"),
    ],
)
def test_checkpoints_whose_parts_do_not_fit_are_refused(
    changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    directory = save_reward_model(tmp_path)
    rewrite(directory, changes)
    with pytest.raises(RewardInputError, match=message):
        GeneralPreferenceModel.from_pretrained(directory)


def test_pickled_missing_and_broken_checkpoints_are_refused_with_a_sentence(tmp_path: Path) -> None:
    directory = save_reward_model(tmp_path)
    pickled = tmp_path / "pickled"
    shutil.copytree(directory, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(RewardInputError, match="pytorch_model.bin: unpickling runs code"):
        GeneralPreferenceModel.from_pretrained(pickled)
    (pickled / "pytorch_model.bin").unlink()
    with pytest.raises(RewardInputError, match="neither model.safetensors nor"):
        GeneralPreferenceModel.from_pretrained(pickled)
    with pytest.raises(RewardInputError, match="not a checkpoint directory"):
        GeneralPreferenceModel.from_pretrained(tmp_path / "owner" / "name")
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RewardInputError, match="cannot be read"):
        GeneralPreferenceModel.from_pretrained(directory)


def test_only_the_shards_that_hold_the_heads_are_opened_for_them(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    GeneralPreferenceModel.from_backbone(base, GPM6).save_pretrained(tmp_path / "out", max_shard_size="100KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text("utf-8"))
    names = ["value_head.weight", "prompt_head.weight"]
    holders = {index["weight_map"][name] for name in names}
    others = set(index["weight_map"].values()) - holders
    assert others
    for name in others:
        (tmp_path / "out" / name).unlink()
    assert set(read_tensors(tmp_path / "out", names)) == set(names)


def test_the_encoder_and_the_model_meet_in_pad_rows() -> None:
    encoder = ConversationEncoder(make_tokenizer(), GPM6, 512)
    rows = encoder.encode([[{"role": "user", "content": "q"}, {"role": "assistant", "content": "answer"}]])
    batch = pad_rows([*rows, row([1, 2, 3])])
    assert batch.last_index_N.tolist() == [len(rows[0].input_ids) - 1, 2]
    assert batch.attention_mask_NT.sum(1).tolist() == [len(rows[0].input_ids), 3]
    assert batch.prompt_index_N.tolist() == [rows[0].prompt_end, 2]
