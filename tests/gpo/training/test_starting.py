"""What a trainer begins with: models by path or as objects, evaluation sets, and what it does not do.

Run: python -m pytest tests/gpo/training/test_starting.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import (
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM

from gpo.training.starting import copy_of
from gpo.training.trainer import GPOConfig, GPOTrainer
from tests.gpo.training.small_training import TOKENIZER, make_model_that_sees, make_rows, make_trainer, weights_of
from tests.tiny import make_tiny_model, save_tiny_model


def test_a_model_named_by_its_directory_trains_as_one_that_was_loaded(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    args = GPOConfig(output_dir=str(tmp_path / "out"), use_cpu=True, report_to=[], disable_tqdm=True)
    named = GPOTrainer(str(directory), args, Dataset.from_list(make_rows()))
    assert named.processing_class.pad_token_id == TOKENIZER.pad_token_id
    before = weights_of(named)
    named.train()
    assert all(value.dtype == torch.float32 for value in weights_of(named).values())
    assert any(not torch.equal(value, before[name]) for name, value in weights_of(named).items())


def test_trainable_weights_in_half_precision_are_refused_and_frozen_ones_are_not(tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        message = rf"trainable weights are {name}.*learning_rate=0.0001 vanish.*load it with dtype=torch.float32"
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, model=make_tiny_model().to(dtype))
    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make_trainer(tmp_path, model=make_tiny_model().bfloat16(), peft_config=adapter, bf16=True)
    trained = {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad}
    assert trained == {torch.float32}


def test_a_path_with_a_half_precision_type_of_its_own_is_refused_as_an_object_is(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "model")
    args = GPOConfig(str(tmp_path / "out"), use_cpu=True, model_init_kwargs={"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="trainable weights are bfloat16"):
        GPOTrainer(str(directory), args, Dataset.from_list(make_rows()))


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_a_model_with_capped_attention_keeps_its_cap_when_it_is_named_by_its_path(tmp_path: Path, layout: str) -> None:
    directory = save_tiny_model(tmp_path / "model", "gemma2")
    args = GPOConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to=[], layout=layout)
    trainer = GPOTrainer(str(directory), args, Dataset.from_list(make_rows()))
    capped = make_tiny_model("gemma2")
    capped.set_attn_implementation("eager")
    expected = make_trainer(tmp_path, model=capped, layout=layout)
    assert trainer.model.config._attn_implementation == "eager"
    torch.testing.assert_close(
        torch.tensor(trainer.train_dataset["ref_logps"][:]),
        torch.tensor(expected.train_dataset["ref_logps"][:]),
        rtol=1e-5,
        atol=1e-4,
    )


def test_ddp_looks_for_unused_weights_where_a_model_has_more_than_text_and_where_it_is_told(tmp_path: Path) -> None:
    def resolved(**changes: Any) -> Any:
        return make_trainer(tmp_path, make_rows(prompts=1), **changes).args.ddp_find_unused_parameters

    assert resolved() is False and resolved(ddp_find_unused_parameters=True) is True
    assert resolved(model=make_model_that_sees()) is True
    assert resolved(model=make_model_that_sees(), gradient_checkpointing=True) is True
    assert resolved(model=make_model_that_sees(), ddp_find_unused_parameters=False) is False
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    assert resolved(model=make_model_that_sees(), **reentrant) is False
    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    assert resolved(model=make_model_that_sees(), peft_config=adapter) is True


@pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_adapters_that_put_virtual_tokens_before_a_row_are_refused(tmp_path: Path, kind: type[PeftConfig]) -> None:
    adapter = kind(task_type="CAUSAL_LM", num_virtual_tokens=4)
    message = f"{kind.__name__} puts virtual tokens before each row.*expected an adapter of weights: give LoraConfig"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, peft_config=adapter)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, model=get_peft_model(make_tiny_model(), adapter))


@pytest.mark.parametrize("which", ["model", "ref_model", "anchor_model"])
def test_a_model_that_is_spread_over_devices_is_refused_and_one_on_a_single_device_is_not(
    tmp_path: Path, which: str
) -> None:
    spread, whole = make_tiny_model(), make_tiny_model()
    spread.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    whole.hf_device_map = {"model.layers.0": "cpu", "model.layers.1": "cpu"}
    options = {"pull": 0.5} if which == "anchor_model" else {}
    with pytest.raises(ValueError, match=r"spread over devices \(0, 1 in its hf_device_map\).*`accelerate launch`"):
        make_trainer(tmp_path, **{which: spread}, **options)
    make_trainer(tmp_path, **{which: whole}, **options)


def test_an_attention_of_the_callers_own_is_kept(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "model")
    args = GPOConfig(
        str(tmp_path / "out"), use_cpu=True, report_to=[], model_init_kwargs={"attn_implementation": "sdpa"}
    )
    trainer = GPOTrainer(str(directory), args, Dataset.from_list(make_rows()))
    assert trainer.model.config._attn_implementation == "sdpa"


def test_an_evaluation_set_is_scaled_as_the_training_set_is(tmp_path: Path) -> None:
    rows, held_out = make_rows(scale=30.0), make_rows(prompts=4, seed=9, scale=3.0)
    trainer = make_trainer(tmp_path, rows, eval_dataset=Dataset.from_list(held_out), standardise=2.0)
    squares, others = (torch.tensor([row["target"] for row in part]).square().mean() for part in (rows, held_out))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(4.0 * (others / squares).item(), rel=1e-3)


def test_predictions_are_refused_because_there_are_no_logits(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(NotImplementedError, match=r"predict: a GPOTrainer keeps no logits; evaluate"):
        trainer.predict(trainer.train_dataset)


def test_a_copy_of_a_policy_that_zero3_loaded_in_pieces_runs_the_code_that_came_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = save_tiny_model(tmp_path / "model")
    code = "from transformers import LlamaForCausalLM\n\n\nclass Own(LlamaForCausalLM):\n    pass\n"
    (directory / "own.py").write_text(code)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "own.Own"}}))
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    next(model.parameters()).ds_id = 0
    copied = copy_of(model)
    assert copied is not model and type(copied) is type(model) and type(model).__name__ == "Own"
    assert all(torch.equal(one, other) for one, other in zip(copied.parameters(), model.parameters(), strict=True))
