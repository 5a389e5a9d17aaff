"""What `rollout.one_loop` leans on in torch 2.13: the class by its name, its options, and a thread a device.

Run: python -m pytest tests/contract/test_gloo.py
When it fails after an upgrade, look at `_new_process_group_helper` in torch/distributed/distributed_c10d.py; if groups
share devices by then, delete the plugin. In processes of their own, because groups are of a whole process.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reward.backend_vllm import vllm_is_installed
from tests.tiny import save_tiny_model

WORKER = """
import json, os, sys
from datetime import timedelta
import torch
from torch.distributed import distributed_c10d
from rollout.one_loop import sharing

os.environ["GLOO_SOCKET_IFNAME"] = "lo"
rank, size, file, shared = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "shared"
if shared:
    distributed_c10d.ProcessGroupGloo = sharing(distributed_c10d.ProcessGroupGloo)
torch.distributed.init_process_group(
    "gloo", store=torch.distributed.FileStore(file, size), rank=rank, world_size=size, timeout=timedelta(seconds=60)
)
groups = [torch.distributed.new_group(timeout=timedelta(seconds=61)) for _ in range(5)]
sums = []
for number, group in enumerate(groups):
    found = torch.full((3,), float(rank + number))
    torch.distributed.all_reduce(found, group=group)
    sums.append(found.tolist())
torch.distributed.barrier()
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
seconds = [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]
torch.distributed.destroy_process_group()
print(json.dumps({"sums": sums, "loops": names.count("gloo_tcp_loop"), "seconds": seconds}))
"""


def run_workers(file: str, size: int, how: str) -> list[dict[str, object]]:
    started = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(size), file, how], stdout=subprocess.PIPE)
        for rank in range(size)
    ]
    printed = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0] * size
    return [json.loads(lines.splitlines()[-1]) for lines in printed]


@pytest.mark.parametrize("size", [1, 2])
def test_groups_that_share_a_device_have_one_loop_and_the_same_sums(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    folder = tmp_path_factory.mktemp("stores")
    alone, shared = (run_workers(str(folder / how), size, how) for how in ("alone", "shared"))
    assert [one["loops"] for one in alone] == [6] * size
    assert [one["loops"] for one in shared] == [1] * size
    assert [one["sums"] for one in shared] == [one["sums"] for one in alone]
    assert all(one["seconds"] == [61.0] * 5 for one in shared)


ENGINE = """
import os, sys
from pathlib import Path
from rollout.engine import PolicyEngine
from rollout.engine_settings import EngineSettings, prepare_environment

settings = EngineSettings(max_model_len=64, threads=1)
prepare_environment(settings)
engine = PolicyEngine(Path(sys.argv[1]), settings)
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
print(names.count("gloo_tcp_loop"))
"""


@pytest.mark.skipif(not vllm_is_installed(), reason="vLLM is not installed")
def test_an_engine_has_one_loop(tmp_path: Path) -> None:
    """vLLM 0.32 loads plugins before it makes its groups."""
    save_tiny_model(tmp_path)
    printed = subprocess.run(
        [sys.executable, "-c", ENGINE, str(tmp_path)], check=True, timeout=300, stdout=subprocess.PIPE, text=True
    )
    assert printed.stdout.splitlines()[-1] == "1"
