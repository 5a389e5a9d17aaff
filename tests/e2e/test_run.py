"""The main job as a user types it, with every part real, on a tiny random model."""

import json
from pathlib import Path

import pytest

from rollout.records import read_shard
from rollout.weights import verify_published
from tests.e2e.tiny_run import journal, make_workplace, run_to_end

ALPACA = Path(__file__).parents[3] / "shared" / "data" / "llamafactory" / "alpaca_en_demo.json"


def test_every_prompt_of_every_iteration_is_there_exactly_once_with_its_answers(finished):
    _, out, _ = finished
    seen = []
    for iteration in (1, 2):
        rows = [
            row for path in sorted((out / f"iterations/00{iteration}/rollouts").iterdir()) for row in read_shard(path)
        ]
        assert len(rows) == len({row.prompt_id for row in rows}) == 16
        for row in rows:
            assert len(row.completion) == len(row.completion_ids) == len(row.score) == len(row.target) == 3
            assert len(row.embedding) == 3 and len(row.gate) == 2
            assert row.baseline_kind == "self" and len(row.baseline_ids) == 3
        seen += [row.prompt_id for row in rows]
    assert len(set(seen)) == 32, "the split is disjoint"


def test_targets_follow_from_the_table_by_a_slow_double_loop(finished):
    _, out, _ = finished
    for path in (out / "iterations/001/rollouts").iterdir():
        for row in read_shard(path):
            for i in range(3):
                mean = sum(row.table[i][j] for j in range(3)) / 3
                assert row.score[i] == pytest.approx(mean, abs=1e-6)
                assert row.target[i] == pytest.approx(mean / 0.1 / 1.0, abs=1e-4)
                assert row.table[i][i] == 0
                for j in range(3):
                    assert row.table[i][j] == -row.table[j][i]


def test_rows_carry_the_version_of_the_weights_that_sampled_them(finished):
    _, out, _ = finished
    first = verify_published(out / "iterations/001/checkpoint").version
    versions = {
        iteration: {
            row.weight_version
            for path in (out / f"iterations/00{iteration}/rollouts").iterdir()
            for row in read_shard(path)
        }
        for iteration in (1, 2)
    }
    assert versions == {1: {"start"}, 2: {first}}


def test_the_evaluation_has_the_form_of_the_design(finished):
    _, out, _ = finished
    for iteration in (1, 2):
        found = json.loads((out / f"iterations/00{iteration}/evaluation.json").read_text())
        assert found["iteration"] == iteration
        assert set(found["judges"]) == {"gpm", "oracle"}
        for verdict in found["judges"].values():
            assert set(verdict["vs"]) == {str(earlier) for earlier in range(1, iteration)}
            for rate in [verdict["vs_start"], *verdict["vs"].values()]:
                assert 0 <= rate["ci95"][0] <= rate["win_rate"] <= rate["ci95"][1] <= 1
                assert rate["n_prompts"] == 4
        assert {"length_tokens", "kl_nats_per_answer", "cyclic_share"} <= set(found)


def test_the_evaluation_watches_for_reward_hacking(finished):
    _, out, _ = finished
    for iteration in (1, 2):
        found = json.loads((out / f"iterations/00{iteration}/evaluation.json").read_text())
        assert found["watch_off"] is None, "the run trains on one of its judges"
        assert all(isinstance(sign, str) for sign in found["warnings"])
        for verdict in found["judges"].values():
            start = verdict["vs_start"]
            assert 0 <= start["paired_win_rate"] <= 1 and 0 <= start["length_controlled_win_rate"] <= 1
            assert start["length_control"].endswith("lengths in tokens, without instruction difficulties")
            assert start["length_correlation"] is None or -1 <= start["length_correlation"] <= 1
            assert not {"paired_win_rate", "length_correlation"} & {
                key for rate in verdict["vs"].values() for key in rate
            }


