"""The forms of a run's JSON files as far as reports read them: a damaged one is named, and is no crash further in.

Keys that are not named here are let through as they are.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AllowInfNan, BaseModel, ConfigDict, Field, ValidationError

from gpo.errors import UserError

Number = Annotated[float, AllowInfNan(False)]


class Form(BaseModel):
    """Strict about types."""

    model_config = ConfigDict(extra="allow", strict=True)


class TrainSettings(Form):
    """What reports tell of `train`."""

    select: str = "all"
    standardise: Number | None = None
    select_n: int = 1


class PreferenceSettings(Form):
    """What reports tell of `preference`."""

    train_on: str | None = None


class RunSettings(Form):
    """What reports tell of the config."""

    preference: PreferenceSettings = PreferenceSettings()
    train: TrainSettings = TrainSettings()


class RunState(Form):
    """`run.json`."""

    config: RunSettings = RunSettings()


class Rate(Form):
    """A win rate with its interval."""

    win_rate: Number
    ci95: Annotated[list[Number], Field(min_length=2, max_length=2)]
    n_prompts: int


class Verdict(Form):
    """What a judge says of an iteration."""

    vs_start: Rate
    vs: dict[str, Rate]


class Evaluation(Form):
    """`evaluation.json`."""

    iteration: int
    judges: dict[str, Verdict]
    length_tokens: Number
    ended_share: Number
    kl_nats_per_answer: Number
    cyclic_share: Number | None
    warnings: list[str] = []
    watch_off: str | None = None


class Turn(Form):
    """A message."""

    role: str
    content: str


def _as_many(row: "HeldoutRow") -> "HeldoutRow":
    if not len(row.completion) == len(row.completion_ids) == len(row.finish_reason):
        raise ValueError("completion, completion_ids and finish_reason differ in length")
    return row


class HeldoutRow(Form):
    """A held-out prompt and its answers."""

    prompt_id: str
    prompt: list[Turn]
    completion: list[str]
    completion_ids: list[list[int]]
    finish_reason: list[str]
    weight_version: str


class Heldout(Form):
    """`heldout.json`."""

    prompts: list[Annotated[HeldoutRow, AfterValidator(_as_many)]]


def read_form(path: Path, form: type[Form]) -> dict[str, Any]:
    """The values of a JSON file; raises UserError naming it and the first place that is not as a run writes it."""
    values = read_json(path)
    try:
        form.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the whole file"
        raise UserError(
            f"{path}: damaged at {where} ({fault['msg']}); put a copy of the file in its place, or start the run anew"
        ) from None
    found: dict[str, Any] = values
    return found


def read_json(path: Path) -> Any:
    """A JSON file of the run; raises UserError naming it where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable ({error}); remove it and start the run again to have it anew") from None
