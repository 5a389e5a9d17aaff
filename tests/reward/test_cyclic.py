"""Cyclic data, the scalar ceiling against a search over all orders, ratings, and the experiment itself.

Run: python -m pytest tests/reward/test_cyclic.py
"""

import itertools
import json
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from reward.cyclic import compare_on_cycles
from reward.cyclic_ceiling import best_order_wins, scalar_ceiling
from reward.cyclic_data import n_cycle, read_cyclic, wins_to_pairs
from reward.cyclic_picture import embedding_picture
from reward.cyclic_ratings import CycleRule, cycles_of_ratings
from reward.errors import RewardInputError
from reward.head_settings import HeadTrainingSettings
from reward.pair_metrics import find_cycles
from reward.training_settings import TrainingSettings
from tests.tiny import save_tiny_model

torch.set_num_threads(1)
CHART = Path(__file__).parents[3] / "shared" / "data" / "cyclic" / "pokemon_gen6_typechart.json"
RULE = CycleRule()


def by_search(names: Sequence[str], wins: dict[tuple[str, str], int]) -> int:
    orders = itertools.permutations(names)
    return max(sum(n for (one, two), n in wins.items() if order.index(one) < order.index(two)) for order in orders)


@pytest.mark.parametrize("seed", range(12))
def test_the_ceiling_is_that_of_a_search_over_all_orders(seed: int) -> None:
    draw = random.Random(seed)
    names = "abcdef"
    wins = {edge: draw.randint(1, 3) for edge in itertools.permutations(names, 2) if draw.random() < 0.45}
    wins = wins or {("a", "b"): 1}
    assert best_order_wins(wins) == by_search(names, wins)


def test_ceilings_of_cycles_are_one_edge_short() -> None:
    assert [scalar_ceiling(n_cycle(n).pairs) for n in (3, 4, 5)] == [2 / 3, 3 / 4, 4 / 5]
    order = wins_to_pairs([("a", "b"), ("b", "c"), ("a", "c")], "q")
    assert scalar_ceiling(order) == 1.0
    large = wins_to_pairs([(str(i), str((i + 1) % 30)) for i in range(30)], "q")
    assert scalar_ceiling(large) is None


@pytest.mark.skipif(not CHART.is_file(), reason="the shared data are absent")
def test_the_type_chart_has_75_strict_pairs_and_42_cyclic_triples() -> None:
    data = read_cyclic(CHART, RULE)
    cycles = find_cycles(data.pairs)
    assert (len(data.pairs), cycles.cyclic_triples, cycles.decided_triples) == (75, 42, 128)
    assert scalar_ceiling(data.pairs) == 57 / 75


def test_a_win_table_names_its_answers_and_its_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"prompt": "p", "answers": {"r": "rock", "s": "scissors"}, "wins": [["r", "s"]]}))
    (found,) = read_cyclic(path, RULE).pairs
    assert (found.chosen[-1]["content"], found.rejected[-1]["content"]) == ("rock", "scissors")
    for wins, told in (
        ([["r", "x"]], "'x' is not among"),
        ([["r"]], "wins 1"),
        ([], "empty"),
        ([["r", "r"]], "wins 1"),
    ):
        path.write_text(json.dumps({"answers": ["r", "s"], "wins": wins}))
        with pytest.raises(RewardInputError, match=told):
            read_cyclic(path, RULE)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"wins": {"r": "s"}}, "wins is"),
        ({"wins": [["r", "s"]], "answers": {"r": "rock", "s": ["scissors"]}}, "answers is"),
        ({"wins": [["r", "s"]], "answers": ["r", 7]}, "answers is"),
        ({"wins": [["r", "s"]], "answers": 0}, "answers is 0"),
        ({"wins": [["r", "s"]], "prompt": 7}, "prompt is 7"),
        ({"fire": {"damageTaken": {"Fire": []}}}, r"fire\.damageTaken\.Fire is \[\], expected 0, 1, 2 or 3"),
        ({"fire": {"damageTaken": {"Fire": 4}}}, "is 4"),
        ({"fire": {"damageTaken": {"Fire": 0}}, "water": {}}, "water is {}, expected a type"),
        ({"fire": {"damageTaken": {"Fire": 0}}}, "no type of the chart beats another"),
        ({}, "leave no pair|there is no"),
    ],
)
def test_a_table_or_a_chart_of_another_form_is_told_at_its_place(tmp_path: Path, value: Any, told: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(value))
    with pytest.raises(RewardInputError, match=told):
        read_cyclic(path, RULE)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"wins": ' + "1" * 5000 + "}"], ids=["without bottom", "endless"])
