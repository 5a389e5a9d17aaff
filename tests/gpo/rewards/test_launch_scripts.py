"""The scripts that start a reward training, each run as its first lines say: on this machine, by torchrun, on a Ray
cluster, and under a Slurm whose commands are stood in for. All of them train the same model.

Run: python -m pytest tests/gpo/rewards/test_launch_scripts.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.namespaces import namespaced_cluster, namespaces_can_be_made
from tests.gpo.rewards.workplace import ROOT, environment, losses, make_workplace

BIN = Path(sys.prefix) / "bin"
SLURM = {
    "scontrol": "#!/bin/sh\necho 127.0.0.1\n",
    "srun": '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n',
}


def launch(folder: Path, script: str, *overrides: str, **variables: str) -> str:
    """Run a script in the folder, with our commands first on the path; returns what it said."""
    path = os.pathsep.join([variables.pop("before", ""), str(BIN), os.environ["PATH"]]).lstrip(os.pathsep)
    words = ["bash", str(ROOT / "scripts" / script), "config.yaml", *overrides]
    done = subprocess.run(
        words, cwd=folder, env=environment(PATH=path, **variables), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("launch")
    make_workplace(made)
    return made


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[float]:
    """The loss curve of the script for one machine."""
    launch(folder, "reward_single_node.sh", "output=alone")
    return losses(folder / "alone")


@pytest.mark.long  # `make cluster`
def test_torchrun_trains_the_same_with_two_workers(folder: Path, alone: list[float]) -> None:
    launch(folder, "reward_torchrun.sh", "output=torchrun", NPROC="2")
    assert losses(folder / "torchrun") == pytest.approx(alone, abs=1e-5)


@pytest.mark.long  # `make cluster`
@pytest.mark.skipif(not namespaces_can_be_made(), reason="needs root and iproute2 for network namespaces")
def test_a_ray_cluster_trains_the_same(folder: Path, alone: list[float]) -> None:
    with namespaced_cluster(folder, workers=0, cpus=0, head_cpus=2) as cluster:
        words = ["env", f"RAY_ADDRESS={cluster.address}", "bash", str(ROOT / "scripts/reward_ray_cluster.sh")]
        done = cluster.run(cluster.head, [*words, "config.yaml", "output=cluster"], 280)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert losses(folder / "cluster") == pytest.approx(alone, abs=1e-5)


@pytest.mark.long  # `make cluster`
def test_slurm_trains_the_same(folder: Path, alone: list[float], tmp_path: Path) -> None:
    for name, text in SLURM.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    place = {"SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "1"}
    launch(folder, "reward_slurm.sh", "output=slurm", before=str(tmp_path), SLURM_SUBMIT_DIR=str(ROOT), **place)
    assert losses(folder / "slurm") == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("reward_*.sh")))
def test_a_script_without_a_config_says_how_it_is_called(script: str) -> None:
    done = subprocess.run(["bash", str(ROOT / "scripts" / script)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and f"scripts/{script} CONFIG" in done.stderr
