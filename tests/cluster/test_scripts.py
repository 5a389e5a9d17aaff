"""The cluster scripts are parsed: their shell, their YAML, and every gpo command in them.

Run: python -m pytest tests/cluster/test_scripts.py
"""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from gpo.cli import _parser
from gpo.config import RunConfig
from gpo.doctor import TESTED
from gpo.settings import _apply_override
from tests.gpo.small_runs import run_values

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "scripts" / "cluster"


def check_run(words: list[str]) -> None:
    """The words after `gpo` are a command, and its overrides are settings."""
    options = _parser().parse_args(words)
    values = run_values()
    for override in options.overrides:
        _apply_override(values, override)
    RunConfig.model_validate(values)


def test_the_kuberay_job_is_a_run_that_gpo_takes() -> None:
    job = yaml.safe_load((SCRIPTS / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "gpo"]
    check_run(words[3:])
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == TESTED["ray"]
    assert cluster["authOptions"] == {"mode": "token"}, "which hands it to the submitter and the operator too"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        container = group["template"]["spec"]["containers"][0]
        assert not [entry for entry in container["env"] if "AUTH" in entry["name"]], "the operator's business"
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_gpus_of_the_kuberay_job_hold_what_its_run_wants() -> None:
    from gpo.cluster.placement import demands, processes_that_fit

    job = yaml.safe_load((SCRIPTS / "kuberay.yaml").read_text())
    values = run_values()
    for word in shlex.split(job["spec"]["entrypoint"])[5:-2]:
        _apply_override(values, word)
    wanted = demands(RunConfig.model_validate(values), gpus=True)
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    node = {"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])}
    held = processes_that_fit(wanted, [node] * group["minReplicas"])
    assert all(held[demand.kind] >= demand.least for demand in wanted)
    full = processes_that_fit(wanted, [node] * group["maxReplicas"])
    assert all(full[demand.kind] == demand.processes for demand in wanted)


def test_the_slurm_script_is_a_shell_script_with_a_run_that_gpo_takes() -> None:
    path = SCRIPTS / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True).stderr == ""
    text = path.read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if " gpo run " in line)
    words = shlex.split(line[line.index("gpo run") :].rstrip("& ").replace('"$@"', "train.workers=32"))
    check_run(words[1:])
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert len(directives) >= 4 and all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in directives)


STUBS = {
    "scontrol": """#!/bin/sh
        if [ "$1" = show ]; then printf 'node1\\nnode2\\n'; else echo "$@" >> "$NOTES/scontrol"; fi""",
    "hostname": """#!/bin/sh
        echo '127.0.1.1 ::1 0.0.0.0'""",
    "srun": """#!/usr/bin/env bash
        while [[ $1 == -* ]]; do if [[ $1 == -w ]]; then shift; fi; shift; done
        exec "$@" """,
    "ray": f"""#!{sys.executable}
        import os, pathlib, socket, sys, time
        if "--head" in sys.argv:
            time.sleep(1)
            port = next(word.partition("=")[2] for word in sys.argv if word.startswith("--port="))
            server = socket.create_server(("0.0.0.0", int(port)))
            time.sleep(60)
        address = next(word.partition("=")[2] for word in sys.argv if word.startswith("--address="))
        host, _, port = address.partition(":")
        socket.create_connection((host, int(port)), 5)
        pathlib.Path(os.environ["NOTES"], "joined").write_text(os.environ["RAY_AUTH_MODE"])
        time.sleep(60)""",
    "gpo": f"""#!{sys.executable}
        import os, pathlib, signal, socket, sys, time
        words = dict(word.split("=", 1) for word in sys.argv if "=" in word)
        host, _, port = words["cluster.address"].partition(":")
        socket.create_connection((host, int(port)), 5)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        pathlib.Path(os.environ["NOTES"], "gpo").write_text(" ".join(sys.argv[1:]))
        end = time.monotonic() + 60
        while time.monotonic() < end and ("wait" in words or not pathlib.Path(os.environ["NOTES"], "joined").exists()):
            time.sleep(0.1)""",
}
"""What the script calls, in its place: no node is turned away here that Ray would take, and the other way round."""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("stopped", [False, True])
def test_the_slurm_script_joins_a_head_that_listens_and_is_put_back_when_its_time_is_over(
    stopped: bool, tmp_path: Path
) -> None:
    for name, text in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(line.removeprefix("        ") for line in text.splitlines()))
        path.chmod(0o755)
    port = next(port for port in range(20000, 30000) if _is_free(port))
    own = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "NOTES": str(tmp_path)}
    own |= {"SLURM_JOB_ID": str(port - 10000), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_ON_NODE": "4"}
    words = ["bash", str(SCRIPTS / "slurm.sh"), "my.yaml", "/shared/my", *(["wait=1"] if stopped else [])]
    script = subprocess.Popen(words, env={**os.environ, **own}, start_new_session=True)
    try:
        end = time.monotonic() + 60
        begun = [tmp_path / "gpo", tmp_path / "joined"]
        while stopped and not all(path.exists() and path.read_text() for path in begun) and time.monotonic() < end:
            time.sleep(0.1)
        if stopped:
            script.send_signal(signal.SIGTERM)
        assert script.wait(60) == (143 if stopped else 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    assert (tmp_path / "joined").read_text() == "token"
    assert f"cluster.address=0.0.0.0:{port}" in (tmp_path / "gpo").read_text()
    assert (tmp_path / "scontrol").exists() == stopped


def test_the_slurm_script_says_what_it_wants_when_it_gets_nothing() -> None:
    done = subprocess.run(["bash", str(SCRIPTS / "slurm.sh")], capture_output=True, text=True)
    assert done.returncode != 0 and "usage: sbatch slurm.sh CONFIG RUN_DIR" in done.stderr


def test_the_container_has_what_the_package_wants_of_a_gpu_machine() -> None:
    text = (SCRIPTS / "Containerfile").read_text().replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert steps[0][0] == "FROM" and {step for step, _ in steps} <= {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "CMD"}
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    vllm = next(line for line in extras["cuda"] if line.startswith("vllm"))
    assert f"pip install --no-cache-dir {vllm}" in text
    for _, words in [step for step in steps if step[0] == "COPY"]:
        assert all((REPOSITORY / name).exists() for name in words.split()[:-1])


@pytest.mark.parametrize("name", ["kuberay.yaml", "slurm.sh", "Containerfile"])
def test_no_script_holds_a_secret(name: str) -> None:
    from gpo.cluster.upload import _secret

    assert _secret(SCRIPTS / name) is None
