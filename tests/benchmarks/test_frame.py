"""The frame of the benchmarks: a claim knows whether it holds, and the table tells both kinds apart.

Run: python -m pytest tests/benchmarks/test_frame.py
"""

import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.all import BEGIN, END, FULL, SHORT, put_on_page
from benchmarks.frame import Claim, claim_lines, over_rounds, spread

REPOSITORY = Path(__file__).parents[2]
FAST = Claim(what="ours / theirs", value=3.2, sense="at least", target=3.0, spread=0.041)
FAT = Claim(what="memory", value=0.67, sense="at most", target=0.5)


def test_a_claim_holds_on_the_right_side_of_its_target() -> None:
    assert FAST.holds and not FAT.holds
    assert Claim(what="even", value=0.5, sense="at most", target=0.5).holds


def test_the_table_marks_what_falls_short_and_says_why() -> None:
    known = replace(FAT, reason="half of it is weights: [why](training.md#measured)")
    fast, fat, told = claim_lines([FAST, FAT, known])[2:]
    assert fast == "| ours / theirs | 3.2 | 4.1% | at least 3 | holds |"
    assert fat == "| memory | 0.67 |  | at most 0.5 | falls short, reason not known |"
    assert told.endswith("| falls short: half of it is weights: [why](training.md#measured) |")
    assert claim_lines([replace(FAST, reason="old")])[2:] == [fast]
    many = Claim(what="samples a second", value=33_912.4, sense="at least", target=20_000)
    assert claim_lines([many])[2] == "| samples a second | 33,912 |  | at least 20,000 | holds |"


@given(st.lists(st.floats(0.1, 1e6), min_size=2, max_size=9))
def test_the_spread_is_that_of_the_extremes_over_the_median(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert found == pytest.approx((max(values) - min(values)) / statistics.median(values), abs=6e-4)
    assert spread(values[:1]) is None


def test_numbers_around_zero_have_no_spread() -> None:
    assert over_rounds([-1.0, 0.0, 1.0]) == {"median": 0.0, "spread": None, "rounds": [-1.0, 0.0, 1.0]}


def test_the_table_is_put_between_the_marks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}old\n{END}below\n")
    put_on_page(page, "new", {})
    assert page.read_text() == f"above\n{BEGIN}\nnew\n{END}below\n"
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="expected the lines"):
        put_on_page(page, "new", {})


def test_performance_md_has_a_place_for_the_table() -> None:
    text = (REPOSITORY / "docs/performance.md").read_text("utf-8")
    assert text.index(BEGIN) < text.index(END)


def test_every_benchmark_that_is_listed_is_there() -> None:
    for name in {*SHORT, *FULL}:
        assert (REPOSITORY / "benchmarks" / f"{name}.py").is_file()
