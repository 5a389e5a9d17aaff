"""What a run is prepared with, and the mistakes that only the tokenizer or two files together show.

Run: python -m pytest tests/gpo/test_preflight.py
"""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpo.errors import UserError
from gpo.preflight import Prepared, prepare
from reward.model import GeneralPreferenceModel
from reward.settings import RewardSettings
from rollout.engine_settings import SLACK_TOKENS
from rollout.errors import RolloutInputError
from rollout.prompts import read_rows
from tests.gpo.small_runs import run_config
from tests.tiny import GEMMA_TEMPLATE, save_tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "policy", layers=1)
    write_prompts(tmp_path, [f"Name {number} seas." for number in range(10)])
    (tmp_path / "taste.py").write_text("def prefer(messages, a, b):\n    return 0\n")
    return tmp_path


def write_prompts(folder: Path, texts: list[str], name: str = "prompts.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), "utf-8")
    return str(folder / name)


def save_tiny_gpm(folder: Path, seed: int) -> None:
    model = GeneralPreferenceModel.from_backbone(folder / "policy", RewardSettings.published(4, True), seed=seed)
    shutil.rmtree(folder / "gpm", ignore_errors=True)
    model.save_pretrained(folder / "gpm")


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepare(run_config(folder, **changes))
    return str(caught.value)


def texts_of(prepared: Prepared) -> tuple[list[str], list[str]]:
    train = [item.prompt.messages[-1][1] for prompts in prepared.prompts for item in prompts]
    return train, [item.prompt.messages[-1][1] for item in prepared.heldout]


def test_held_out_prompts_are_the_last_ones_and_never_trained_on(folder: Path) -> None:
    prepared = prepare(run_config(folder))
    train, heldout = texts_of(prepared)
    assert heldout == ["Name 8 seas.", "Name 9 seas."] and [len(prompts) for prompts in prepared.prompts] == [4, 4]
    assert sorted(train) == [f"Name {number} seas." for number in range(8)] and prepared.notes == []
    assert prepared.max_model_len > max(len(item.prompt_ids) for item in prepared.heldout) + 8
    assert (
        set(prepared.data_sha256) == {"policy.model", "prompts.train", "preference.sources.taste"}
        and "torch" in prepared.versions
    )


def test_a_held_out_prompt_that_is_also_a_training_prompt_is_left_out_and_counted(folder: Path) -> None:
    heldout = write_prompts(folder, ["Name 0 seas.", "Another.", "Name 1 seas."], "heldout.jsonl")
    prepared = prepare(run_config(folder, prompts={"heldout": heldout, "heldout_count": 3}))
    train, held = texts_of(prepared)
    assert not set(train) & set(held) and len(train) == 8 and len(held) == 3
    assert prepared.notes == ["2 training prompts are held-out prompts and were left out"]
    assert set(prepared.data_sha256) == {"policy.model", "prompts.train", "prompts.heldout", "preference.sources.taste"}


def test_the_training_file_as_held_out_file_is_refused_for_what_it_is(folder: Path) -> None:
    message = refusal(folder, prompts={"heldout": str(folder / "prompts.jsonl"), "heldout_count": 10})
    assert "prompts.heldout" in message and "holds every prompt of prompts.train" in message


def test_iterations_that_go_through_the_whole_set_need_no_more_prompts(folder: Path) -> None:
    assert "has only 10 distinct prompts" in refusal(folder, iterations=9)
    prepared = prepare(run_config(folder, iterations=9, prompts={"split": "whole"}))
    assert len(prepared.prompts) == 9 and all(len(prompts) >= 1 for prompts in prepared.prompts)


def test_over_long_prompts_are_left_out_counted_and_quoted(folder: Path) -> None:
    write_prompts(folder, ["long " * 50, *(f"Name {number} seas." for number in range(10))])
    prepared = prepare(run_config(folder, prompts={"max_tokens": 100}))
    assert len(prepared.notes) == 1
    assert prepared.notes[0].startswith("1 of 9 training prompts are longer than 100 tokens: 'long long")
    assert all("long" not in text for text in texts_of(prepared)[0])


def test_a_prompt_and_an_answer_that_the_model_cannot_read_together_are_refused(folder: Path) -> None:
    message = refusal(folder, rollout={"max_tokens": 512})
    assert "rollout.max_tokens = 512 leaves no room" in message and "512 tokens" in message
    message = refusal(folder, rollout={"max_tokens": 505})
    assert "8 of 8 training prompts" in message and "lower rollout.max_tokens (now 505)" in message


def test_an_engine_is_asked_for_no_more_tokens_than_the_model_was_made_for(folder: Path) -> None:
    longest = max(len(item.prompt_ids) for prompts in prepare(run_config(folder)).prompts for item in prompts)
    prepared = prepare(run_config(folder, rollout={"max_tokens": 512 - longest}))
    assert prepared.max_model_len == 512, "vLLM refuses more"
    assert prepare(run_config(folder, rollout={"max_tokens": 400})).max_model_len == longest + 400 + SLACK_TOKENS


def test_answers_that_are_cut_before_a_reward_model_reads_them_are_told(folder: Path) -> None:
    save_tiny_gpm(folder, seed=1)
    sources = {"sources": {"gpm": f"gpm:{folder / 'gpm'}"}, "train_on": "gpm"}
    assert prepare(run_config(folder, preference=sources)).notes == []
    (note,) = prepare(run_config(folder, preference={**sources, "max_length": 20})).notes
    assert "preference.sources.gpm reads the first 20" in note


def test_a_system_message_is_put_before_each_prompt_and_a_template_without_that_role_is_told(folder: Path) -> None:
    prepared = prepare(run_config(folder, prompts={"system": "Be brief."}))
    assert prepared.heldout[0].prompt.messages == (("system", "Be brief."), ("user", "Name 8 seas."))
    (folder / "policy" / "chat_template.jinja").write_text(GEMMA_TEMPLATE)
    message = refusal(folder, prompts={"system": "Be brief."})
    assert "'Name 0 seas.'" in message and "System role not supported" in message


@pytest.mark.parametrize("content", ["{}", "garbage", '{"added_tokens": 5}', None])
def test_a_damaged_tokenizer_is_refused_by_the_name_of_the_policy(folder: Path, content: str | None) -> None:
    (folder / "policy" / "tokenizer.json").unlink()
    if content is not None:
        (folder / "policy" / "tokenizer.json").write_text(content)
    message = refusal(folder)
    assert "policy.model" in message and "its tokenizer cannot be loaded" in message


def test_the_split_follows_the_seed_and_ids_are_those_of_the_template(folder: Path) -> None:
    first, same, other = (prepare(run_config(folder, seed=seed)) for seed in (0, 0, 1))
    assert texts_of(first) == texts_of(same) != texts_of(other)
    assert first.prompts == same.prompts


def test_an_edited_oracle_or_a_retrained_policy_or_reward_model_makes_another_run(folder: Path) -> None:
    save_tiny_gpm(folder, seed=1)
    sources = {"sources": {"taste": f"python:{folder / 'taste.py'}:prefer", "gpm": f"gpm:{folder / 'gpm'}"}}
    first = prepare(run_config(folder, preference=sources)).data_sha256
    (folder / "taste.py").write_text("def prefer(messages, a, b):\n    return 1\n")
    save_tiny_gpm(folder, seed=2)
    save_tiny_model(folder / "policy", layers=2)
    second = prepare(run_config(folder, preference=sources)).data_sha256
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"policy.model", "preference.sources.taste", "preference.sources.gpm"}


