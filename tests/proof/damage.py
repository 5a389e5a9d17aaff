"""Damaged files in a run directory: each is planted in an interrupted run, which is then gone on with.

The run must finish with the token ids and the weights of an undisturbed one, or end with status 1 or 2 and a message
that names the file by its path in the run; never a traceback, never other samples. Files are drawn from all that an
interrupted run holds, once while its first iteration is sampled and once while its second is trained, and are cut,
flipped, emptied or doubled by the seed. Each case is a line of the log; a start with the same log goes on behind it.

    python -m tests.proof.damage --cases 8 --log runs/damage.jsonl     (half a minute to two minutes a case)
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.e2e.tiny_run import command, environment, journal, make_workplace
from tests.proof.case_log import keep, not_yet, told
from tests.proof.mutations import mutate_bytes
from tests.proof.outcome import EQUAL_TOKENS, SECONDS, TRACEBACK, differences, results, run_again

KEYS = ("moment", "seed")
"""Fields of a line that name its case."""
MOMENTS = {"generate": 1, "train": 2}
"""Stage in which the run is interrupted -> iteration."""
NOT_READ_AGAIN = ("logs", "ray")
"""Folders that a run writes for people, or for a process that is gone."""


def at(out: Path, stage: str, iteration: int) -> bool:
    """Whether the stage is at work, and in the middle where that shows."""
    lines = [line for line in journal(out) if line.get("iteration") == iteration]
    begun = any(line["event"] == "begin" and line["stage"] == stage for line in lines)
    return begun and (stage != "generate" or any(line["event"] == "shard" for line in lines))


def interrupted_run(config: Path, out: Path, stage: str) -> None:
    """A run that got SIGINT in a stage."""
    process = subprocess.Popen(
        command(config, out, EQUAL_TOKENS),
        env=environment(), cwd=config.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + SECONDS
    while not at(out, stage, MOMENTS[stage]):
        assert process.poll() is None and time.monotonic() < end, f"no stage {stage}"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 130, "an interrupted run says so"


def damage(run: Path, draw: Random) -> tuple[Path, str]:
    """Damage one file; returns it and what was done."""
    files = [path for path in run.rglob("*") if path.is_file() and path.stat().st_size]
    files = [path for path in files if not set(path.relative_to(run).parts) & set(NOT_READ_AGAIN)]
    # By kind first: else shards would be drawn nearly always.
    kind = draw.choice(sorted({path.name.split("-")[0] for path in files}))
    path = draw.choice(sorted(path for path in files if path.name.split("-")[0] == kind))
    content = path.read_bytes()
    if draw.random() < 0.2:
        path.write_bytes(b"")
        return path, "emptied"
    mutated = mutate_bytes(content, draw)
    path.write_bytes(mutated.content)
    return path, mutated.done


def seed_of(moment: str, number: int) -> str:
    """What a case is drawn from."""
    return f"{moment}/{number}"


def one_case(
    config: Path, source: Path, out: Path, seed: int, expected: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Damage a copy, go on with it, and judge how it ends: one that ends well by what is `expected`."""
    shutil.copytree(source, out)
    path, done = damage(out, Random(seed_of(source.name, seed)))
    started = time.monotonic()
    status, printed = run_again(config, out, EQUAL_TOKENS)
    file = str(path.relative_to(out))
    fault = wrong_end(status, printed, file)
    if status == 0:
        fault = fault or differences(out, expected())
    line = {
        "moment": source.name,
        "seed": seed,
        "file": file,
        "done": done,
        "status": status,
        "fault": fault,
        "seconds": round(time.monotonic() - started, 1),
    }
    shutil.rmtree(out)
    return line | ({"printed": printed[-2000:]} if status != 0 or fault else {})


def wrong_end(status: int | None, printed: str, file: str) -> str | None:
    """What is wrong with how a start ended in whose run directory a file is damaged, named by its path there.

    Its last name alone tells nothing: every iteration has a config.json and a shard-00000.parquet.
    """
    if TRACEBACK in printed:
        return "a traceback"
    if status not in (0, 1, 2):
        return f"no end within {SECONDS} s" if status is None else f"status {status}"
    return f"status {status} does not name the file" if status != 0 and file not in printed else None


def main() -> int:
    """All cases that the log does not have yet; status 1 when one has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=8, help="in all, shared out among the two moments")
    parser.add_argument("--log", type=Path, default=Path("runs/damage.jsonl"))
    options = parser.parse_args()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    wanted = [(list(MOMENTS)[n % 2], n // 2) for n in range(options.cases)]
    left = not_yet(options.log, KEYS, wanted)
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        folder = Path(name)
        config = make_workplace(folder)
        for moment in dict.fromkeys(moment for moment, _ in left):
            interrupted_run(config, folder / moment, moment)

        @cache
        def expected() -> dict[str, Any]:
            """Of an undisturbed run, which is made when the first case ends well."""
            status, printed = run_again(config, folder / "undisturbed", EQUAL_TOKENS)
            assert status == 0, printed
            return results(folder / "undisturbed")

        for moment, seed in left:
            line = one_case(config, folder / moment, folder / "case", seed, expected)
            keep(options.log, line)
    return told(options.log, KEYS, wanted, lambda line: seed_of(line["moment"], line["seed"]))


if __name__ == "__main__":
    sys.exit(main())
