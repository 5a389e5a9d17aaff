"""`gpo reward cyclic`: GPM against Bradley-Terry on cyclic preferences."""

import logging
import os
from pathlib import Path
from typing import Any

from gpo.config.cyclic import CyclicConfig
from gpo.errors import StageError, UserError
from gpo.files import write_json
from gpo.modelfiles import has_chat_template, parameter_count, read_model_config
from gpo.printable import tell

logger = logging.getLogger(__name__)


def compare(config: CyclicConfig, data: Path | None, output: Path, *, check: bool = False) -> int:
    """Train, write cyclic.json and pictures, print the table; returns the exit status.

    Raises StageError when `check` is on and the models did not come out as they must.
    """
    from reward.errors import RewardInputError

    backbone = Path(config.backbone)
    read_model_config(backbone)
    parameter_count(backbone)
    if not has_chat_template(backbone):
        raise UserError(f"backbone = {backbone}: its tokenizer has no chat template")
    try:
        rows = _compare(config, data, output)
    except RewardInputError as error:
        raise UserError(str(error)) from None
    wrong = shortcomings(rows) if check else []
    if wrong:
        raise StageError(f"{'; '.join(wrong)}; the models are in {output}: try more epochs or another learning rate")
    return 0


def shortcomings(rows: list[Any]) -> list[str]:
    """Where a GPM misses a pair, or a Bradley-Terry model is above what any scalar reward can reach."""
    wrong = [
        f"{row.data}: the GPM is right on {row.accuracy:.1%} of {row.pairs} pairs, expected all"
        for row in rows
        if row.model == "gpm" and row.accuracy < 1
    ]
    return wrong + [
        f"{row.data}: Bradley-Terry is right on {row.accuracy:.1%}, above the scalar ceiling {row.scalar_ceiling:.1%}"
        for row in rows
        if row.model == "bt" and row.scalar_ceiling is not None and row.accuracy > row.scalar_ceiling + 1e-9
    ]


def _compare(config: CyclicConfig, data: Path | None, output: Path) -> list[Any]:
    from reward.cyclic_data import n_cycle, read_cyclic
    from reward.cyclic_ratings import CycleRule

    rule = CycleRule(**config.ratings.model_dump())
    if data is None and not config.cycles:
        raise UserError(
            "cycles = []: there is nothing to train on; expected lengths of cycles, or preferences by --data"
        )
    sets = [read_cyclic(data, rule)] if data is not None else [n_cycle(length) for length in config.cycles]
    from gpo.cpu import prepare_process

    prepare_process(len(os.sched_getaffinity(0)))
    from reward.cyclic import as_json, compare_on_cycles

    rows: list[Any] = []

    def row_told(row: Any) -> None:
        rows.append(row)
        write_json(output / "cyclic.json", as_json(rows))
        logger.info("%s, %s: %.1f %% of %d pairs", row.data, row.model, 100 * row.accuracy, row.pairs)

    compare_on_cycles(sets, str(Path(config.backbone).absolute()), _settings(config), output, row_told)
    tell(table(rows))
    return rows


def _settings(config: CyclicConfig) -> Any:
    """Of a whole training, or of the heads alone."""
    from reward.head_settings import HeadTrainingSettings
    from reward.training_settings import TrainingSettings

    both = ("value_head_dim", "gated", "tau", "epochs", "batch_pairs", "max_length", "seed")
    values: dict[str, Any] = {name: getattr(config, name) for name in both}
    if config.tune == "heads":
        return HeadTrainingSettings(learning_rate=config.head_learning_rate or config.learning_rate, **values)
    return TrainingSettings(
        learning_rate=config.learning_rate,
        head_learning_rate=config.head_learning_rate,
        precision=config.dtype,
        evaluate_steps=None,
        **values,
    )


def table(rows: list[Any]) -> str:
    """One line a data set."""
    lines = [f"{'data':24} {'pairs':>5}  {'GPM':>7}  {'BT':>7}  scalar ceiling"]
    for name in dict.fromkeys(row.data for row in rows):
        found = {row.model: row for row in rows if row.data == name}
        ceiling = found["gpm"].scalar_ceiling
        told = "not computed" if ceiling is None else f"{ceiling:.1%}"
        accuracies = f"{found['gpm'].accuracy:7.1%}  {found['bt'].accuracy:7.1%}"
        lines.append(f"{name:24.24} {found['gpm'].pairs:5}  {accuracies}  {told}")
    return "\n".join(lines)
