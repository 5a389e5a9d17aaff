"""Arguments of a GPOTrainer: what means nothing, is misspelt or out of range is told before a model is loaded.

Run: python -m pytest tests/gpo/training/test_trainer_config.py
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from transformers import HfArgumentParser
from trl import TrlParser

from gpo.config.preference import TargetConfig
from gpo.config.train import StopConfig, TrainConfig
from gpo.settings import Settings
from gpo.training.layout import Layout
from gpo.training.trainer_config import RANGES, GPOConfig, LayoutOrAuto


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "dpo"}, "objective='dpo' needs pairs; set select='best-and-worst'"),
        *(
            (
                {"objective": objective, "select": "best-and-worst", name: 0.5},
                f"='{objective}' has no targets, so {name}=0.5",
            )
            for objective in ("dpo", "ipo")
            for name in ("pull", "length_power", "standardise", "clamp")
        ),
        *(
            ({name: value}, f"{name}={value} has no effect on a GPOTrainer")
            for name, value in {
                "data_seed": 1,
                "pad_to_multiple_of": 8,
                "label_smoothing_factor": 0.1,
                "dataset_num_proc": 2,
                "logging_nan_inf_filter": True,
            }.items()
        ),
        ({"max_length": 512}, "max_length=512: rows are used as they are"),
        ({"batch_tokens": 0}, "batch_tokens is 0; expected at least 1"),
        ({"pull": 1.5}, "pull is 1.5; expected 0..1"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size=4 has no effect .*: set batch_prompts"),
        ({"loss_type": "kto"}, "loss_type='kto' has no effect on a GPOTrainer: set objective"),
        ({"activation_offloading": True}, "activation_offloading=True needs a GPU"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        GPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "DPO"}, "objective is 'DPO'; expected one of 'regression', 'dpo', 'ipo'"),
        ({"select": "bestworst"}, "select is 'bestworst'; expected one of 'all', 'best-and-worst', 'top-and-bottom'"),
        ({"layout": "pack"}, "layout is 'pack'; expected one of 'padded', 'packed', 'shared', 'auto'"),
        ({"target_method": "kto"}, "target_method is 'kto'; expected one of 'gpo', 'sppo', 'gpo-reference', "),
        ({"log_z": None}, "log_z is None; expected one of 'zero', 'mean', 'logmeanexp'"),
        ({"compute_dtype": "bf16"}, "compute_dtype is 'bf16'; expected one of 'auto', 'bfloat16', 'float32'"),
    ],
)
def test_a_word_that_is_none_of_its_options_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        GPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)


IN_A_RUN: dict[str, tuple[type[Settings], str]] = {
    "clamp": (TargetConfig, "clamp"),
    "target_beta": (TargetConfig, "beta"),
    "tau": (TargetConfig, "tau"),
    "beta": (TrainConfig, "pair_beta"),
    **{f"stop_{name}": (StopConfig, name) for name in ("kl", "length_growth", "collapse", "window")},
    **{
        name: (TrainConfig, name)
        for name in ("standardise", "select_n", "batch_prompts", "batch_tokens", "length_power", "pull", "sft")
    },
}
NUMBERS = (-1, -0.5, 0, 0.0, 0.5, 1, 1.5, 5, float("inf"), float("nan"), "much")


@pytest.mark.parametrize("name", sorted({name for names in RANGES for name in names.split()}))
def test_a_number_is_refused_where_a_run_refuses_it(name: str, tmp_path: Path) -> None:
    kind, field = IN_A_RUN[name]
    needed = {"beta": 1.0} if kind is TargetConfig and field != "beta" else {}
    refused = []
    for number in NUMBERS:
        try:
            kind.model_validate({**needed, field: number})
            GPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: number})
        except ValidationError:
            refused.append(number)
            with pytest.raises(
                ValueError, match=f"{name} is {number!r}; expected (at least 1|a positive|a finite|0..1)"
            ):
                GPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: number})
    assert refused


@pytest.mark.parametrize("power", [0.0, 0.5, 1, 1.5, 20.0])
def test_lengths_may_be_taken_to_any_finite_power_that_is_not_negative(power: float, tmp_path: Path) -> None:
    args = GPOConfig(output_dir=str(tmp_path), use_cpu=True, length_power=power)
    assert args.length_power == TrainConfig(length_power=power).length_power == power


@pytest.mark.parametrize("parser", [TrlParser, HfArgumentParser])
def test_a_command_line_gives_the_arguments(
    parser: type[HfArgumentParser], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reads, place = parser([GPOConfig]), ["--output_dir", str(tmp_path), "--use_cpu"]
    assert "--batch_prompts" in reads.format_help()
    (args,) = reads.parse_args_into_dataclasses([*place, "--layout", "padded", "--target_beta", "0.5"])
    assert (args.layout, args.target_beta, args.objective) == ("padded", 0.5, "regression")
    (plain,) = reads.parse_args_into_dataclasses(place)
    assert plain.layout == "auto"
    with pytest.raises(SystemExit):
        reads.parse_args_into_dataclasses([*place, "--layout", "pack"])
    assert "invalid choice: 'pack'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="layout is 'pack'"):
        replace(plain, layout="pack")


def test_auto_stands_beside_every_layout() -> None:
    assert get_args(LayoutOrAuto) == (*get_args(Layout), "auto")


@pytest.mark.parametrize("options", [{}, {"compute_dtype": "float32"}, {"fp16": True}, {"bf16": False}])
def test_arguments_can_be_copied_with_a_change(options: dict[str, Any], tmp_path: Path) -> None:
    args = GPOConfig(output_dir=str(tmp_path), use_cpu=True, learning_rate=1e-6, **options)
    changed = replace(args, learning_rate=1e-5)
    assert changed.learning_rate == 1e-5 and args.learning_rate == 1e-6
    assert replace(changed, learning_rate=1e-6).to_dict() == args.to_dict()