def test_prompts_of_a_hub_that_have_changed_make_another_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for word in ("seas", "seas", "lakes"):
        rows = [{"prompt": f"Name {number} {word}."} for number in range(10)]
        monkeypatch.setattr("rollout.prompts._hub_rows", lambda source, rows=rows: iter(rows))
        found.append(prepare(run_config(folder, prompts={"train": "hub:somebody/prompts"})).data_sha256)
    assert found[0] == found[1]
    assert {name for name in found[0] if found[0][name] != found[2][name]} == {"prompts.train"}


def test_a_missing_policy_is_told_by_its_field_beside_the_other_mistakes(folder: Path) -> None:
    said = refusal(folder, policy={"model": str(folder / "none"), "dtype": "auto"}, prompts={"train": "none.jsonl"})
    assert said.startswith("2 mistakes:") and f"policy.model: {folder / 'none'}: no config.json" in said


def test_a_machine_without_vllm_is_told_before_anything_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "vllm" else found(name, *more))
    assert "vllm is not installed" in refusal(folder)


def test_offloading_activations_from_a_gpu_that_is_not_there_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "train.activation_offload = True moves activations off a GPU" in refusal(
        folder, train={"activation_offload": True}
    )


def test_fsdp_is_refused_without_a_gpu_but_not_on_a_cluster_whose_machines_alone_know(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked = {"workers": 2, "sharding": "fsdp"}
    assert "train.sharding = 'fsdp'" in refusal(folder, train=asked)
    prepare(run_config(folder, train=asked, cluster={"address": "10.0.0.1:6379"}))


def test_flash_attention_is_refused_without_a_gpu_and_where_it_is_not_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"policy": {"attention": "flash_attention_2"}}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "policy.attention = 'flash_attention_2' needs a GPU" in refusal(folder, **asked)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "flash_attn" else found(name))
    assert "flash_attn is not installed: pip install 'gpo-align[cuda]'" in refusal(folder, **asked)
    monkeypatch.setattr("importlib.util.find_spec", found)
    (folder / "stub" / "flash_attn").mkdir(parents=True)
    (folder / "stub" / "flash_attn" / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder / "stub")
    assert prepare(run_config(folder, **asked)).prompts


def test_adapters_in_the_engine_are_refused_without_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = refusal(folder, train={"lora": {"rank": 4}}, rollout={"engine": {"adapters": True}})
    assert "rollout.engine.adapters = True needs a GPU" in said


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    (folder / "policy" / "chat_template.jinja").unlink()
    (folder / "prompts.jsonl").write_text('{"text": "no prompt here"}\n')
    (folder / "taste.py").write_text("def other(messages, a, b):\n    return 0\n")
    said = refusal(folder)
    assert said.startswith("3 mistakes:\n  - ")
    assert "no chat template" in said and "row 1" in said and "preference.sources." in said


def test_two_files_of_prompts_that_are_not_there_are_told_at_once(folder: Path) -> None:
    message = refusal(folder, prompts={"train": "nowhere.jsonl", "heldout": "neither.jsonl", "heldout_count": 1})
    assert "nowhere.jsonl" in message and "neither.jsonl" in message


def test_a_file_that_cannot_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(RolloutInputError, match=r"prompts\.jsonl cannot be read \(Permission denied\)"):
        list(read_rows(str(folder / "prompts.jsonl")))
