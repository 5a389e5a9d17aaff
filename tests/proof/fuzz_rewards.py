"""What is fuzzed of reward models: the files that are scored, the models, and all that is read before a training.

Trainings end where they would begin (`until_training`).
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from gpo.config.cyclic import CyclicConfig
from gpo.config.reward import RewardTrainConfig
from gpo.settings import Settings
from tests.proof import certain
from tests.proof.mutations import mutate_bytes
from tests.proof.odd_settings import odd_config, refused_whole
from tests.proof.odd_values import ODD_TEXTS, as_typed
from tests.proof.prepared import UNTIL_TRAINING, Prepared, Target, fresh, mutate_file, named, put
from tests.proof.row_forms import SUFFIXES, Rows, bad_rows, mutate_rows

PLACES = ("output", "cache")
"""Settings that say where is written: cases keep to their folder."""


def pairs(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """A file of pairs and groups is damaged, in each form that it may have, then scored."""
    rows = [json.loads(line) for line in (workplace / "pairs.jsonl").read_text().splitlines()]
    columns = sorted({column for row in rows for column in row})
    suffix = draw.choice(SUFFIXES)
    mutated = mutate_rows([{column: row.get(column) for column in columns} for row in rows], suffix, draw)
    data = put(folder, f"pairs{suffix}", mutated)
    wrong = bad_rows(mutated.content, suffix, certain.bad_comparison)
    words = _score(workplace / "gpm", data, folder)
    return Prepared(words, f"{suffix}: {mutated.done}", wrong, mutated.content)


def reward_model(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """A file of the reward model is damaged, then used."""
    model = fresh(folder) / "gpm"
    shutil.copytree(workplace / "gpm", model)
    path = draw.choice(sorted(path for path in model.iterdir() if path.is_file()))
    mutated = mutate_file(path.read_bytes(), path.suffix, draw)
    path.write_bytes(mutated.content)
    wrong = certain.bad_model_file(path.name, mutated.content)
    words = _score(model, workplace / "pairs.jsonl", folder)
    return Prepared(words, f"{path.name}: {mutated.done}", wrong, named(path.name, mutated))


def _score(model: Path, data: Path, folder: Path) -> list[str]:
    words = ["reward", "score", "--model", str(model), "--backend", "transformers"]
    return [*words, "--data", str(data), "--output", str(folder / "scores.jsonl")]


def reward_config(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """The config of a reward training is damaged in a setting or in its bytes, or its output has an odd name."""
    source = {"path": str(workplace / "other.jsonl"), "name": "other", "keep_repeats": False}
    values = {"backbone": str(workplace / "policy"), "train": [source], "max_length": 128, "value_head_dim": 4}
    values |= {"output": "out", "tune": draw.choice(("heads", "full", "adapter"))}
    if values["tune"] == "full":
        values |= {"heldout": str(workplace / "other.jsonl"), "cluster": {"threads": 1}}
    name = "out" + (draw.choice(ODD_TEXTS) if draw.random() < 0.1 else "")

    def refused(found: Any) -> bool:
        return refused_whole({**found, **dict.fromkeys(PLACES, "given by words")}, RewardTrainConfig)

    content, done = _damaged_config(values, draw, RewardTrainConfig)
    words = ["reward", "train", *_words(fresh(folder), content), *_places(folder, name)]
    wrong = certain.bad_settings(content, refused)
    return Prepared(words, f"{done}; output {name!r:.20}", wrong, content, UNTIL_TRAINING)


def cyclic_config(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """The config of the cyclic experiment is damaged in a setting or in its bytes."""
    values = {"backbone": str(workplace / "policy"), "cycles": [3, 4], "tune": draw.choice(("full", "heads"))}
    values |= {"head_learning_rate": 0.01, "epochs": 2, "ratings": {"edges": "any", "per_prompt": 2}}
    content, done = _damaged_config(values, draw, CyclicConfig)
    words = ["reward", "cyclic", *_words(fresh(folder), content), "--output", str(folder / "cyclic")]
    # Without data of one's own there must be cycles to make.
    wrong = certain.bad_settings(content, lambda found: found.get("cycles") == [] or refused_whole(found, CyclicConfig))
    return Prepared(words, done, wrong, content, UNTIL_TRAINING)


def _damaged_config(values: dict[str, Any], draw: Random, config: type[Settings]) -> tuple[bytes, str]:
    if draw.random() < 0.2:
        mutated = mutate_bytes(yaml.safe_dump(values).encode(), draw)
        return mutated.content, mutated.done
    changed, done = odd_config(values, draw, config, PLACES)
    return yaml.safe_dump(changed).encode(), done


def _words(folder: Path, content: bytes) -> list[str]:
    (folder / "case.yaml").write_bytes(content)
    return [str(folder / "case.yaml")]


def _places(folder: Path, name: str = "out") -> list[str]:
    return [f"output={as_typed(f'{folder}/{name}')}", f"cache={as_typed(str(folder / 'cache'))}"]


def cyclic_data(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """Cyclic preferences of one's own are damaged: a win table, a chart of types, ratings in two forms."""
    kind = draw.choice(sorted(CYCLIC))
    value, bad = CYCLIC[kind]
    if isinstance(value, list):
        suffix = draw.choice(SUFFIXES)
        mutated = mutate_rows(value, suffix, draw)
        wrong = suffix != ".json" and bad_rows(mutated.content, suffix, bad)
    else:
        suffix, mutated = ".json", mutate_file(json.dumps(value).encode(), ".json", draw)
        wrong = certain.no_json(mutated.content) or bad(json.loads(mutated.content.decode().removeprefix("\ufeff")))
    words = ["reward", "cyclic", f"backbone={workplace / 'policy'}", "ratings.edges=any"]
    words += ["--data", str(put(folder, f"data{suffix}", mutated)), "--output", str(folder / "cyclic")]
    done = f"{kind} {suffix}: {mutated.done}"
    return Prepared(words, done, wrong, named(kind, mutated), UNTIL_TRAINING)


