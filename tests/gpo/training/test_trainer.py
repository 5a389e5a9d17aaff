"""GPOTrainer on tiny models: the loss by hand, exact first steps, and what its options change.

Run: python -m pytest tests/gpo/training/test_trainer.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from gpo.training.reference import write_reference
from gpo.training.trainer import GPOConfig, GPOTrainer
from tests.engine import Engine
from tests.gpo.training.small_training import TOKENIZER, Gradients, make_rows, make_trainer, steps_of, weights_of
from tests.tiny import make_tiny_model


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_the_log_ratio_of_the_first_step_is_exactly_zero(tmp_path: Path, bf16: bool, model_type: str) -> None:
    trainer = make_trainer(tmp_path, model=make_tiny_model(model_type), bf16=bf16)
    trainer.train()
    first, second = steps_of(trainer)[:2]
    assert first["log_ratio_max_abs"] == 0.0 and first["log_ratio_mean"] == 0.0
    assert second["log_ratio_max_abs"] > 0.0


def test_an_engine_that_ends_autocasts_around_it_still_computes_in_the_compute_type(tmp_path: Path) -> None:
    trainer, types = make_trainer(tmp_path, layout="padded", compute_dtype="bfloat16"), set()
    layer = trainer.model.model.layers[0].mlp
    layer.register_forward_hook(lambda _module, _inputs, output: types.add(output.dtype))
    trainer.training_step(Engine(trainer.model), next(iter(trainer.get_train_dataloader())))
    assert types == {torch.bfloat16}


def test_the_first_loss_is_the_mean_square_of_the_targets(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, batch_prompts=6)
    trainer.train()
    targets = torch.tensor([row["target"] for row in make_rows()], dtype=torch.float64)
    assert steps_of(trainer)[0]["loss"] == pytest.approx(targets.square().mean().item(), rel=1e-4)


def test_the_loss_falls_on_a_small_problem_and_the_log_ratio_follows_its_target(tmp_path: Path) -> None:
    rows = make_rows(prompts=3, samples=2)
    schedule = {"learning_rate": 1e-4, "lr_scheduler_type": "linear", "num_train_epochs": 40}
    trainer = make_trainer(tmp_path, rows, batch_prompts=3, **schedule)
    trainer.train()
    steps = steps_of(trainer)
    assert steps[-1]["loss"] < 0.05 * steps[0]["loss"]
    assert steps[-1]["target_correlation"] > 0.95


def answer_logp_by_hand(model: Any, row: dict[str, Any]) -> Tensor:
    """One row alone and unpadded, token by token."""
    ids = [*row["prompt_ids"], *row["completion_ids"]]
    logps_TV = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
    total = torch.zeros(())
    for place in range(len(row["prompt_ids"]), len(ids)):
        total = total + logps_TV[place - 1, ids[place]]
    return total


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
@pytest.mark.parametrize("length_power", [0.0, 0.5, 1.0, 2.0])
def test_loss_and_gradient_of_a_step_are_those_of_a_slow_loop(tmp_path: Path, length_power: float, layout: str) -> None:
    rows = make_rows()
    for number, row in enumerate(rows):
        row["ref_logps"] = -30.0 - 7.5 * number
    trainer = make_trainer(tmp_path, rows, length_power=length_power, layout=layout, batch_tokens=60)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.zero_grad()
    assert len(batch["parts"]) > 1
    loss = trainer.training_step(trainer.model, batch)
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}

    trainer.model.zero_grad()
    terms = []
    for number in batch["row"].tolist():
        row = rows[number]
        ratio = answer_logp_by_hand(trainer.model, row) - row["ref_logps"]
        terms.append((ratio / len(row["completion_ids"]) ** length_power - row["target"]) ** 2)
    expected = sum(terms) / len(terms)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-4)
    expected.backward()
    for name, parameter in trainer.model.named_parameters():
        largest = parameter.grad.abs().max()
        assert (found[name] - parameter.grad).abs().max() <= 1e-4 * largest, name


def test_reference_log_probabilities_are_those_of_the_starting_policy_for_every_row(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    model = make_tiny_model()
    for row in trainer.train_dataset:
        assert row["ref_logps"] == pytest.approx(answer_logp_by_hand(model, row).item(), rel=1e-5, abs=1e-4)


def test_reference_log_probabilities_that_are_given_are_used_as_they_are(tmp_path: Path) -> None:
    rows = [{**row, "ref_logps": float(-number)} for number, row in enumerate(make_rows())]
    assert make_trainer(tmp_path, rows).train_dataset["ref_logps"][:] == [float(-n) for n in range(len(rows))]


def test_a_missing_data_set_is_told(tmp_path: Path) -> None:
    args = GPOConfig(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="train_dataset is missing; expected a Dataset in one of the forms"):
        GPOTrainer(make_tiny_model(), args, processing_class=TOKENIZER)


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_accumulation_changes_neither_loss_nor_gradient(tmp_path: Path, layout: str) -> None:
    """In float32 to 1e-5: four passes of 2 prompts are one of 8, also where a last step has fewer prompts.

    By plain descent: RMSProp's first step is nearly the gradient's sign, which the rounding of a tiny one decides.
    """
    rows = make_rows(prompts=11)
    settings: dict[str, Any] = {"batch_prompts": 8, "layout": layout, "max_grad_norm": 0.0, "optim": "sgd"}
    found = []
    for passes in (1, 4):
        gradients = Gradients()
        trainer = make_trainer(tmp_path, rows, gradient_accumulation_steps=passes, callbacks=[gradients], **settings)
        trainer.train()
        assert trainer.state.global_step == 2
        found.append((steps_of(trainer), gradients.first))
    (one, gradient), (four, other) = found
    assert [step["loss"] for step in one] == pytest.approx([step["loss"] for step in four], rel=1e-5)
    assert gradient.keys() == other.keys() and gradient
    for name, value in gradient.items():
        assert (value - other[name]).abs().max() <= 1e-5 * value.abs().max(), name


def test_the_budget_of_tokens_changes_no_number(tmp_path: Path) -> None:
    losses = []
    for tokens in (40, 10_000):
        trainer = make_trainer(tmp_path, batch_prompts=6, batch_tokens=tokens, num_train_epochs=3)
        trainer.train()
        losses.append([step["loss"] for step in steps_of(trainer)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_live_reference_gives_the_losses_of_one_computed_once(tmp_path: Path) -> None:
    once, live = (make_trainer(tmp_path, precompute_ref_log_probs=once) for once in (True, False))
    for trainer in (once, live):
        trainer.train()
    assert [step["loss"] for step in steps_of(once)] == [step["loss"] for step in steps_of(live)]
    assert once.ref_model is None and live.ref_model is not None


def test_a_model_that_was_trained_before_has_a_live_reference_that_stays_behind(tmp_path: Path) -> None:
    model = make_tiny_model()
    for _ in range(2):
        trainer = make_trainer(tmp_path, model=model, precompute_ref_log_probs=False)
        trainer.train()
        ratios = [step["log_ratio_max_abs"] for step in steps_of(trainer)]
        assert ratios[0] == 0.0 and all(ratio > 0.0 for ratio in ratios[1:])


def test_kept_reference_log_probabilities_are_used_for_the_same_weights_rows_and_batches_only(tmp_path: Path) -> None:
    folder = tmp_path / "kept"

    def files() -> set[str]:
        return {path.name for path in folder.glob("reference-*.json")}

    first = make_trainer(tmp_path, reference_folder=str(folder))
    (kept,) = files()
    key = kept.removeprefix("reference-").removesuffix(".json")
    write_reference(folder, key, torch.tensor([-1e3, *first.train_dataset["ref_logps"][1:]]))
    again = make_trainer(tmp_path, reference_folder=str(folder))
    assert again.train_dataset["ref_logps"][0] == -1e3 != first.train_dataset["ref_logps"][0]
    renamed = [{**row, "prompt_id": f"prompt {row['prompt_id']}"} for row in make_rows()]
    assert make_trainer(tmp_path, renamed, reference_folder=str(folder)).train_dataset["ref_logps"][0] == -1e3
    assert files() == {kept}
    alone = [{**row, "prompt_id": str(number)} for number, row in enumerate(make_rows())]
    regrouped = make_trainer(tmp_path, alone, reference_folder=str(folder))
    regrouped.train()
    assert steps_of(regrouped)[0]["log_ratio_max_abs"] == 0.0, "other batches have other last digits"
    make_trainer(tmp_path, reference_folder=str(folder), model=make_tiny_model(seed=1))
    make_trainer(tmp_path, make_rows(seed=5), reference_folder=str(folder))
    make_trainer(tmp_path, reference_folder=str(folder), batch_tokens=99)
    make_trainer(tmp_path, reference_folder=str(folder), bf16=True)
    other = make_tiny_model()
    other.set_attn_implementation("eager")
    make_trainer(tmp_path, reference_folder=str(folder), model=other)
    assert len(files()) == 7


@pytest.mark.parametrize("once", [True, False])
def test_an_anchor_pulls_the_targets_toward_itself_and_is_no_clamped_target(tmp_path: Path, once: bool) -> None:
    rows = [{**row, "target": 0.0} for row in make_rows()]
    anchor = make_tiny_model(seed=1)
    settings: dict[str, Any] = {"pull": 0.5, "clamp": 1e-3, "batch_prompts": 6, "precompute_ref_log_probs": once}
    trainer = make_trainer(tmp_path, rows, anchor_model=anchor, eval_dataset=Dataset.from_list(rows), **settings)
    trainer.train()
    assert steps_of(trainer)[0]["clamped"] == 0.0 and trainer.evaluate()["eval_loss"] > 0.0
    gaps = [
        0.5 * (answer_logp_by_hand(anchor, row) - answer_logp_by_hand(make_tiny_model(), row)).item() for row in rows
    ]
    assert steps_of(trainer)[0]["loss"] == pytest.approx(sum(gap**2 for gap in gaps) / len(gaps), rel=1e-4)


def test_a_pull_without_an_anchor_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pull=0.5 needs an anchor; give GPOTrainer.anchor_model=...., or rows"):
        make_trainer(tmp_path, pull=0.5)


@pytest.mark.parametrize("objective", ["dpo", "ipo"])
def test_pair_objectives_train_on_the_best_and_the_worst_answer(tmp_path: Path, objective: str) -> None:
    settings = {"objective": objective, "select": "best-and-worst", "num_train_epochs": 20, "learning_rate": 3e-4}
    trainer = make_trainer(tmp_path, **settings)
    assert len(trainer.train_dataset) == 12
    trainer.train()
    losses = [step["loss"] for step in steps_of(trainer)]
    assert losses[0] == pytest.approx({"dpo": 0.6931, "ipo": 25.0}[objective], rel=1e-3)
    assert losses[-1] < 0.2 * losses[0]


def test_the_sft_term_is_the_likelihood_of_the_best_answers_a_token(tmp_path: Path) -> None:
    rows = [{**row, "score": float(number % 3 == 1)} for number, row in enumerate(make_rows(scale=0.0))]
    trainer = make_trainer(tmp_path, rows, sft=0.5, batch_prompts=6, batch_tokens=50)
    trainer.train()
    model = make_tiny_model()
    terms = [-answer_logp_by_hand(model, row).item() / len(row["completion_ids"]) for row in rows[1::3]]
    assert steps_of(trainer)[0]["loss"] == pytest.approx(0.5 * sum(terms) / len(rows), rel=1e-4)


@pytest.mark.parametrize("rate", [1e-7, 1e-6, 1e-5])
@pytest.mark.parametrize("optim", ["rmsprop", "adamw_torch"])
def test_no_update_of_the_papers_learning_rates_is_lost_in_float32_masters_and_states(
    tmp_path: Path, optim: str, rate: float
) -> None:
    """The first step moves a weight by rate (Adam) or ten times that (RMSProp), to a few roundings of the weight."""
    gradients = Gradients()
    settings: dict[str, Any] = {"bf16": True, "learning_rate": rate, "optim": optim, "batch_prompts": 6}
    trainer = make_trainer(tmp_path, callbacks=[gradients], **settings)
    before = weights_of(trainer)
    trainer.train()
    states = [value for state in trainer.optimizer.state.values() for value in state.values() if value.dim()]
    assert len(states) >= len(before) and {value.dtype for value in states} == {torch.float32}
    length = {"rmsprop": 10 * rate, "adamw_torch": rate}[optim]
    for name, value in weights_of(trainer).items():
        assert value.dtype == torch.float32, name
        moved = (value - before[name]).abs()
        # Tokens that no row holds have no gradient; whatever has one well above the optimizer's 1e-8 moves.
        touched = gradients.first[name].abs() > 1e-6
        rounding = 1.2e-7 * before[name].abs().max().item()
        assert touched.any() and (moved[touched] > 0).all(), name
        assert moved[touched].median().item() == pytest.approx(length, abs=0.1 * length + rounding)


def test_an_evaluation_data_set_is_measured_with_the_same_loss(tmp_path: Path) -> None:
    rows = make_rows(prompts=4, seed=9)
    trainer = make_trainer(tmp_path, eval_dataset=Dataset.from_list(rows))
    found = trainer.evaluate()
    targets = torch.tensor([row["target"] for row in rows])
    assert found["eval_loss"] == pytest.approx(targets.square().mean().item(), rel=1e-3)
    assert trainer.state.global_step == 0


def test_gradient_checkpointing_changes_no_number(tmp_path: Path) -> None:
    plain, spared = (make_trainer(tmp_path, gradient_checkpointing=spare) for spare in (False, True))
    calls = {}
    for trainer in (plain, spared):
        passes: list[Any] = []
        trainer.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        trainer.train()
        calls[trainer] = len(passes)
    # Each layer is computed again in the backward pass.
    assert calls[spared] == 2 * calls[plain] > 0
    for one, other in zip(weights_of(plain).values(), weights_of(spared).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
