"""The private names of TRL that gpo/trainer.py overrides, as they are in TRL 1.16.

Run: python -m pytest tests/contract/test_trl.py
When a test fails after an upgrade, read the diff of trl/trainer/kto_trainer.py between 1.16.0 and the new version
at the name that is told, mend `GPOTrainer` in gpo/trainer.py accordingly, and raise the version here and in
pyproject.toml.
"""

import inspect
import re

import pytest
import trl
from trl import KTOConfig, KTOTrainer

from gpo.trainer import GPOConfig, GPOTrainer

WRITTEN_FOR = "1.16."
LOOK = "look at KTOTrainer in trl/trainer/kto_trainer.py and at GPOTrainer in gpo/trainer.py"

SIGNATURES = {
    "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
    "_precompute_ref_logps": ["self", "dataset", "name", "batch_size"],
    "_compute_loss": ["self", "model", "inputs", "return_outputs"],
    "_set_signature_columns_if_needed": ["self"],
    "get_train_dataloader": ["self"],
}


def squeezed(method: str) -> str:
    """Source of a KTOTrainer method without white space."""
    return re.sub(r"\s", "", inspect.getsource(getattr(KTOTrainer, method)))


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


def test_the_metrics_of_a_step_are_averaged_and_cleared_by_the_log() -> None:
    source = squeezed("log")
    assert "self._metrics[mode].items()" in source and "self._metrics[mode].clear()" in source, LOOK


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
    assert not {"batch_prompts", "length_power"} & known, f"KTOConfig has a field of that name itself now: {LOOK}"


def test_names_shown_on_model_cards_are_ours() -> None:
    assert {"_name", "_tag_names"} <= set(vars(KTOTrainer)), LOOK
    assert GPOTrainer._name == "GPO" and "gpo" in GPOTrainer._tag_names
