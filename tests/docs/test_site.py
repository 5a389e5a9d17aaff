"""The pages of docs/ hang together: each is in the site's list and in the index, and links lead to pages and headings.

`make site` builds them; this needs no generator.
Run: python -m pytest tests/docs/test_site.py
"""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def linked(page: str) -> list[str]:
    """Targets of a page's links that are not addresses; code is not looked at."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", (DOCS / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [target for target in LINK.findall(text) if not re.match(r"[a-z]+:", target)]


def headings(page: str) -> set[str]:
    """The anchors of a page's headings, as the site makes them."""
    found = re.findall(r"^#+ (.*)$", (DOCS / page).read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in found}


def test_every_page_is_once_in_the_list_of_the_site() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert sorted(page for entry in settings["nav"] for page in entry.values()) == PAGES


def test_the_index_leads_once_to_every_page() -> None:
    assert sorted([*linked("index.md"), "index.md"]) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_links_stay_among_the_documents_and_lead_somewhere(page: str) -> None:
    for target in linked(page):
        name, _, anchor = target.partition("#")
        path = (DOCS / (name or page)).resolve()
        assert path.is_relative_to(DOCS) and path.exists(), f"{page} links {target}"
        assert not anchor or anchor in headings(path.name), f"{page} links {target}, a heading that is not there"
