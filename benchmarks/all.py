"""All benchmarks one after the other, and one table of every ratio with its target.

    python -m benchmarks.all --short runs/bench          (`make bench`: small workloads, under 15 minutes)
    python -m benchmarks.all --full runs/bench-full --page docs/performance.md          (`make bench-full`)

Each benchmark writes its JSON into the folder; one whose JSON is there is not run again, so a stopped call goes on
(`make bench` begins with an empty folder). The table tells at which commits its rows were measured, and has a row for
a benchmark that failed. `table.md` and `table.json` hold it, and `--page` puts it between the marks of a page.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.frame import Claim, claim_lines

SHORT: dict[str, list[str]] = {
    "scoring": ["--quick"],
    # So few answers fit into the engine at once: overlap cannot be seen with them.
    "rollout": ["--prompts", "16", "--parts", "throughput"],
    "rollout_driver": ["--prompts", "20000"],
    "training": ["--part", "side-by-side", "--pairs", "16", "--step-pairs", "4", "--trl-tries", "2"],
    "reward_training": ["--pairs", "16", "--rounds", "1"],
    "evaluation": ["--quick"],
}
FULL: dict[str, list[str]] = {
    "scoring": [],
    "rollout": ["--parts", "throughput", "overlap"],
    "rollout_driver": [],
    "training": [],
    "reward_training": [],
    "evaluation": [],
    "end_to_end": [],
}
BEGIN, END = "<!-- measured by `make bench-full` -->\n", "<!-- end of what was measured -->\n"


def run(name: str, words: list[str], folder: Path) -> bool:
    """Run a benchmark unless its JSON is there; returns whether it ended well. Its text goes to a log beside."""
    output, log = folder / f"{name}.json", folder / f"{name}.log"
    if output.is_file():
        measured_at = json.loads(output.read_text("utf-8")).get("commit", "an unknown commit")
        print(f"{name}: {output} is there already, measured at {measured_at}")
        return True
    print(f"{name}: running, {log}", flush=True)
    with log.open("w") as lines:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(output), *words]
        done = subprocess.run(command, stdout=lines, stderr=subprocess.STDOUT)
    if done.returncode:
        print(f"{name}: status {done.returncode}; the end of {log}:\n{log.read_text()[-1500:]}", file=sys.stderr)
    return done.returncode == 0


def read_reports(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """The reports that are there, in this order."""
    paths = [folder / f"{name}.json" for name in names]
    return [json.loads(path.read_text("utf-8")) for path in paths if path.is_file()]


def table(reports: list[dict[str, Any]], failed: Sequence[str] = ()) -> str:
    """Every claim in one Markdown table, the benchmarks that failed, and what it was measured on."""
    claims = [claim for one in reports for claim in one["claims"]]
    told = [Claim(**{key: value for key, value in claim.items() if key != "holds"}) for claim in claims]
    places = sorted(
        {
            f"{one['machine']['cpu']}, {one['machine']['cores']} cores, {one['machine']['memory_gib']} GiB, "
            f"torch {one['versions'].get('torch')}, {one['date'][:10]}, {one.get('commit', 'an unknown commit')}"
            for one in reports
        }
    )
    rows = [*claim_lines(told), *(f"| {name}: the benchmark failed |  |  |  | failed |" for name in failed)]
    return "\n".join([*rows, "", *(f"On {place}." for place in places), ""])


def put_on_page(page: Path, text: str) -> None:
    """Replace what stands between the marks; raises ValueError where a mark is missing."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: expected the lines {BEGIN.strip()!r} and {END.strip()!r}, to put the table between")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")


def main() -> None:
    """Run, and write the table; status 1 where a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--short", type=Path, metavar="FOLDER", help="small workloads")
    size.add_argument("--full", type=Path, metavar="FOLDER", help="the workloads of the claims, and end to end")
    parser.add_argument("--page", type=Path, help="a page whose marked part becomes the table")
    options = parser.parse_args()
    folder, benchmarks = (options.short, SHORT) if options.short else (options.full, FULL)
    folder.mkdir(parents=True, exist_ok=True)
    failed = [name for name, words in benchmarks.items() if not run(name, words, folder)]
    reports = read_reports(folder, list(benchmarks))
    text = table(reports, failed)
    (folder / "table.md").write_text(text, "utf-8")
    rows = [{**claim, "commit": one.get("commit")} for one in reports for claim in one["claims"]]
    rows += [{"what": name, "failed": True} for name in failed]
    (folder / "table.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(text)
    if options.page:
        put_on_page(options.page, text)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