_WINS = [["rock", "scissors"], ["scissors", "paper"], ["paper", "rock"]]
_RATINGS = ((5, 1.5, 3), (3, 5, 1.5), (1.5, 3, 5))
_CRITERIA = ("honesty", "truthfulness", "helpfulness")
CYCLIC: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "wins": (
        {"prompt": "Name one.", "answers": {"rock": "a rock", "scissors": "some", "paper": "a sheet"}, "wins": _WINS},
        certain.bad_wins,
    ),
    "types": (
        {
            "fire": {"damageTaken": {"Fire": 2, "Water": 1, "Grass": 2}},
            "grass": {"damageTaken": {"Fire": 1, "Water": 2, "Grass": 2}},
            "water": {"damageTaken": {"Fire": 2, "Water": 2, "Grass": 1}},
        },
        lambda value: not isinstance(value, dict | list),
    ),
    "ratings": (
        [
            {
                "prompt": f"Name {number}.",
                "responses": [
                    {"text": f"answer {place}", "ratings": dict(zip(_CRITERIA, ratings, strict=True))}
                    for place, ratings in enumerate(_RATINGS)
                ],
            }
            for number in range(3)
        ],
        certain.bad_rated,
    ),
    "ultrafeedback": (
        [
            {
                "instruction": f"Name {number}.",
                "completions": [
                    {
                        "response": f"answer {place}",
                        "annotations": {
                            name: {"Rating": str(rating)} for name, rating in zip(_CRITERIA, ratings, strict=True)
                        },
                    }
                    for place, ratings in enumerate(_RATINGS)
                ],
            }
            for number in range(3)
        ],
        lambda row: not isinstance(row, dict),
    ),
}
"""Kind -> a good file's value or rows, and what is certainly wrong with the value or with a row."""


def training_pairs(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """Pairs to train on, or held out, are damaged: with margins or soft labels, in groups, alone or in a mixture."""
    loss = draw.choice(("logistic", "soft", "regression", "margin"))
    tune = draw.choice(("heads", "full"))
    streamed, template = tune == "full" and draw.random() < 0.3, draw.random() < 0.7
    suffix, which = draw.choice(SUFFIXES), draw.choice(("train", "train", "heldout"))
    mutated = mutate_rows(training_rows(loss, talks=draw.random() < 0.5), suffix, draw)
    data = fresh(folder) / "data"
    data.mkdir()
    (data / f"damaged{suffix}").write_bytes(mutated.content)
    damaged = {"path": str(data if draw.random() < 0.2 else data / f"damaged{suffix}"), "template": template}
    damaged |= {"name": "damaged", "keep_repeats": draw.random() < 0.3}
    other = {"path": str(workplace / "other.jsonl")}
    if tune == "full" and draw.random() < 0.5:
        damaged, other = damaged | {"weight": 2.0}, other | {"weight": 1.0}
    values: dict[str, Any] = {"backbone": str(workplace / "policy"), "output": "out", "tune": tune, "loss": loss}
    values |= {"max_length": 128, "train": [damaged, other] if draw.random() < 0.5 else [damaged]}
    if which == "heldout":
        values |= {"heldout": [damaged], "train": [other]}
    if streamed:
        values |= {"stream_buffer": 4, "max_steps": 2}
    words = ["reward", "train", *_words(folder, yaml.safe_dump(values).encode()), *_places(folder)]

    def bad(row: Any) -> bool:
        return certain.bad_training_pair(row, hard=loss == "margin", alone=not template)

    # Of a stream only the beginning is read before a training.
    wrong = bad_rows(mutated.content, suffix, bad) and not (streamed and which == "train")
    told = f"{which}, {tune}, {loss}{', streamed' * streamed}{', custom' * (not template)}, {suffix}: {mutated.done}"
    return Prepared(words, told, wrong, mutated.content, UNTIL_TRAINING)


def training_rows(loss: str, *, talks: bool) -> Rows:
    """Cycles of three answers to four prompts, labelled as a loss reads it; every row has all columns."""
    rows = []
    for prompt in ("Choose.", "Hand?", "Which one?", "Go"):
        for place, answers in enumerate((("paper", "rock"), ("scissors", "paper"), ("rock", "scissors"))):
            row: dict[str, Any] = dict(zip(("chosen", "rejected"), answers, strict=True)) | {"instruction": prompt}
            if talks:
                ask = {"role": "user", "content": prompt}
                row = {
                    side: [ask, {"role": "assistant", "content": answer}]
                    for side, answer in zip(("chosen", "rejected"), answers, strict=True)
                }
            row |= {"group": f"group of {prompt}", "target_prob": None, "margin": None}
            if loss in ("soft", "regression"):
                row["target_prob"] = (1.0, 0.75, 0.25)[place]
            if loss == "margin":
                row["margin"] = (0.5, 1.0, -1.0)[place]
            rows.append(row)
    return rows


TARGETS: tuple[Target, ...] = (pairs, reward_model, reward_config, cyclic_config, cyclic_data, training_pairs)
