"""One self-contained HTML file of a run: numbers, charts and every shown prompt, without a single request.

Text of models, users and file names enters as data (JSON, or gzip in base64) and is put on the page as text by the
scripts in `assets/`; nothing of it is ever markup. A content security policy with the hashes of our own scripts stands
behind that: another script does not run, and nothing is fetched. Charts are drawn by Observable Plot on D3 (ISC
licences, `assets/vendor`).
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment

from gpo import __version__
from gpo.errors import UserError
from gpo.files import write_text
from gpo.journal import RunDirectory
from gpo.report.own_tables import NO_OWN_TABLE
from gpo.report.samples import Appearance, ShownPrompt
from gpo.report.selection import Selection, select_prompts
from gpo.report.signs import watch
from gpo.report.story import tell

ASSETS = Path(__file__).with_name("assets")
SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "dom.js", "store.js", "charts.js", "table.js", "detail.js")
LAST_SCRIPTS = ("browser.js", "main.js")
LIVE_SCRIPT = "live.js"
PROMPTS = 10_000
"""Prompts a page holds unless asked otherwise."""
CHUNK_PROMPTS = 250
"""Prompts that are unpacked together when one of them is looked at."""


def write_report(directory: RunDirectory, target: Path, prompts: int = PROMPTS) -> Selection:
    """Write the page, whole when it exists; returns which prompts are in it.

    Raises UserError for damaged files, and for a page that cannot be written there.
    """
    selection = select_prompts(directory, prompts)
    page = render(tell(directory), selection)
    try:
        write_text(target, page)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror}); give another place by --output FILE"
        ) from None
    return selection


def render(story: dict[str, Any], selection: Selection, *, live: str | None = None) -> str:
    """The page as text; `live`: its version, and it asks the server it came from for a newer one."""
    names = [*SCRIPTS, *LAST_SCRIPTS, *([] if live is None else [LIVE_SCRIPT])]
    scripts = [(ASSETS / name).read_text(encoding="utf-8") for name in names]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    template = environment.from_string((ASSETS / "page.html").read_text(encoding="utf-8"))
    signs = [asdict(sign) for sign in watch(story)]
    overview = story | {"signs": signs, "rule": selection.rule(), "no_own_table": NO_OWN_TABLE}
    return template.render(
        name=story["run"]["name"] or "run",
        version=__version__,
        live=live,
        policy=content_policy(scripts, live is not None),
        style=(ASSETS / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        story=packed(overview),
        index=packed([index_row(number, prompt) for number, prompt in enumerate(selection.prompts)]),
        chunks=list(chunks(selection.prompts)),
        chunk_prompts=CHUNK_PROMPTS,
    )


def content_policy(scripts: list[str], live: bool) -> str:
    """Nothing from anywhere, and of scripts only these."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def packed(value: Any) -> str:
    """JSON, gzip, base64: a third of the size, and no character that could be markup."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), compresslevel=6, mtime=0)).decode()


def index_row(number: int, prompt: ShownPrompt) -> dict[str, Any]:
    """What the list of prompts shows, searches and filters by; the answers stay packed until they are wanted."""
    trained = [appearance for appearance in prompt.appearances if appearance.kind == "rollout"]
    scores = [answer.score for appearance in trained for answer in appearance.answers if answer.score is not None]
    lengths = [answer.tokens for appearance in prompt.appearances for answer in appearance.answers]
    return {
        "n": number,
        "id": prompt.prompt_id,
        "text": prompt.messages[-1]["content"],
        "seen": [[appearance.kind, appearance.iteration] for appearance in prompt.appearances],
        "cycle": any(appearance.cycle for appearance in trained),
        "cut": any(answer.finish != "stop" for appearance in prompt.appearances for answer in appearance.answers),
        "spread": round(max(scores) - min(scores), 4) if scores else 0,
        "tokens": round(sum(lengths) / len(lengths), 1) if lengths else 0,
    }


def chunks(prompts: list[ShownPrompt]) -> Iterator[str]:
    """Prompts with all their answers, packed by `CHUNK_PROMPTS`."""
    for start in range(0, len(prompts), CHUNK_PROMPTS):
        yield packed([full_row(prompt) for prompt in prompts[start : start + CHUNK_PROMPTS]])


def full_row(prompt: ShownPrompt) -> dict[str, Any]:
    """A prompt as plain values."""
    return {"messages": prompt.messages, "appearances": [_appearance(one) for one in prompt.appearances]}


def _appearance(appearance: Appearance) -> dict[str, Any]:
    return {name: value for name, value in asdict(appearance).items() if value is not None}
