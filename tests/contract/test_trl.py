"""The private names of TRL and transformers that the trainer uses, as they are in TRL 1.16 and transformers 5.19.

Run: python -m pytest tests/contract/test_trl.py
Without KTOTrainer the same overrides go on transformers.Trainer: set-up of PEFT, DeepSpeed and FSDP is then ours
(about 250 lines). When a test fails after an upgrade, read the diff of trl/trainer/kto_trainer.py between 1.16.0 and
the new version at the name that is told, mend `GPOTrainer` in gpo/training/trainer.py accordingly, and raise the
version here and in pyproject.toml.
"""

import inspect
import re

import pytest
import transformers
import trl
from accelerate import Accelerator
from transformers import AttentionInterface, Trainer
from trl import KTOConfig, KTOTrainer
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import use_adapter

from gpo.training.trainer import GPOConfig, GPOTrainer
from gpo.training.trainer_config import UNREAD_FIELDS

WRITTEN_FOR = "1.16."
LOOK = "look at KTOTrainer in trl/trainer/kto_trainer.py and at GPOTrainer in gpo/training/trainer.py"

SIGNATURES = {
    "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
    "_precompute_ref_logps": ["self", "dataset", "name", "batch_size"],
    "_compute_loss": ["self", "model", "inputs", "return_outputs"],
    "_prepare_inputs": ["self", "inputs"],
    "_save_checkpoint": ["self", "model", "trial"],
    "evaluate": ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_set_signature_columns_if_needed": ["self"],
    "get_train_dataloader": ["self"],
}


def squeezed(method: str, owner: type = KTOTrainer) -> str:
    """Source of a method without white space."""
    return re.sub(r"\s", "", inspect.getsource(getattr(owner, method)))


def test_the_installed_trl_is_the_one_these_names_were_read_in() -> None:
    assert trl.__version__.startswith(WRITTEN_FOR), f"trl {trl.__version__}, written for {WRITTEN_FOR}x: {LOOK}"


@pytest.mark.parametrize("name", SIGNATURES)
def test_an_overridden_method_exists_with_the_expected_parameters(name: str) -> None:
    assert hasattr(KTOTrainer, name), f"KTOTrainer.{name} is gone: {LOOK}"
    found = list(inspect.signature(getattr(KTOTrainer, name)).parameters)
    assert found == SIGNATURES[name], f"KTOTrainer.{name} takes {found}: {LOOK}"
    ours = list(inspect.signature(getattr(GPOTrainer, name)).parameters)
    assert ours == SIGNATURES[name] and name in vars(GPOTrainer)


def test_kto_calls_the_overridden_methods_where_gpo_expects_it() -> None:
    start = squeezed("__init__")
    order = [
        "self._prepare_dataset(train_dataset,processing_class,args,",
        "super().__init__(",
        'self._metrics={"train":defaultdict(list),"eval":defaultdict(list)}',
        "self._precompute_ref_logps(self.train_dataset,",
    ]
    places = [start.find(text) for text in order]
    assert -1 not in places and places == sorted(places), f"{dict(zip(order, places, strict=True))}: {LOOK}"
    assert "returnself._compute_loss(model,inputs,return_outputs)" in squeezed("compute_loss"), LOOK


def test_an_evaluation_asks_the_overridden_method_for_its_inputs_which_transformers_casts() -> None:
    assert "inputs=self._prepare_inputs(inputs)" in squeezed("prediction_step"), LOOK
    assert "deepspeed_plugin.hf_ds_config.dtype()" in squeezed("_prepare_input"), "_prepare_inputs may be theirs again"


def test_an_evaluation_beyond_that_of_kto_is_named_and_counted_where_gpo_mends_it() -> None:
    """`GPOTrainer.evaluate` leaves out that of KTOTrainer, which refuses, prepares rows and computes references."""
    ours = squeezed("evaluate")
    steps = ["self.ref_modelisNone", "self._prepare_dataset(", "self._precompute_ref_logps(", "super().evaluate("]
    places = [ours.find(step) for step in steps]
    assert -1 not in places and places == sorted(places), f"{dict(zip(steps, places, strict=True))}: {LOOK}"
    theirs, loop = squeezed("evaluate", Trainer), squeezed("evaluation_loop", Trainer)
    assert "num_samples=output.num_samples" in theirs and "self.log(output.metrics)" in theirs
    assert "num_samples=len(eval_dataset)" in loop and 'metrics[f"{metric_key_prefix}_loss"]' in loop
    assert "self.callback_handler.eval_dataloader=dataloader" in loop


