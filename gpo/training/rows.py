"""What a user's data set may look like, and the rows of token ids with targets that are trained on.

One row a completion, or one row a prompt with lists of K:

    prompt, completion            text or messages, tokenised here once
    prompt_ids, completion_ids    token ids, used as they are
    target                        wanted log-ratio in nats
    score                         preference score against the baseline, from which `GPOConfig` makes the target
    table                         one row a prompt: [K][M] raw scores
    tools, chat_template_kwargs   what the chat template is given beside messages, as in TRL

`prompt_id` keeps the answers of a prompt together; without it the prompt itself does. `ref_logps` and `anchor_logps`
are used when they are there. None in a row is the same as no such column. What comes out has ids, target, `score` (what
answers are ranked by: the given one, else the target before clamp and standardisation), `best` (1 for a prompt's best
answer) and `row`.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset

from gpo.targets import preference_targets, standardising_factor
from gpo.training.selection import best_and_worst, top_and_bottom
from gpo.training.trainer_config import GPOConfig

READY = ("prompt_id", "prompt_ids", "completion_ids", "target", "score", "best", "row")
KEPT = ("ref_logps", "anchor_logps")


def prepare_rows(
    dataset: Dataset, tokenizer: Any, args: GPOConfig, name: str = "train", factor: float | None = None
) -> tuple[Dataset, float | None]:
    """Rows as the trainer reads them, and what `args.standardise` multiplied their targets with, if anything.

    `factor` is that of the rows that are trained on, for an evaluation in the same units; None: by the root mean square
    of these rows. A data set that is prepared already comes back as it is, without a factor.
    Raises ValueError naming a missing column, or the row at fault.
    """
    if set(READY) <= set(dataset.column_names):
        return dataset, None
    _check_columns(dataset.column_names, name)
    groups: dict[Any, list[dict[str, Any]]] = {}
    for number, row in enumerate(dataset):
        try:
            for answer in _with_own_targets(list(_answers(row, tokenizer)), args):
                groups.setdefault(answer["prompt_id"], []).append({**answer, "number": number})
        except ValueError as error:
            raise ValueError(f"{name} data set, row {number}: {error}") from None
    try:
        for column in KEPT:
            _all_or_none([answer for group in groups.values() for answer in group], column, column)
        for group in groups.values():
            _all_or_none(group, "rank", "target or table", "of its prompt ")
            _all_or_none(group, "score", "score", "of its prompt ")
        chosen = [answer for group in groups.values() for answer in _selected(group, args)]
    except ValueError as error:
        raise ValueError(f"{name} data set: {error}") from None
    if not chosen:
        raise ValueError(f"{name} data set: no row is left to train on (it has {len(dataset)}, select={args.select!r})")
    if args.standardise is not None:
        targets = torch.tensor([row["target"] for row in chosen])
        factor = standardising_factor(targets, args.standardise) if factor is None else factor
        targets = (targets.double() * factor).float()
        # Last, as always: the clamp bounds what is trained on.
        targets = targets if args.clamp is None else targets.clamp(-args.clamp, args.clamp)
        chosen = [{**row, "target": target} for row, target in zip(chosen, targets.tolist(), strict=True)]
    return Dataset.from_list([{**row, "row": number} for number, row in enumerate(chosen)]), factor


def _check_columns(columns: Sequence[str], name: str) -> None:
    for pictures in ("image", "images"):
        if pictures in columns:
            raise ValueError(
                f"{name} data set: {pictures!r} is a column of pictures, and a GPOTrainer trains on text alone; leave "
                "the column out, and the rows that need it"
            )
    if {"prompt_ids", "completion"} <= set(columns) and not {"prompt", "completion_ids"} & set(columns):
        raise ValueError(f"{name} data set: 'completion' is text and needs 'prompt', not ids; it has {list(columns)}")
    for text, ids in (("prompt", "prompt_ids"), ("completion", "completion_ids")):
        if text not in columns and ids not in columns:
            raise ValueError(f"{name} data set: missing {ids!r} or {text!r}; it has {list(columns)}")
    if not {"target", "score", "table"} & set(columns):
        raise ValueError(f"{name} data set: missing 'target', 'score' or 'table'; it has {list(columns)}")


def _all_or_none(answers: Sequence[dict[str, Any]], name: str, called: str, which: str = "") -> None:
    """Answers that are trained on or ranked together are so by the same numbers."""
    without = [answer["number"] for answer in answers if name not in answer]
    if 0 < len(without) < len(answers):
        raise ValueError(f"row {without[0]} has no {called}, and others {which}have; give all of them one, or none")


def _answers(row: dict[str, Any], tokenizer: Any) -> Iterator[dict[str, Any]]:
    """The answers of a row, one or K: ids and what targets are made from."""
    ids = list(_tokenised(row, tokenizer))
    if not ids:
        raise ValueError("no completion; expected at least one")
    columns = {name: _of_each(row, name, len(ids)) for name in ("target", "score", *KEPT) if row.get(name) is not None}
    if row.get("table") is not None:
        columns["scores"] = _of_each(row, "table", len(ids))
    if not {"target", "score", "scores"} & set(columns):
        raise ValueError("no target, score or table; expected one of them")
    for number, (prompt_ids, completion_ids) in enumerate(ids):
        if not prompt_ids or not completion_ids:
            raise ValueError(f"{len(prompt_ids)} prompt and {len(completion_ids)} completion tokens; expected some")
        yield {
            "prompt_id": " ".join(map(str, prompt_ids)) if row.get("prompt_id") is None else str(row["prompt_id"]),
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            **{name: values[number] for name, values in columns.items()},
        }


def _of_each(row: dict[str, Any], column: str, count: int) -> list[Any]:
    """A column's value for each answer of the row."""
    values: list[Any] = row[column] if isinstance(row[column], list) else [row[column]]
    if len(values) != count:
        raise ValueError(f"{column} is for {len(values)} answers, and there are {count}")
    numbers = [number for value in values for number in (value if isinstance(value, list) else [value])]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError(f"{column} holds {values}; expected finite numbers")
    return values


