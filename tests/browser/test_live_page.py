"""`gpo report --watch`: a live page on loopback that follows the run and answers nobody else.

Run: python -m pytest tests/browser/test_live_page.py
"""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpo.errors import UserError
from gpo.report import live
from tests.browser.pages import browser, opened
from tests.gpo.report_runs import plant_evaluation, plant_run


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """(run directory, server at work)."""
    monkeypatch.setattr(live, "QUIET_SECONDS", 0.1)
    directory = plant_run(tmp_path, prompts=4)
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


def test_a_port_that_is_taken_is_one_message(served: tuple[Any, Any]) -> None:
    directory, server = served
    with pytest.raises(UserError, match=f"--port {server.server_port}.*choose another"):
        live.make_server(directory, server.server_port, 10)


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