def test_transformers_removes_checkpoints_by_the_limit_that_gpo_sets_aside_and_at_the_end() -> None:
    """When this fails, look at gpo/training/step_checkpoints.py."""
    assert "save_total_limit=self.args.save_total_limit" in squeezed("_save_checkpoint", Trainer)
    end = squeezed("_finalize_training", Trainer)
    assert "self.state.best_model_checkpointisnotNoneandself.args.save_total_limit==1:" in end


def test_accelerate_keeps_every_model_that_it_prepares_and_transformers_counts_them() -> None:
    """When this fails, look at `held_still` in gpo/training/reference.py."""
    assert "self._models.append(model)" in inspect.getsource(Accelerator.prepare_model)
    assert "iflen(self.accelerator._models)==0andmodelisself.model:" in squeezed("evaluation_loop")


def test_kto_prepares_a_reference_as_an_anchor_is_prepared_and_frees_that_of_fsdp() -> None:
    start = squeezed("__init__")
    for line in (
        "ifself.is_deepspeed_enabled:self.ref_model=prepare_deepspeed(self.ref_model,self.accelerator)",
        "elifself.is_fsdp_enabled:self.ref_model=prepare_fsdp(self.ref_model,self.accelerator)",
        "self.ref_model=self.accelerator.prepare_model(self.ref_model,evaluation_mode=True)",
        "ifself.is_fsdp_enabledandref_modelisNone:self.ref_model=None",
        "self._tokenizer.pad_token=self._tokenizer.eos_token",
    ):
        assert line in start, f"{line}: {LOOK}"
    assert list(inspect.signature(prepare_deepspeed).parameters) == ["model", "accelerator"]
    assert list(inspect.signature(prepare_fsdp).parameters) == ["model", "accelerator"]
    assert list(inspect.signature(use_adapter).parameters) == ["model", "adapter_name"]


def test_the_metrics_of_a_step_are_averaged_and_cleared_by_the_log() -> None:
    source = squeezed("log")
    assert "self._metrics[mode].items()" in source and "self._metrics[mode].clear()" in source, LOOK
    assert 'mode="train"ifself.model.trainingelse"eval"' in source, LOOK


def test_the_loss_type_that_gpo_names_keeps_the_kl_rows_away() -> None:
    assert GPOConfig.__dataclass_fields__["loss_type"].default == "apo_zero_unpaired"
    assert 'calculate_kl=args.loss_typenotin["apo_zero_unpaired"]' in squeezed("__init__"), LOOK


def test_the_arguments_whose_defaults_gpo_changes_are_still_fields_of_kto() -> None:
    known = set(KTOConfig.__dataclass_fields__)
    for name in (
        "optim",
        "gradient_checkpointing",
        "max_length",
        "loss_type",
        "precompute_ref_log_probs",
        "remove_unused_columns",
    ):
        assert name in known, f"KTOConfig.{name} is gone: {LOOK}"
    assert {name for names in UNREAD_FIELDS for name in names.split()} <= known, f"KTOConfig lost a field: {LOOK}"
    own = {"batch_prompts", "batch_tokens", "layout", "length_power", "objective", "pull", "select", "target_beta"}
    assert not own & known, f"KTOConfig has a field of that name itself now: {LOOK}"


def test_names_shown_on_model_cards_are_ours() -> None:
    assert {"_name", "_tag_names", "_paper"} <= set(vars(KTOTrainer)), LOOK
    assert GPOTrainer._name == "GPO" and "gpo" in GPOTrainer._tag_names
    card = squeezed("create_model_card")
    assert "trainer_name=self._name," in card, LOOK
    assert 'paper_title=self._paper.get("title"),paper_id=self._paper.get("id"),' in card, LOOK
    assert set(GPOTrainer._paper) == {"title", "id"}


def test_the_data_set_that_is_trained_on_is_called_train_and_no_other_is_by_itself() -> None:
    """`GPOTrainer._precompute_ref_logps` takes the shuffled batches of the first epoch by that name."""
    start = squeezed("__init__")
    assert 'self.train_dataset=self._precompute_ref_logps(self.train_dataset,"train",' in start, LOOK
    assert 'self.eval_dataset=self._precompute_ref_logps(self.eval_dataset,"eval",' in start, LOOK
    assert start.count('"train",') == 1 and '_precompute_ref_logps(eval_dataset,"eval",' in squeezed("evaluate"), LOOK