def _tokenised(row: dict[str, Any], tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    prompt, prompt_ids, completion = (row.get(name) for name in ("prompt", "prompt_ids", "completion"))
    options = _template_options(row)
    if row.get("completion_ids") is not None:
        many = row["completion_ids"] if _nested(row["completion_ids"]) else [row["completion_ids"]]
        if prompt_ids is None:
            prompt_ids = _prompt_ids(_there(prompt, "prompt_ids or prompt"), tokenizer, options)
        yield from ((list(prompt_ids), list(ids or ())) for ids in many)
        return
    completion = _there(completion, "completion_ids or completion")
    # Messages of one completion are a list of dicts; K completions are a list of texts or of such lists.
    one = isinstance(completion, str) or (completion and isinstance(completion[0], dict))
    for single in [completion] if one else completion:
        yield tokenise(_there(prompt, "prompt"), _there(single, "completion"), tokenizer, options)


def _template_options(row: dict[str, Any]) -> dict[str, Any]:
    """What a row gives the chat template beside its messages; None is what only other rows of the table have."""
    tools, others = row.get("tools"), row.get("chat_template_kwargs") or {}
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise ValueError(f"tools holds {tools!r}; expected a list of tools, or its JSON ({error})") from None
    if not isinstance(tools, list | None) or not isinstance(others, dict):
        raise ValueError(
            f"tools holds {tools!r} and chat_template_kwargs {others!r}; expected a list (or its JSON) and a dict"
        )
    return {name: value for name, value in {"tools": tools, **others}.items() if value is not None}


def _there(value: Any, name: str) -> Any:
    """The value, unless it is None."""
    if value is None:
        raise ValueError(f"no {name}; expected one")
    return value


def _nested(ids: Sequence[Any]) -> bool:
    return bool(ids) and not isinstance(ids[0], int)


def _prompt_ids(prompt: Any, tokenizer: Any, options: dict[str, Any]) -> list[int]:
    if not isinstance(prompt, str):
        rendered = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, **options)
        return list(rendered["input_ids"])
    if options:
        raise ValueError(
            f"{', '.join(options)} would be given to the chat template, and prompt is text; give messages, or leave "
            "tools and chat_template_kwargs out"
        )
    return list(tokenizer(prompt)["input_ids"])


