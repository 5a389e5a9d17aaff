"""Whether scoring K answers to one prompt costs K times as much, or K squared times: tables of 2, 4 .. 64 answers.

Run: nice python benchmarks/scoring_growth.py --output scoring-growth.json     (one to eight minutes on two cores)

SmolLM2-135M with a random gated head of width 6 by our transformers back end, a prompt and answers of 100 words each,
in sweeps over all sizes. That the cost is linear is seen by what a further answer costs between the three largest,
where what is paid once no longer counts. Other sweeps go through torch's profiler: they tell which kind of operator
makes a further answer dearer among many. Asking about each pair by itself is what a model that reads pairs has to do.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.frame import (  # noqa: E402
    MOST_GROWTH,
    WORDS,
    Claim,
    at_most,
    claim_lines,
    cost_growth,
    measured_dtype,
    spread,
    write_report,
)
from benchmarks.operators import KINDS, seconds_by_kind  # noqa: E402
from benchmarks.scoring_ways import prepare, timed  # noqa: E402
from gpo.cpu import keeping_malloc, prepare_process  # noqa: E402
from reward.scorer import PreferenceScorer  # noqa: E402

LARGEST = 64


def make_texts(count: int, words: int = 100, seed: int = 20_240) -> list[str]:
    """Sentences of so many words drawn from the list, the same at every run."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)).capitalize() + "." for _ in range(count)]


def growth(checkpoint: Path, dtype: str, texts: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """Seconds for the table of K answers to one prompt, and for asking about each pair by itself.

    Of `texts` the first is the prompt. What each table spends on which kind of operator is seen in sweeps of their own.
    """
    scorer = PreferenceScorer.from_pretrained(checkpoint, "transformers", dtype)
    prompt, answers = [{"role": "user", "content": texts[0]}], texts[1:]
    sizes = [2**power for power in range(1, len(answers).bit_length())]
    scorer.table(prompt, answers)
    sweeps = [
        [timed(lambda size=size: scorer.table(prompt, answers[:size]))[0] for size in sizes]  # type: ignore[misc]
        for _ in range(4 * repeats + 1)
    ]
    kinds = [
        [seconds_by_kind(lambda size=size: scorer.table(prompt, answers[:size])) for size in sizes]  # type: ignore[misc]
        for _ in range(repeats)
    ]
    rows: list[dict[str, Any]] = []
    for size, seconds in zip(sizes, zip(*sweeps, strict=True), strict=True):
        pairs = list(itertools.combinations(answers[:size], 2))
        if measured := size <= 8:
            by_pair, _ = timed(lambda pairs=pairs: [scorer.table(prompt, pair) for pair in pairs])  # type: ignore[misc]
            a_pair = by_pair / len(pairs)
        profiled = [sweep[sizes.index(size)] for sweep in kinds]
        spent = {kind: statistics.median(found[kind] for found in profiled) for kind in KINDS}
        found = {"k": size, "seconds": statistics.median(seconds), "rounds": seconds, "kinds": spent}
        rows.append({**found, "pairs": a_pair * len(pairs), "pairs_measured": measured})
    return rows


def claims_of(rows: list[dict[str, Any]]) -> list[Claim]:
    """The cost grows linearly with K: a further answer is no dearer in the largest table than in the middle ones."""
    largest = rows[-3:]
    sizes = [row["k"] for row in largest]
    # Of the medians: in one sweep what two sizes differ by is a few times what a size differs by from itself.
    growth = round(cost_growth(sizes, [row["seconds"] for row in largest]), 3)
    varied = spread([cost_growth(sizes, seconds) for seconds in zip(*(row["rounds"] for row in largest), strict=True)])
    what = (
        f"scoring: cost of a further answer to a prompt, from {sizes[1]} to {sizes[2]} / from {sizes[0]} to {sizes[1]}"
    )
    return [at_most(what, growth, MOST_GROWTH, varied, why_not_linear(sizes, [row["kinds"] for row in largest]))]


def why_not_linear(sizes: list[int], kinds: list[dict[str, float]]) -> str:
    """What a further answer costs by the profiles of three tables: whether it grows there, and which kind most."""

    def dearer(parts: Sequence[str]) -> float:
        """By how many ms a further answer of the larger tables is dearer in these parts."""
        spent = [sum(found[part] for part in parts) for found in kinds]
        earlier, later = ((spent[at + 1] - spent[at]) / (sizes[at + 1] - sizes[at]) for at in range(2))
        return 1000 * (later - earlier)

    growth = cost_growth(sizes, [sum(found.values()) for found in kinds])
    if growth <= MOST_GROWTH:
        return f"a profile of the same tables gives {growth:.2f}, so that no kind of operator is the reason"
    most = max(kinds[0], key=lambda kind: dearer([kind]))
    return (
        f"a profile of the same tables gives {growth:.2f}, {dearer([most]) / dearer(list(kinds[0])):.0%} of it {most}"
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """The report as tables."""
    lines = ["| K | table s | s an answer | each pair by itself s |", "|---:|---:|---:|---:|"]
    for row in rows:
        pairs = f"{row['pairs']:.2f}" + ("" if row["pairs_measured"] else " (extrapolated)")
        lines.append(f"| {row['k']} | {row['seconds']:.2f} | {row['seconds'] / row['k']:.3f} | {pairs} |")
    return "\n".join([*lines, "", *claim_lines(claims_of(rows))])


def main() -> None:
    """Measure in a process that keeps freed memory, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON with every number, machine and versions")
    parser.add_argument("--model", type=Path, default=HERE.parent / "models" / "smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument(
        "--repeats", type=int, default=3, help="sweeps of the profiler; four times as many of the clock"
    )
    parser.add_argument("--quick", action="store_true", help="one repeat")
    parser.add_argument("--rows", type=Path, help="where the process that measures puts what it found; not by hand")
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        parser.error(f"--model {options.model} is not there; `python scripts/smollm2.py {options.model}` makes it")
    threads = len(os.sched_getaffinity(0))
    if options.rows is None:
        with tempfile.TemporaryDirectory(prefix="scoring-growth-") as folder:
            found = Path(folder) / "rows.json"
            environment = {**os.environ, **keeping_malloc(), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
            subprocess.run([sys.executable, *sys.argv, "--rows", str(found)], check=True, env=environment)
            rows = json.loads(found.read_text("utf-8"))
        dtype = measured_dtype(options.dtype)
        print(f"{dtype}, {threads} threads\n\n{markdown(rows)}")
        write_report({"dtype": dtype, "rows": rows}, claims_of(rows), options.output)
        return
    prepare_process(threads)
    dtype, checkpoint = measured_dtype(options.dtype), options.rows.parent / "checkpoint"
    prepare(options.model, checkpoint, dtype)
    rows = growth(checkpoint, dtype, make_texts(LARGEST + 1), 1 if options.quick else options.repeats)
    options.rows.write_text(json.dumps(rows), "utf-8")


if __name__ == "__main__":
    main()