def test_the_chosen_checkpoint_is_named_and_there(finished):
    _, out, done = finished
    chosen = json.loads((out / "chosen.json").read_text())
    assert (chosen["iteration"], chosen["rule"], chosen["judge"]) == (2, "last", "gpm"), (
        "what the config says by default"
    )
    assert verify_published(out.parent / chosen["checkpoint"]).version
    assert (out.parent / chosen["checkpoint"]).samefile(out / "iterations/002/checkpoint")
    assert len(chosen["nash_weights"]) == 3 and sum(chosen["nash_weights"]) == pytest.approx(1)
    last = json.loads((out / "iterations/002/evaluation.json").read_text())
    assert chosen["win_rate_vs_start"] == last["judges"]["gpm"]["vs_start"]["win_rate"]
    assert "chosen by rule 'last' and judge gpm: iteration 2 (" in done.stdout


def test_the_canary_stands_at_the_noise_floor_and_the_update_is_above_it(finished):
    _, out, _ = finished
    lines = journal(out)
    floor = next(line["floor"] for line in lines if line.get("stage") == "canary" and line["event"] == "stage")
    published = [line["canary"] for line in lines if line.get("stage") == "publish" and line["event"] == "stage"]
    assert len(published) == 2
    for verdict in published:
        assert verdict["accepted"] and verdict["gap"]["mean"] <= 4 * floor["mean"]


def test_the_checkpoint_is_a_plain_directory_that_transformers_loads(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, out, _ = finished
    checkpoint = out / "iterations/002/checkpoint"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template
    assert str(model.dtype) == "torch.bfloat16"


def test_each_checkpoint_has_its_model_card(finished):
    _, out, _ = finished
    for iteration in (1, 2):
        card = (out / f"iterations/00{iteration}/checkpoint/README.md").read_text("utf-8")
        assert f"iteration {iteration} of 2" in card and "| `oracle` |" in card and "nats KL from the start" in card


def test_the_command_prints_the_closing_table_and_samples(finished):
    _, out, done = finished
    assert "gpm win rate vs start" in done.stdout and "oracle win rate vs start" in done.stdout
    assert done.stdout.count("before:") == done.stdout.count("after:") == 3
    assert "targets lie in [" in done.stderr and "noise floor" in done.stderr
    assert "Traceback" not in done.stderr


def test_each_process_has_a_log_of_its_own_and_the_samplers_has_vllms_lines(finished):
    _, out, _ = finished
    kinds = {path.name.partition("-")[0] for path in (out / "logs").glob("*.log")}
    assert kinds == {"driver", "sampler", "scorer", "learner", "forward"}
    (sampler,) = (out / "logs").glob("sampler-*.log")
    assert "vllm" in sampler.read_text("utf-8")


def test_a_finished_run_prints_its_table_again_and_computes_nothing(finished):
    config, out, done = finished
    before = [line for line in journal(out) if line["event"] != "restart"]
    again = run_to_end(config, out)
    assert again.returncode == 0
    assert again.stdout == done.stdout
    assert [line for line in journal(out) if line["event"] != "restart"] == before


def test_other_identity_keys_are_refused_and_named(finished):
    config, out, _ = finished
    refused = run_to_end(config, out, "target.beta=2.0")
    assert refused.returncode == 2
    assert "target.beta: 1.0 -> 2.0" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.skipif(not ALPACA.exists(), reason=f"{ALPACA} is not there")
def test_other_peoples_prompts_work_without_code_with_a_python_judge(tmp_path):
    config = make_workplace(tmp_path)
    done = run_to_end(
        config,
        tmp_path / "out",
        f"prompts.train={ALPACA}",
        "prompts.per_iteration=4",
        "prompts.max_tokens=200",
        "iterations=1",
        "preference.train_on=oracle",
        "preference.judges=[oracle]",
    )
    assert done.returncode == 0, done.stderr
    assert "training prompts are longer than 200 tokens" in done.stderr
    rows = [row for path in (tmp_path / "out/iterations/001/rollouts").iterdir() for row in read_shard(path)]
    assert len(rows) == 4
    assert all(row.embedding is None and row.gate is None for row in rows)