def test_the_columns_that_gpo_names_are_those_that_transformers_would_keep() -> None:
    """When this fails, `GPOTrainer._set_signature_columns_if_needed` may name them under another attribute, or go."""
    assert "ifself._signature_columnsisNone:" in squeezed("_set_signature_columns_if_needed"), LOOK
    removes = squeezed("_remove_unused_columns", Trainer)
    assert "self._set_signature_columns_if_needed()signature_columns=self._signature_columns" in removes


def test_kto_keeps_an_adapter_as_it_was_under_the_name_ref() -> None:
    """When this fails, look at `starting_adapter` in reference.py and `load_trained_adapter` in step_checkpoints.py."""
    start = squeezed("__init__")
    assert 'model.add_adapter("ref",default_config)' in start and 'name.replace(".default.",".ref.")' in start, LOOK
    asked = 'adapter_name="ref"if"ref"inunwrapped_model.peft_configelseNone'
    assert asked in squeezed("compute_ref_log_probs"), LOOK


def test_the_installed_transformers_is_the_one_the_training_step_was_read_in() -> None:
    assert transformers.__version__.startswith("5.19."), "look at Trainer.training_step and GPOTrainer.training_step"


def test_the_loop_says_by_sync_gradients_which_pass_ends_a_step_and_averages_the_loss_over_workers() -> None:
    loop = re.sub(r"\s", "", inspect.getsource(Trainer._run_epoch))
    assert "self.accelerator.gradient_state._set_sync_gradients(do_sync_step)" in loop
    assert "self.training_step(model,inputs,num_items_in_batch)" in loop
    assert "underlying_sampler.set_epoch(epoch)" in loop and "train_dataloader.set_epoch(epoch)" in loop
    assert "nested_gather(tr_loss,self.args.parallel_mode).mean()" in re.sub(
        r"\s", "", inspect.getsource(Trainer._maybe_log_save_evaluate)
    )


def test_a_training_step_puts_an_optimizer_with_modes_into_that_of_training() -> None:
    step = re.sub(r"\s", "", inspect.getsource(Trainer.training_step))
    assert (
        'model.train()ifhasattr(self.optimizer,"train")andcallable(self.optimizer.train):self.optimizer.train()' in step
    )


def test_what_a_callback_leaves_in_the_state_is_in_the_checkpoint_and_comes_back() -> None:
    """The stop rule's window; a dictionary that is loaded is left as it is."""
    state = transformers.TrainerState(stateful_callbacks={"stop rule": {"seen": [{"kl": 0.1}]}})
    assert state.stateful_callbacks == {"stop rule": {"seen": [{"kl": 0.1}]}}
    assert "self.state.save_to_json(" in inspect.getsource(Trainer._save_checkpoint)


def test_every_step_is_looked_at_by_the_method_that_logs_evaluates_and_saves_it() -> None:
    parameters = list(inspect.signature(Trainer._maybe_log_save_evaluate).parameters)
    assert parameters[:3] == ["self", "tr_loss", "grad_norm"]
    loop = re.sub(r"\s", "", inspect.getsource(Trainer._run_epoch))
    assert (
        "self.callback_handler.on_step_end(self.args,self.state,self.control)"
        "self._maybe_log_save_evaluate(self._tr_loss,grad_norm," in loop
    )
    assert list(inspect.signature(KTOTrainer.log).parameters) == ["self", "logs", "start_time"], LOOK


def test_transformers_leaves_out_the_adapter_beside_one_in_a_folder() -> None:
    """When this fails, `load_trained_adapter` may go."""
    source = re.sub(r"\s", "", inspect.getsource(Trainer._load_from_checkpoint))
    assert "model.set_adapter(active_adapter)else:model.load_adapter(resume_from_checkpoint,active_adapter" in source


def test_kto_hashes_the_starting_weights_and_keeps_one_engine_for_reference_passes() -> None:
    start = squeezed("__init__")
    assert "self._precompute_model_hash=" in start and "self._precompute_engine=None" in start, LOOK
    assert "self.maybe_activation_offload_context" in start, LOOK
    condition = "ifself.ref_modelisNoneandself.is_deepspeed_enabled:ifself._precompute_engineisNone:"
    assert condition + "self._precompute_engine=prepare_deepspeed(self.model,self.accelerator)" in squeezed(
        "_precompute_ref_logps"
    ), LOOK


def test_an_attention_name_without_a_mask_function_skips_all_masks() -> None:
    from transformers import masking_utils

    source = inspect.getsource(masking_utils)
    assert "config._attn_implementation not in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping" in source
    assert hasattr(AttentionInterface, "register")
