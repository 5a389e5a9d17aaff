"""A run in a terminal: the numbers, the list of prompts, and one prompt with its answers, table and cycle.

Whatever a model, a user or a file name says passes through `printable`: it may be read, it may not steer.
"""

import os
import pydoc
import sys
from collections.abc import Iterable
from io import StringIO
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from gpo.errors import UserError
from gpo.journal import RunDirectory
from gpo.printable import printable, printable_lines
from gpo.report.cycles import Cycle, strongest_cycle
from gpo.report.own_tables import NO_OWN_TABLE, own_columns
from gpo.report.samples import (
    Answer,
    Appearance,
    ShownPrompt,
    iterations_on_disk,
    prompt_ids,
    read_prompts,
)
from gpo.report.signs import watch
from gpo.report.story import tell
from gpo.report.terminal import closing_table

LISTED_CHARACTERS = 90
WON, LOST = (42, 120, 214), (217, 98, 43)


def letter(index: int) -> str:
    """The name of an answer: A, B, ... Z, A1, ..."""
    return chr(65 + index % 26) + (str(index // 26) if index > 25 else "")


def overview(directory: RunDirectory) -> RenderableType:
    """Where the run stands, its closing table, the tournament, the signs, and how to see more."""
    story = tell(directory)
    run = story["run"]
    name, status, iterations = (printable(str(run[key])) for key in ("name", "status", "iterations"))
    parts: list[RenderableType] = [
        Text(f"{name}: {status}, {len(story['evaluations'])} of {iterations} done"),
        Text(""),
        Text(closing_table(directory), no_wrap=True, overflow="ignore"),
    ]
    for tournament in story["tournaments"]:
        title = f"win rate of row against column, by {printable(tournament['judge'])}"
        parts += [Text(""), Text(title), _tournament(tournament)]
    signs = watch(story)
    if signs:
        parts += [Text(""), Text("reward-hacking watch: beyond a limit, read samples")]
    for sign in signs:
        word = "look" if sign.beyond else "fine"
        parts.append(Text(f"  {word}  {printable(sign.sentence())}", style="bold" if sign.beyond else ""))
    where = printable(str(directory.root))
    parts += [Text(""), Text(f"prompts: gpo show {where} --iteration 1   one prompt: gpo show {where} --prompt ID")]
    return Group(*parts)


def _tournament(tournament: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("")
    for name in tournament["names"]:
        table.add_column(name, justify="right")
    for name, line in zip(tournament["names"], tournament["rate"], strict=True):
        cells = [Text("-") if rate is None else Text(f"{rate:.1%}", style=heat(2 * rate - 1)) for rate in line]
        table.add_row(Text(name), *cells)
    return table


def heat(value: float) -> Style:
    """Ground for a value in [-1, 1]: lost to won."""
    strength = min(1.0, abs(value))
    if strength < 0.02:
        return Style()
    red, green, blue = (round(part * (0.35 + 0.65 * strength)) for part in (WON if value > 0 else LOST))
    return Style(color="white", bgcolor=f"rgb({red},{green},{blue})")


def prompt_list(
    directory: RunDirectory, iteration: int | None, words: Iterable[str], only_cycles: bool
) -> RenderableType:
    """A line a prompt of an iteration: id, widest difference of scores, cycle, first words.

    Raises UserError for an iteration that is not there.
    """
    _check_iteration(directory, iteration)
    wanted = [word.lower() for word in words]
    table = Table(box=None, padding=(0, 1), show_edge=False)
    for name in ("prompt", "scores span", "cycle", "text"):
        table.add_column(name, no_wrap=True, justify="right" if name == "scores span" else "left")
    shown = 0
    for prompt in read_prompts(directory, prompt_ids(directory, iteration), iteration):
        cycles = [one.cycle for one in prompt.appearances if one.cycle]
        if (only_cycles and not cycles) or not _matches(prompt, wanted):
            continue
        shown += 1
        text = printable(prompt.messages[-1]["content"])
        cycle = ">".join(letter(answer) for answer in (*cycles[0], cycles[0][0])) if cycles else ""
        span = _span(prompt.appearances)
        table.add_row(Text(printable(prompt.prompt_id)), span, cycle, Text(text[:LISTED_CHARACTERS]))
    return Group(table, Text(f"{shown} prompt{'s' * (shown != 1)}"))


def _span(appearances: list[Appearance]) -> str:
    scores = [answer.score for one in appearances for answer in one.answers if answer.score is not None]
    return f"{max(scores) - min(scores):.3g}" if scores else "held out"


def _matches(prompt: ShownPrompt, words: list[str]) -> bool:
    texts = [prompt.prompt_id, *(message["content"] for message in prompt.messages)]
    texts += [answer.text for one in prompt.appearances for answer in one.answers]
    whole = "\n".join(texts).lower()
    return all(word in whole for word in words)


def one_prompt(directory: RunDirectory, asked: str, iteration: int | None) -> RenderableType:
    """A prompt, by its id or the beginning of it, with the answers of all iterations or of one.

    Raises UserError for an iteration that is not there and for an id that is no prompt's, or several prompts'.
    """
    _check_iteration(directory, iteration)
    found = [prompt_id for prompt_id in prompt_ids(directory, iteration) if prompt_id.startswith(asked)]
    if len(found) != 1:
        first = ", ".join(map(printable, found[:3]))
        what = f"stands for {len(found)} prompts, the first {first}" if found else "is no prompt's id"
        where = "" if iteration is None else f" in iteration {iteration}"
        listed = f"gpo show RUN_DIR --iteration {1 if iteration is None else iteration}"
        raise UserError(f"--prompt {printable(asked)}: {what}{where}; `{listed}` lists them")
    prompt = read_prompts(directory, found, iteration)[0]
    parts: list[RenderableType] = [Text(f"prompt {printable(prompt.prompt_id)}", style="bold")]
    for message in prompt.messages:
        parts.append(Text(f"{printable(message['role'])}: {printable_lines(message['content'])}"))
    for appearance in prompt.appearances:
        parts += _appearance(appearance)
    return Group(*parts)


def _appearance(appearance: Appearance) -> list[RenderableType]:
    when = "start" if appearance.iteration == 0 else f"iteration {appearance.iteration}"
    kind = "training" if appearance.kind == "rollout" else "held out"
    parts: list[RenderableType] = [Text(""), Text(f"--- {when}, {kind} ---", style="bold")]
    parts.append(Text(f"sampled by the weights {printable(appearance.version)}", style="dim"))
    for index, answer in enumerate(appearance.answers):
        parts += [Text(_facts(index, answer), style="bold"), Text(printable_lines(answer.text) or "(empty)"), Text("")]
    if appearance.table:
        in_table, own = own_columns(appearance.table, appearance.baseline), appearance.among_themselves()
        parts.append(Text(f"score of row against column; baseline: {printable(str(appearance.baseline))}"))
        parts.append(_table(appearance.table, len(in_table or [])))
        if appearance.own_table:
            parts.append(Text("the same judge's scores of these answers against each other"))
            parts.append(_table(appearance.own_table, len(appearance.own_table)))
        parts.append(Text(cycle_sentence(strongest_cycle(own)) if own else NO_OWN_TABLE))
    return parts


def cycle_sentence(cycle: Cycle | None) -> str:
    """Who beats whom in a circle, and by how much at least."""
    if cycle is None:
        return "no cycle"
    names = [letter(answer) for answer in (*cycle.answers, cycle.answers[0])]
    return f"a cycle: {' beats '.join(names)}, each by {cycle.weakest:.3g} or more"


def _facts(index: int, answer: Answer) -> str:
    ended = "ended by itself" if answer.finish == "stop" else f"cut ({printable(answer.finish)})"
    facts = [f"answer {letter(index)}: {ended}", f"{answer.tokens} token{'s' * (answer.tokens != 1)}"]
    if answer.score is not None:
        facts.append(f"score {answer.score:.3g}")
    if answer.target is not None:
        facts.append(f"target {answer.target:+.3g} nats")
    if answer.left_out:
        facts.append(f"not trained on ({printable(answer.left_out)})")
    return ", ".join(facts)


def _table(scores: list[list[float]], own: int) -> Table:
    """The first `own` columns are the answers themselves, the others those of the baseline."""
    table = Table(box=None, padding=(0, 1))
    table.add_column("")
    for column in range(len(scores[0])):
        table.add_column(letter(column) if column < own else f"b{column - own + 1}", justify="right")
    largest = max((abs(value) for line in scores for value in line), default=0.0) or 1.0
    for index, line in enumerate(scores):
        table.add_row(letter(index), *(Text(f"{value:.2g}", style=heat(value / largest)) for value in line))
    return table


def _check_iteration(directory: RunDirectory, iteration: int | None) -> None:
    there = iterations_on_disk(directory)
    if iteration is not None and iteration not in there:
        known = ", ".join(map(str, there)) or "none"
        raise UserError(f"--iteration {iteration}: not in {printable(str(directory.root))}; there are: {known}")


def present(what: RenderableType) -> None:
    """Print, through the user's pager where it is a terminal and does not fit on it."""
    if not sys.stdout.isatty():
        Console(file=sys.stdout, width=200, color_system=None).print(what, soft_wrap=True)
        return
    screen = Console()
    text = StringIO()
    Console(file=text, force_terminal=True, width=screen.width, color_system="auto").print(what)
    if text.getvalue().count("\n") < screen.height:
        sys.stdout.write(text.getvalue())
    else:
        os.environ.setdefault("LESS", "-RFX")
        pydoc.pager(text.getvalue())
