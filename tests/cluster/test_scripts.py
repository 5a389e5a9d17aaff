"""The cluster scripts are parsed: their shell, their YAML, and every gpo command in them.

Run: python -m pytest tests/cluster/test_scripts.py
"""

import re
import shlex
import subprocess
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
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        container = group["template"]["spec"]["containers"][0]
        environment = {entry["name"]: entry for entry in container["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in environment["RAY_AUTH_TOKEN"]["valueFrom"], "the token is no value in this file"
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
