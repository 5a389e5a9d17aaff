"""Tables of single prompts in a report's page: readable at any size, and of the answers themselves where they can be.

Run: make browser (or python -m pytest tests/browser)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpo.report.page import write_report
from tests.browser.pages import browser, opened
from tests.gpo.report_runs import ATTACKING, plant_baselines, plant_run


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.mark.parametrize("answers", [3, 9, 16])
@pytest.mark.parametrize("width", [360, 1300])
def test_the_numbers_of_a_heat_map_never_lie_over_each_other(
    chromium: Any, tmp_path: Path, answers: int, width: int
) -> None:
    write_report(plant_run(tmp_path / "run", prompts=2, answers=answers), tmp_path / "report.html")
    found = opened(chromium, tmp_path / "report.html", viewport={"width": width, "height": 740})
    found.ready_seconds()
    found.page.fill("#query", "attack")
    texts_of = f"#detail[data-prompt='{ATTACKING}'] .heat-map g[aria-label='text'] text"
    found.page.wait_for_selector(texts_of, state="attached")
    boxes = found.page.locator(texts_of).evaluate_all(
        "found => found.map(one => one.getBoundingClientRect()).map(box => [box.left, box.right, box.top])"
    )
    assert len(boxes) == answers**2
    rows = [boxes[start : start + answers] for start in range(0, len(boxes), answers)]
    for row in rows:
        assert len({round(top) for _, _, top in row}) == 1
        assert all(right < left for (_, right, _), (left, _, _) in zip(row, row[1:], strict=False))
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_prompt_scored_against_a_baseline_shows_its_own_table_or_says_why_there_is_none(
    chromium: Any, tmp_path: Path
) -> None:
    directory = plant_run(tmp_path / "run", prompts=2, iterations=1)
    plant_baselines(directory)
    write_report(directory, tmp_path / "report.html")
    found = opened(chromium, tmp_path / "report.html", offline=True)
    found.ready_seconds()
    page = found.page
    page.check("#only-cycles")
    own = "figure:has(strong:text-is('Scores of these answers against each other')) .heat-map g[aria-label='cell'] rect"
    for kind, cells in {"previous": 9, "optimistic": 0}.items():
        page.fill("#query", f"against {kind}")
        page.wait_for_selector(f"#detail .message:has-text('against {kind}')")
        assert page.locator(own).count() == cells
        assert page.locator(".circle .cycle path").count() == 3
        assert "A cycle: A beats B beats C beats A." in page.inner_text(".pictures")
    page.fill("#query", "against answers")
    page.wait_for_selector("#count:has-text('0 of')")
    page.uncheck("#only-cycles")
    page.wait_for_selector("#detail .message:has-text('against answers')")
    assert page.locator(".heat-map").count() == 1 and page.locator(".circle").count() == 0
    assert "their judge gave no embeddings" in page.inner_text(".pictures")
    assert found.complaints == []
