"""What `rollout.cpu_ranks` leans on in vLLM 0.32: its plugins, and the name by which its sampler counts.

Run: python -m pytest tests/contract/test_vllm_ranks.py
When it fails after an upgrade, look at vllm/v1/sample/ops/logprobs.py; if the sampler compiles nothing by then, delete
the plugin. All in one process of its own, because vLLM rearranges the process that it is imported in.
"""

from typing import Any

import pytest

from reward.backend_vllm import vllm_is_installed
from tests.contract.own_process import found_by

pytestmark = pytest.mark.skipif(not vllm_is_installed(), reason="vLLM is not installed")

WORKER = """
import json
import torch
from vllm.v1.sample.ops.logprobs import batched_count_greater_than as compiled
from vllm.plugins import load_general_plugins

load_general_plugins()
from rollout.cpu_ranks import count_at_least
from vllm.v1.sample import sampler

torch.manual_seed(0)
found = {"by": sampler.batched_count_greater_than is count_at_least, "same": [], "types": []}
for rows, width in ((1, 7), (3, 261), (64, 4099)):
    x = torch.randn(rows, width).mul(2).round()  # Many are as likely as each other.
    tokens = torch.randint(width, (rows,))
    bound = x.gather(-1, tokens[:, None])
    x[0, 0] = float("nan")
    theirs, ours = compiled._torchdynamo_orig_callable(x, bound), count_at_least(x, bound)
    found["same"].append(torch.equal(theirs, ours))
    found["types"].append(str(ours.dtype))
    told = sampler.Sampler.gather_logprobs(x, 0, tokens)
    found["same"].append(torch.equal(told.selected_token_ranks, theirs))
found["frames"] = torch._dynamo.utils.counters["frames"]["total"]
print("FOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return found_by(WORKER)


def test_the_sampler_counts_by_the_plugin_and_nothing_is_compiled(found: dict[str, Any]) -> None:
    assert found["by"] and found["frames"] == 0


def test_the_ranks_are_those_of_vllm(found: dict[str, Any]) -> None:
    assert found["same"] == [True] * 6 and found["types"] == ["torch.int64"] * 3
