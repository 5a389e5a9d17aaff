"""What `rollout.cpu_norms` leans on in vLLM 0.32: its plugins, its table of providers, and two norms of its CPU build.

Run: python -m pytest tests/contract/test_vllm_norms.py
When it fails after an upgrade, look at vllm/ir/op.py, at `get_default_ir_op_priority` in vllm/platforms and at
vllm/kernels/vllm_c.py; if the CPU platform prefers its own norms by then, delete the plugin.
All in one process of its own, because vLLM rearranges the process that it is imported in.
"""

from typing import Any

import pytest
import torch

from reward.backend_vllm import vllm_is_installed
from tests.contract.own_process import found_by
from tests.tiny import save_tiny_model

pytestmark = pytest.mark.skipif(not vllm_is_installed(), reason="vLLM is not installed")

WORKER = """
import json, sys
import torch
from vllm.engine.arg_utils import EngineArgs

def priority(**more):
    made = EngineArgs(model=sys.argv[1], max_model_len=64, block_size=32, **more).create_engine_config()
    kinds = made.kernel_config.ir_op_priority
    return {"rms_norm": kinds.rms_norm, "fused_add_rms_norm": kinds.fused_add_rms_norm}

found = {"eager": priority(enforce_eager=True), "compiled": priority(enforce_eager=False), "differences": []}
from vllm import ir

def norm(x, weight, epsilon):
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight.double()

torch.manual_seed(0)
takes = ir.ops.rms_norm.impls["gpo_cpu"].supports_args
found["takes_half"] = takes(torch.ones(32, 16).bfloat16(), torch.ones(16).bfloat16(), 1e-5)
for kind in (torch.float32, torch.bfloat16)[:1 + found["takes_half"]]:
    for rows, width in ((1, 16), (3, 64), (130, 576), (7, 112)):
        x, y, weight = (torch.randn(*shape).mul(3).to(kind) for shape in ((rows, width), (rows, width), (width,)))
        alone = ir.ops.rms_norm.impls["gpo_cpu"].impl_fn(x, weight, 1e-5)
        total = (x.double() + y.double()).to(kind)
        both, kept = ir.ops.fused_add_rms_norm.impls["gpo_cpu"].impl_fn(x.clone(), y.clone(), weight, 1e-5)
        scale = norm(x, weight, 1e-5).abs().max().item()
        found["differences"].append({
            "kind": str(kind), "rows": rows, "width": width,
            "alone": (alone - norm(x, weight, 1e-5)).abs().max().item() / scale,
            "both": (both - norm(x.double() + y.double(), weight, 1e-5)).abs().max().item() / scale,
            "kept": (kept - total).abs().max().item(),
        })
x, weight = torch.ones(32, 16), torch.ones(16)
found["takes"] = [takes(x, weight, 1e-5), takes(x.T, torch.ones(32), 1e-5), takes(x, weight.bfloat16(), 1e-5),
                  takes(x, None, 1e-5), takes(x, weight, 1e-5, 8),
                  takes(torch.ones(4, 100), torch.ones(100), 1e-5)]
print("FOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = save_tiny_model(tmp_path_factory.mktemp("norms") / "model")
    return found_by(WORKER, str(model))


def test_an_engine_that_compiles_nothing_has_compiled_norms(found: dict[str, Any]) -> None:
    assert found["eager"] == {name: ["gpo_cpu", "native"] for name in ("rms_norm", "fused_add_rms_norm")}


def test_an_engine_that_compiles_is_left_to_its_compiler(found: dict[str, Any]) -> None:
    assert found["compiled"] == {name: ["native"] for name in ("rms_norm", "fused_add_rms_norm")}


def test_the_norms_are_those_of_the_formula(found: dict[str, Any]) -> None:
    for case in found["differences"]:
        allowed = 1e-6 if case["kind"] == "torch.float32" else 2**-7
        assert case["alone"] < allowed and case["both"] < allowed and case["kept"] == 0, case


def test_what_the_norms_cannot_take_goes_to_plain_torch(found: dict[str, Any]) -> None:
    assert found["takes"] == [True, *[False] * 5]


def test_half_precision_is_for_builds_that_round_to_it(found: dict[str, Any]) -> None:
    assert found["takes_half"] is torch.cpu._is_avx512_bf16_supported()
