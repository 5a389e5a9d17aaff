"""The report of a run that was made, not planted: the quick start's, or another that GPO_BROWSER_RUN names.

Run: make quickstart browser (or GPO_BROWSER_RUN=RUN_DIR python -m pytest tests/browser/test_real_run.py)
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpo.journal import RunDirectory
from gpo.report.page import write_report
from gpo.report.selection import select_prompts
from gpo.report.story import open_for_reading
from tests.browser.pages import Seen, browser, opened

ROOT = Path(__file__).parents[2]
TITLES = (
    "Win rate against the start",
    "Length",
    "KL from the start",
    "Length and score",
    "Scores",
    "Targets",
    "Stages",
)


@pytest.fixture(scope="module")
def run() -> RunDirectory:
    named = os.environ.get("GPO_BROWSER_RUN")
    root = Path(named) if named else ROOT / "runs/quickstart"
    if not named and not (root / "run.json").is_file():
        pytest.skip("no runs/quickstart; `make quickstart` makes it, or GPO_BROWSER_RUN=RUN_DIR names another run")
    return open_for_reading(root)


@pytest.fixture(scope="module")
def seen(run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    page = tmp_path_factory.mktemp("report") / "report.html"
    write_report(run, page)
    with browser() as chromium:
        found = opened(chromium, page, offline=True)
        print(f"{run.root}: ready after {found.ready_seconds():.2f} s; {page.stat().st_size / 1e6:.1f} MB")
        yield found


def test_its_charts_are_drawn_without_a_request_and_without_a_complaint(seen: Seen) -> None:
    captions = seen.page.locator("figure figcaption strong").all_text_contents()
    assert [title for title in TITLES if title not in captions] == []
    for title in TITLES:
        marks = seen.page.locator(f"figure:has(figcaption strong:text-is('{title}')) svg :is(path, rect, circle, line)")
        assert marks.count() > 3, title
    assert seen.complaints == [] and len(seen.requests) == 1


def test_each_of_its_stages_has_a_colour_of_its_own(run: RunDirectory, seen: Seen) -> None:
    stages = [line for line in run.journal() if line.get("event") == "stage"]
    bars = seen.page.locator("figure:has(figcaption strong:text-is('Stages')) svg g[aria-label='bar'] rect")
    colours = bars.evaluate_all("found => found.map(rect => getComputedStyle(rect).fill)")
    assert len(colours) == len(stages) and len(set(colours)) == len({line["stage"] for line in stages})


def test_a_search_finds_a_prompt_of_it_and_only_a_cyclic_one_shows_a_cycle(run: RunDirectory, seen: Seen) -> None:
    page = seen.page
    prompts = select_prompts(run, 10_000).prompts
    last = prompts[-1]
    page.fill("#query", last.prompt_id)
    page.wait_for_selector(f"#detail[data-prompt='{last.prompt_id}']")
    assert page.locator(".card .text").first.inner_text() != "", "its answers stand there"
    cyclic = next((one for one in prompts if any(time.cycle for time in one.appearances)), None)
    if cyclic is None:
        assert page.locator(".circle .cycle path").count() == 0
        return
    page.fill("#query", cyclic.prompt_id)
    page.wait_for_selector(f"#detail[data-prompt='{cyclic.prompt_id}'] .heat-map")
    assert page.locator(".circle .cycle path").count() == 3 and "A cycle:" in page.inner_text(".pictures")