def test_json_that_python_does_not_take_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(RewardInputError, match="cannot be read"):
        read_cyclic(tmp_path / "data.json", RULE)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": 7}, "row 1: prompt is 7, expected text"),
        ({"responses": [{"text": "a", "ratings": {"x": 10**400}}]}, "rating x is 1000"),
        ({"responses": [{"text": "a", "ratings": {"x": float("nan")}}]}, "rating x is nan, expected a finite number"),
    ],
)
def test_ratings_of_another_kind_are_told_with_their_row(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = ratings_file(tmp_path, {"x": 1})
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(RewardInputError, match=told):
        read_cyclic(path, RULE)


def ratings_file(folder: Path, *answers: dict[str, float]) -> Path:
    rated = [{"text": f"answer {number}", "ratings": ratings} for number, ratings in enumerate(answers)]
    path = folder / "ratings.jsonl"
    path.write_text(json.dumps({"prompt": "q", "responses": rated}) + "\n")
    return path


def test_cycles_of_ratings_take_one_criterion_an_edge(tmp_path: Path) -> None:
    answers = ({"x": 3, "y": 1, "z": 1}, {"x": 1, "y": 3, "z": 1}, {"x": 1, "y": 1, "z": 3})
    path = ratings_file(tmp_path, *answers)
    pairs = cycles_of_ratings(path, CycleRule(criteria=("x", "y", "z")))
    assert pairs is not None and [pair.chosen[-1]["content"] for pair in pairs] == ["answer 0", "answer 1", "answer 2"]
    assert len({pair.group for pair in pairs}) == 1 and find_cycles(pairs).cyclic_triples == 1
    both = cycles_of_ratings(path, CycleRule(criteria=("x", "y", "z"), edges="any", per_prompt=9))
    assert both is not None and len(both) == 6  # both ways round
    with pytest.raises(RewardInputError, match="no cycle"):
        cycles_of_ratings(path, CycleRule(criteria=("x", "y", "z"), least_difference=5))
    with pytest.raises(RewardInputError, match="no cycle"):
        cycles_of_ratings(path, CycleRule(criteria=("x",), edges="any"))


def test_ultrafeedback_is_read_in_its_own_columns(tmp_path: Path) -> None:
    def completion(text: str, **ratings: str) -> dict[str, object]:
        return {"response": text, "annotations": {name: {"Rating": rating} for name, rating in ratings.items()}}

    answers = [
        completion("one", honesty="5", helpfulness="N/A", truthfulness="1"),
        completion("two", honesty="3", helpfulness="4", truthfulness="2"),
        completion("three", helpfulness="2", truthfulness="4"),
    ]
    path = tmp_path / "ultrafeedback.jsonl"
    path.write_text(json.dumps({"source": "s", "instruction": "q", "completions": answers}) + "\n")
    pairs = cycles_of_ratings(path, CycleRule(criteria=("honesty", "helpfulness", "truthfulness")))
    assert pairs is not None and [pair.chosen[-1]["content"] for pair in pairs] == ["one", "two", "three"]
    assert pairs[0].chosen[0]["content"] == "q"


def test_ratings_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(RewardInputError, match=r"row 1: rating x is 'good'"):
        cycles_of_ratings(ratings_file(tmp_path, {"x": "good"}), RULE)  # type: ignore[dict-item]


def test_a_picture_is_well_formed_and_has_an_arrow_a_win() -> None:
    text = embedding_picture("a <b>", ["one", "two"], [[1, 0, 0.5, 0.5], [0, 1, -0.5, 0.5]], [(0, 1)], [0.7, 0.3])
    root = ElementTree.fromstring(text)
    tags = [child.tag.rpartition("}")[2] for child in root]
    assert tags.count("line") == 2 and tags.count("circle") == 2 * (2 + 1)


def test_a_gpm_of_width_four_learns_every_cycle_and_a_scalar_stays_below_its_ceiling(tmp_path: Path) -> None:
    backbone = save_tiny_model(tmp_path / "base")
    settings = TrainingSettings(
        value_head_dim=4,
        learning_rate=3e-4,
        head_learning_rate=1e-2,
        epochs=60,
        batch_pairs=4,
        precision="float32",
        loss="logistic",
    )
    data = [n_cycle(length) for length in (3, 4, 5)]
    rows = compare_on_cycles(data, str(backbone), settings, tmp_path / "out", lambda row: None)
    for gpm, bt in zip(rows[::2], rows[1::2], strict=True):
        assert gpm.model == "gpm" and gpm.accuracy == 1.0
        assert bt.model == "bt" and bt.scalar_ceiling is not None and bt.accuracy <= bt.scalar_ceiling
    assert all((tmp_path / "out" / f"{n}-cycle.svg").is_file() for n in (3, 4, 5))


def test_heads_on_a_frozen_backbone_learn_a_cycle_too(tmp_path: Path) -> None:
    backbone = save_tiny_model(tmp_path / "base")
    settings = HeadTrainingSettings(value_head_dim=4, learning_rate=1e-2, epochs=300, batch_pairs=4)
    gpm, bt = compare_on_cycles([n_cycle(4)], str(backbone), settings, tmp_path / "out", lambda row: None)
    assert (gpm.accuracy, gpm.steps) == (1.0, 300) and bt.accuracy <= 3 / 4 == bt.scalar_ceiling
    assert len(list((tmp_path / "out" / "4-cycle" / "hidden-states").iterdir())) == 1
