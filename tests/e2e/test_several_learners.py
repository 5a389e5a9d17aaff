"""Runs with two learners, plain and sharded: an iteration is published whole, and the next one goes on from it.

Run: python -m pytest tests/e2e/test_several_learners.py -m long
"""

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gpo.files import read_json_lines
from gpo.journal import RunDirectory
from rollout.records import read_shard
from rollout.weights import verify_published
from tests.e2e.tiny_run import run_to_end

DEEPSPEED = Path(sys.prefix) / "deepspeed"


@pytest.mark.long  # a run of its own for each: `make learners`
@pytest.mark.parametrize("sharding", ["none", "zero1", "zero2", "zero3"])
def test_what_two_learners_publish_is_the_policy_of_the_next_iteration(finished, tmp_path, sharding):
    config, one, _ = finished
    overrides = ("train.workers=2", f"train.sharding={sharding}")
    done = run_to_end(config, tmp_path / "out", *overrides, beside=None if sharding == "none" else DEEPSPEED)
    assert done.returncode == 0, done.stderr
    run = RunDirectory(tmp_path / "out")
    master = load_file(run.training(2) / "master" / "model.safetensors")
    policy = AutoModelForCausalLM.from_pretrained(config.parent / "policy").state_dict()
    for iteration in (1, 2):
        verify_published(run.checkpoint(iteration))
        weights = AutoModelForCausalLM.from_pretrained(run.checkpoint(iteration)).state_dict()
        assert {name: value.shape for name, value in weights.items()} == {
            name: value.shape for name, value in policy.items()
        }
        assert str(weights["lm_head.weight"].dtype) == "torch.bfloat16"
    assert all((master[name].bfloat16() == value).all() for name, value in weights.items())
    first = verify_published(run.checkpoint(1)).version
    rows = [row for path in sorted(run.shard(2, 0).parent.iterdir()) for row in read_shard(path)]
    assert {row.weight_version for row in rows} == {first}
    steps, alone = read_json_lines(run.metrics), read_json_lines(RunDirectory(one).metrics)
    assert [step["log_ratio_max_abs"] for step in steps if step["step"] == 1] == [0.0, 0.0]
    losses, expected = ([step["loss"] for step in lines if step["iteration"] == 1] for lines in (steps, alone))
    assert losses == pytest.approx(expected, rel=0.05), "the samples of the first iteration are the same"