def tokenise(prompt: Any, completion: Any, tokenizer: Any, options: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Prompt and completion ids of texts or messages.

    Text ends with the end token; messages are rendered by the chat template with `options`. Raises ValueError when the
    ids of the prompt are not how those of both begin: the model would be trained on what it never sees when it answers.
    """
    prompt_ids = _prompt_ids(prompt, tokenizer, options)
    if isinstance(prompt, str):
        end = tokenizer.eos_token or ""
        text = completion if completion.endswith(end) else completion + end
        both = list(tokenizer(prompt + text)["input_ids"])
    else:
        turns = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        both = list(tokenizer.apply_chat_template([*prompt, *turns], return_dict=True, **options)["input_ids"])
    if both[: len(prompt_ids)] != prompt_ids:
        raise ValueError(
            "the prompt's tokens are not the beginning of those of prompt and completion; end the prompt at a token's "
            "border, mend the chat template, or give prompt_ids and completion_ids"
        )
    return prompt_ids, both[len(prompt_ids) :]


def _with_own_targets(answers: list[dict[str, Any]], args: GPOConfig) -> list[dict[str, Any]]:
    """Answers of a data set's row with `target` and `rank` where the row says enough: targets, or a table.

    A table is of its own row's answers: rows of the same prompt are not to be made one table.
    """
    if "target" in answers[0]:
        bound = _clamp_before_scaling(args)
        return [
            {
                **answer,
                "target": answer["target"] if bound is None else max(-bound, min(bound, answer["target"])),
                "rank": answer.get("score", answer["target"]),
            }
            for answer in answers
        ]
    if "scores" in answers[0]:
        return _with_targets(answers, [answer["scores"] for answer in answers], args)
    return answers


def _clamp_before_scaling(args: GPOConfig) -> float | None:
    """Targets that are scaled are clamped behind that: the clamp bounds what is trained on."""
    return args.clamp if args.standardise is None else None


def _with_targets(answers: list[dict[str, Any]], scores: list[list[float]], args: GPOConfig) -> list[dict[str, Any]]:
    """Answers with `target` in nats and `rank`, the same before the clamp, which makes extremes equal."""
    beta = args.target_beta
    if beta is None:
        raise ValueError("targets are made from scores with GPOConfig(target_beta=...), which has no default")
    table_KM = torch.tensor(scores, dtype=torch.float64)

    def made(clamp: float | None) -> list[float]:
        targets: list[float] = preference_targets(
            table_KM,
            method=args.target_method,
            tau=args.tau,
            beta=beta,
            clamp=clamp,
            exclude_self=args.exclude_self,
            log_z=args.log_z,
        ).tolist()
        return targets

    pairs = zip(answers, made(_clamp_before_scaling(args)), made(None), strict=True)
    return [{**answer, "target": target, "rank": rank} for answer, target, rank in pairs]


def _selected(group: list[dict[str, Any]], args: GPOConfig) -> list[dict[str, Any]]:
    """The answers of a prompt that are trained on, in pairs the better one first; what ranked them is their `score`."""
    if "rank" not in group[0]:
        group = _with_targets(group, [[answer["score"]] for answer in group], args)
    rank_K = torch.tensor([answer["rank"] for answer in group], dtype=torch.float64)
    best, worst = best_and_worst(rank_K)
    if args.select == "all":
        picked = list(range(len(group)))
    elif best == worst:
        return []  # all answers are equal: the prompt says nothing
    elif args.select == "best-and-worst":
        picked = [best, worst]
    else:
        # A prompt of which answers were left out may have fewer than were sampled.
        pairs = zip(*top_and_bottom(rank_K, min(args.select_n, len(group) // 2)), strict=True)
        picked = [k for pair in pairs for k in pair]
    kept = ("prompt_id", "prompt_ids", "completion_ids", "target", *KEPT)
    rows = [{name: group[k][name] for name in kept if name in group[k]} for k in picked]
    return [{**row, "score": group[k]["rank"], "best": float(k == best)} for row, k in zip(rows, picked, strict=True)]
