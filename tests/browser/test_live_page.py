"""`gpo report --watch`: a live page on loopback that follows the run and answers nobody else.

Run: python -m pytest tests/browser/test_live_page.py
"""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpo.errors import UserError
from gpo.journal import RunDirectory
from gpo.report import live
from gpo.report.story import tell
from tests.browser.pages import browser, opened
from tests.gpo.report_runs import plant_evaluation, plant_run


@pytest.fixture
def served(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, Any]]:
    """(run directory of 4 prompts or as many as the test asks for, server at work)."""
    monkeypatch.setattr(live, "QUIET_SECONDS", 0.1)
    directory = plant_run(tmp_path, prompts=getattr(request, "param", 4))
    with live.make_server(directory, 0, 100) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield directory, server
        server.shutdown()
        thread.join(10)


def ask(server: Any, path: str, host: str | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    return connection.getresponse()


def test_it_listens_on_loopback_only_and_answers_only_those_who_name_it(served: tuple[Any, Any]) -> None:
    _, server = served
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/").status == ask(server, "/", "localhost:8642").status == 200
    assert ask(server, "/", "attacker.example").status == ask(server, "/version", "attacker.example:80").status == 421
    assert ask(server, "/config.yaml").status == ask(server, "/../run.json").status == 404


def test_no_other_page_may_show_it_in_a_frame(served: tuple[Any, Any]) -> None:
    _, server = served
    assert all(ask(server, path).headers["X-Frame-Options"] == "DENY" for path in ("/", "/version", "/none"))


def test_a_page_says_which_version_it_is_and_a_line_written_meanwhile_is_news(
    served: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, server = served
    before = ask(server, "/version").read().decode()

    def tell_slowly(of: RunDirectory) -> dict[str, Any]:
        story = tell(of)
        directory.record("shard", iteration=1, shard=0)
        return story

    monkeypatch.setattr(live, "tell", tell_slowly)
    page = ask(server, "/").read().decode()
    assert f'data-version="{before}"' in page
    monkeypatch.undo()
    time.sleep(0.1)
    wait_until(lambda: ask(server, "/version").read().decode() != before)


def test_a_damaged_file_is_an_answer_that_asks_again_and_no_traceback(
    served: tuple[Any, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    directory, server = served
    shard = directory.shard(1, 0)
    whole = shard.read_bytes()
    shard.write_bytes(b"PAR1 not really")
    answer = ask(server, "/")
    assert answer.status == 503 and answer.headers["Refresh"] == "5"
    assert "shard-00000.parquet: not a readable rollout shard" in answer.read().decode()
    shard.write_bytes(whole)
    assert ask(server, "/").status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_port_that_is_taken_is_one_message(served: tuple[Any, Any]) -> None:
    directory, server = served
    with pytest.raises(UserError, match=f"--port {server.server_port}.*choose another"):
        live.make_server(directory, server.server_port, 10)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_new_evaluation_appears_on_the_open_page_and_the_search_stays(served: tuple[Any, Any]) -> None:
    directory, server = served
    with browser() as chromium:
        seen = opened(chromium, f"http://localhost:{server.server_port}/")
        seen.ready_seconds()
        assert "2 of 2 iterations" in seen.page.inner_text("#tiles")
        seen.page.fill("#query", "zebra")
        plant_evaluation(directory, 3)
        seen.page.wait_for_selector("#tiles:has-text('3 of 2 iterations')", timeout=20_000)
        seen.page.wait_for_selector("#count:has-text('1 of 8')")
        assert seen.page.input_value("#query") == "zebra"
        assert seen.complaints == []
        assert all(url.startswith(f"http://localhost:{server.server_port}/") for url in seen.requests)


PLACE = """() => ({
  values: ["query", "seen", "order"].map((id) => document.getElementById(id).value),
  checks: ["in-answers", "only-cycles", "only-cut"].map((id) => document.getElementById(id).checked),
  page: document.getElementById("page").textContent,
  prompt: document.getElementById("detail").dataset.prompt,
  tab: document.querySelector(".tabs [aria-pressed=true]").textContent,
  theme: document.documentElement.dataset.theme,
  focus: document.activeElement.id || document.activeElement.textContent,
  open: [...document.querySelectorAll("details")].map((one) => one.open),
  top: Math.round(scrollY),
})"""


NEW = "html[data-live]:not([data-old])"
"""A page that took the place of one marked as old, and has put back what was kept."""


def load_anew(page: Any, directory: RunDirectory) -> None:
    """Give the run news, and wait until the page has them and has put back what it kept."""
    page.evaluate("document.documentElement.dataset.old = 'true'")
    directory.record("shard", iteration=1, shard=0)
    page.wait_for_selector(NEW, state="attached", timeout=20_000)


@pytest.mark.parametrize("served", [200], indirect=True)
def test_what_the_reader_chose_typed_opened_and_focused_stays(served: tuple[Any, Any]) -> None:
    directory, server = served
    with browser() as chromium:
        seen = opened(chromium, f"http://localhost:{server.server_port}/")
        page = seen.page
        page.wait_for_selector("html[data-live]", state="attached")
        page.click("#theme")
        page.select_option("#order", "tokens")
        page.check("#in-answers")
        page.click("#after")
        page.locator("details:has(#versions) summary").click()
        page.locator("#list button").nth(7).click()
        page.wait_for_selector("#detail:focus")
        page.evaluate("scrollTo(0, 600)")
        before = page.evaluate(PLACE)
        assert before["focus"] == "detail" and before["page"].startswith("page 2") and before["theme"] == "dark"
        load_anew(page, directory)
        assert page.evaluate(PLACE) == before

        page.fill("#query", "held-out")
        page.wait_for_selector("#count:has-text('4 of')")
        page.locator("#list button").nth(2).click()
        page.locator(".tabs button").nth(1).click()
        page.wait_for_selector(".tabs button:focus")
        before = page.evaluate(PLACE)
        assert before["tab"] == before["focus"] == "iteration 1, held out"
        load_anew(page, directory)
        assert page.evaluate(PLACE) == before

        page.locator("#list button").nth(3).focus()
        before = page.evaluate(PLACE)
        load_anew(page, directory)
        assert page.evaluate(PLACE) == before
        assert seen.complaints == []


def test_nothing_is_loaded_while_somebody_types(served: tuple[Any, Any]) -> None:
    directory, server = served
    with browser() as chromium:
        page = opened(chromium, f"http://localhost:{server.server_port}/").page
        page.wait_for_selector("html[data-live]", state="attached")
        page.evaluate("document.documentElement.dataset.old = 'true'")
        page.focus("#query")
        directory.record("shard", iteration=1, shard=0)
        started = time.monotonic()
        for letter in "zebras":
            page.keyboard.type(letter)
            time.sleep(1.5)
        assert time.monotonic() - started > 8 and page.locator("html[data-old]").count() == 1
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector(NEW, state="attached", timeout=20_000)
        assert page.input_value("#query") == "zebras" and page.evaluate("document.activeElement.id") == "query"
        assert page.evaluate("document.activeElement.selectionStart") == 5, "the caret stays where it was"
