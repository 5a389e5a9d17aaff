"""Self-play to the Nash policy: exact games, and the same with samples and the real trainer on a tiny model.

Run: python benchmarks/nash.py --output runs/nash.json [--figure docs/nash.svg] [--chart FILE]

Exact: `benchmarks/games.py`, the curves of the figure; what they end at is claimed. The game of the type chart needs
its file, and is told as not measured without it. Sampled: a language model of three tokens, whose next-token
distribution is the policy; every iteration draws K answers, scores them in the weighted game against the samples
themselves (`self`) or against twice these minus those of the policy before (`optimistic`), makes targets as a run does,
and lets `GPOTrainer` move the model. What comes out of that is reported, not judged; `--iterations 0` leaves it out.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.frame import Claim, at_most, claim_lines, write_report  # noqa: E402
from benchmarks.games import (  # noqa: E402
    PLAIN,
    SKEWED,
    UNIFORM,
    WEIGHTED,
    Baseline,
    bradley_terry_table,
    exploitability,
    play,
    running_average,
    type_chart,
)
from gpo.targets import optimistic_weights, preference_targets  # noqa: E402

CHART_GAME = "type chart, 18 answers"
MOST_EXPLOITABLE = 0.02
COLOURS = {"self, last": "#c0392b", "self, average": "#2471a3", "optimistic, last": "#1e8449"}


def exact_curves(chart: Path | None) -> dict[str, dict[str, Any]]:
    """Worst exploitability over the starts, at every step: game -> eta and curves."""
    games: dict[str, tuple[Tensor, list[list[float]], float, float, int]] = {
        "weighted rock-paper-scissors": (WEIGHTED, [UNIFORM, *SKEWED], 0.2, 0.2, 4000),
        "rock-paper-scissors": (PLAIN, SKEWED, 0.2, 0.2, 4000),
    }
    if chart is not None:
        games[CHART_GAME] = (type_chart(chart), [[1 / 18] * 18], 0.1, 0.3, 10_000)
    found = {}
    for name, (table, starts, eta, eta_optimistic, steps) in games.items():
        own = play(table, starts, "self", eta, steps)
        optimistic = play(table, starts, "optimistic", eta_optimistic, steps)
        scalar = play(bradley_terry_table(table), starts, "self", eta, steps)
        pulled = play(table, starts, "self", eta, steps, pull=0.05, anchor_every=200)
        curves = {
            "self, last": exploitability(table, own).amax(-1),
            "self, average": exploitability(table, running_average(own)).amax(-1),
            "optimistic, last": exploitability(table, optimistic).amax(-1),
        }
        found[name] = {
            "eta": {"self": eta, "optimistic": eta_optimistic},
            "final": {curve: values[-1].item() for curve, values in curves.items()},
            "final_by_bradley_terry": exploitability(table, scalar[-1]).max().item(),
            "final_with_pull": exploitability(table, pulled[-1]).max().item(),
            "curves": curves,
        }
    return found


def tiny_policy(seed: int) -> Any:
    """A random Llama of three tokens; after token 0 its next-token distribution is the policy."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=3,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=0,
    )  # no padding token: its embedding would be 0 and without a gradient, and so would the policy's logits
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def policy_of(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.softmax(model(input_ids=torch.tensor([[0]])).logits[0, -1].double(), -1)


def one_iteration(model: Any, answers: list[int], targets: Tensor, tokenizer: Any, rate: float, seed: int) -> None:
    from datasets import Dataset
    from transformers import PrinterCallback

    from gpo.training.trainer import GPOConfig, GPOTrainer

    rows = [
        {"prompt_ids": [0], "completion_ids": [answer], "target": target}
        for answer, target in zip(answers, targets.tolist(), strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = GPOConfig(
            output_dir=folder, optim="sgd", learning_rate=rate, lr_scheduler_type="constant", num_train_epochs=20,
            batch_prompts=1, save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, bf16=False,
            use_cpu=True, seed=seed, max_grad_norm=0.0, layout="padded",
        )  # fmt: skip
        trainer = GPOTrainer(model, arguments, Dataset.from_list(rows), tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def sampled_game(baseline: Baseline, iterations: int, samples: int, eta: float, rate: float, seed: int = 0) -> Tensor:
    """Policies [iterations + 1, 3] of the weighted game, by samples and the real trainer."""
    from tests.tiny import make_tokenizer

    generator, tokenizer, model = torch.Generator().manual_seed(seed), make_tokenizer(), tiny_policy(seed)
    policies = [policy_of(model)]
    before = policies[0]
    for iteration in range(iterations):
        now = policies[-1]
        drawn = torch.multinomial(now, samples, replacement=True, generator=generator)
        columns, weight = drawn, None
        if baseline == "optimistic":
            older = torch.multinomial(before, samples, replacement=True, generator=generator)
            columns = torch.cat([drawn, older])
            weight = optimistic_weights(samples, torch.ones(samples, dtype=torch.float64))
        target = preference_targets(
            WEIGHTED[drawn][:, columns], method="gpo", tau=1.0, beta=1 / eta, weight_M=weight, log_z="mean"
        )
        one_iteration(model, drawn.tolist(), target, tokenizer, rate, iteration)
        before = now
        policies.append(policy_of(model))
    return torch.stack(policies)


def figure(games: dict[str, dict[str, Any]]) -> str:
    """An SVG: a panel a game, exploitability on a logarithmic scale against steps."""
    width, height, left, top = 300, 210, 52, 28
    parts = []
    for number, (name, game) in enumerate(games.items()):
        x0 = left + number * (width + 40)
        parts.append(f'<text x="{x0}" y="16" font-weight="bold">{name}</text>')
        steps = len(next(iter(game["curves"].values()))) - 1
        for decade in range(5):
            y = top + height * decade / 4
            parts.append(f'<path d="M{x0} {y:.1f}h{width}" stroke="#ddd"/>')
            label = f"1e-{decade}" if decade else "1"
            parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        limit = top - height / 4 * torch.tensor(0.02).log10().item()
        parts.append(f'<path d="M{x0} {limit:.1f}h{width}" stroke="#999" stroke-dasharray="4 3"/>')
        for curve, values in game["curves"].items():
            places = torch.linspace(0, steps, 240).long().tolist()
            heights = [top - height / 4 * max(-4.0, float(values[place].clamp(min=1e-9).log10())) for place in places]
            points = " ".join(f"{x0 + width * p / steps:.1f},{y:.1f}" for p, y in zip(places, heights, strict=True))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[curve]}"/>')
        parts.append(f'<text x="{x0 + width}" y="{top + height + 16}" text-anchor="end">{steps:,} steps</text>')
    for number, (curve, colour) in enumerate(COLOURS.items()):
        x, y = left + number * 160, top + height + 38
        parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{curve}</text>')
    total = left + len(games) * (width + 40)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {top + height + 48}" '
    return head + 'font-family="sans-serif" font-size="11">\n' + "\n".join(parts) + "\n</svg>\n"


def claims_of(exact: dict[str, dict[str, Any]]) -> list[Claim]:
    """The average policy of self-play and the last one of optimistic play are near the Nash policy in every game."""
    return [
        at_most(f"exact game, {name}: exploitability ({curve})", game["final"][curve], MOST_EXPLOITABLE)
        for name, game in exact.items()
        for curve in ("self, average", "optimistic, last")
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--chart", type=Path, help="the type chart as JSON; without it that game is not measured")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--eta", type=float, default=0.3)
    parser.add_argument("--rate", type=float, default=0.05)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chart = args.chart if args.chart and args.chart.is_file() else None
    left_out = {} if chart else {f"exact game, {CHART_GAME}: exploitability": "make bench-full TYPE_CHART=FILE"}
    if chart is None:
        why = f"{args.chart} is not there" if args.chart else "no --chart was given"
        print(f"exact   {CHART_GAME}: not measured, {why}", flush=True)
    exact = exact_curves(chart)
    for name, game in exact.items():
        numbers = ", ".join(f"{curve} {value:.4f}" for curve, value in game["final"].items())
        pulled, scalar = game["final_with_pull"], game["final_by_bradley_terry"]
        more = f"self with a pull {pulled:.4f}, by Bradley-Terry scores {scalar:.4f}"
        print(f"exact   {name}: {numbers}; {more}", flush=True)
    if args.figure:
        args.figure.write_text(figure(exact), "utf-8")
    sampled = {}
    for baseline in ("self", "optimistic") if args.iterations else ():
        started = time.perf_counter()
        policies = sampled_game(baseline, args.iterations, args.samples, args.eta, args.rate)
        own, average = exploitability(WEIGHTED, policies), exploitability(WEIGHTED, running_average(policies))
        recent = own[-max(1, args.iterations // 10) :]
        sampled[baseline] = {
            "average": average[-1].item(),
            "last": own[-1].item(),
            "recent_mean": recent.mean().item(),
            "recent_max": recent.max().item(),
            "policy": policies[-1].tolist(),
            "seconds": time.perf_counter() - started,
        }
        print(f"sampled weighted game, {baseline}: " + json.dumps(sampled[baseline]), flush=True)
    for game in exact.values():
        del game["curves"]
    settings = {k: str(v) for k, v in vars(args).items()}
    found = {"settings": settings, "exact": exact, "sampled": sampled, "not_measured": left_out}
    print("\n".join(claim_lines(claims_of(exact))))
    write_report(found, claims_of(exact), args.output)


if __name__ == "__main__":
    main()
