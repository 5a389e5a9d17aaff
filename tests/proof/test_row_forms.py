"""Files of rows in each form: a good one is never called wrong, a damaged one is never as it was.

Run: python -m pytest tests/proof/test_row_forms.py
"""

from random import Random
from typing import Any

import pytest

from tests.proof import certain
from tests.proof.fuzz_rewards import CYCLIC, training_rows
from tests.proof.row_forms import SUFFIXES, bad_rows, mutate_rows, written

DRAWS = 60
LOSSES = ("logistic", "soft", "regression", "margin")


def bad(row: Any) -> bool:
    return certain.bad_training_pair(row, hard=False, alone=True)


@pytest.mark.parametrize("suffix", sorted(set(SUFFIXES)))
@pytest.mark.parametrize("talks", [False, True], ids=["texts", "talks"])
def test_good_pairs_are_never_called_wrong_and_damaged_ones_are_other_files(suffix: str, talks: bool) -> None:
    for loss in LOSSES:
        rows = training_rows(loss, talks=talks)
        good = written(rows, suffix)
        assert not bad_rows(good, suffix, bad), loss
        made = [mutate_rows(rows, suffix, Random(seed)).content for seed in range(DRAWS)]
        assert good not in made and 5 < sum(bad_rows(content, suffix, bad) for content in made) <= DRAWS


@pytest.mark.parametrize("suffix", sorted(set(SUFFIXES)))
def test_a_file_that_was_cut_or_has_no_rows_is_wrong(suffix: str) -> None:
    good = written(training_rows("soft", talks=True), suffix)
    assert bad_rows(good[: len(good) // 2 - 5], suffix, bad) and bad_rows(written([], suffix), suffix, bad)


@pytest.mark.parametrize(
    "label",
    [
        {"group": ""},
        {"group": True},
        {"group": []},
        {"target_prob": 1.5},
        {"target_prob": "1"},
        {"target_prob": float("nan")},
        {"margin": 10**400},
        {"margin": True},
        {"chosen": None},
    ],
)
def test_a_label_of_another_kind_or_beyond_its_bounds_is_wrong(label: dict[str, Any]) -> None:
    (row, *_) = training_rows("logistic", talks=False)
    assert bad(row | label) and not bad(row | {"group": 7, "target_prob": 0.5, "margin": -1})


def test_what_a_loss_and_a_form_without_template_allow_is_told_apart() -> None:
    (row, *_) = training_rows("logistic", talks=True)
    soft, long = row | {"target_prob": 0.5}, row | {"chosen": [row["chosen"][0], *row["chosen"]]}
    for pair in (soft, long):
        assert not certain.bad_training_pair(pair, hard=False, alone=False)
    assert certain.bad_training_pair(soft, hard=True, alone=False)
    assert certain.bad_training_pair(long, hard=False, alone=True)


def test_good_cyclic_data_are_never_called_wrong() -> None:
    for value, is_bad in CYCLIC.values():
        assert not any(map(is_bad, value)) if isinstance(value, list) else not is_bad(value)


@pytest.mark.parametrize(
    "change", [{"wins": []}, {"wins": [["rock", "rock"]]}, {"wins": 7}, {"answers": {"rock": 1}}, {"prompt": 7}]
)
def test_a_win_table_of_another_form_is_wrong(change: dict[str, Any]) -> None:
    value, is_bad = CYCLIC["wins"]
    assert is_bad(value | change)
