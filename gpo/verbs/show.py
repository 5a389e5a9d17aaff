"""`gpo show`: a run in the terminal."""

import argparse
from pathlib import Path

from gpo.verbs.parts import Verbs


def add_to(verbs: Verbs) -> None:
    """`gpo show`."""
    show = verbs.add_parser(
        "show",
        help="a run in the terminal: numbers, prompts, answers, tables, cycles",
        description="Without options: the numbers of the run. With --iteration, --search or --cycles: its prompts, "
        "a line each. With --prompt: one prompt with its answers. Long output goes through $PAGER.",
        epilog="example: gpo show runs/quickstart --iteration 1",
    )
    show.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run, finished or at work")
    show.add_argument("--iteration", type=_iteration, metavar="N", help="0 is the start")
    show.add_argument("--prompt", metavar="ID", help="a prompt's id, or how it begins")
    show.add_argument("--search", nargs="+", default=[], metavar="WORD", help="prompts with all these words")
    show.add_argument("--cycles", action="store_true", help="prompts whose answers form a cycle")
    show.set_defaults(verb=_show, after_interrupt="nothing was changed")


def _iteration(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no iteration: a whole number from 0")
    return int(text)


def _show(options: argparse.Namespace) -> int:
    from gpo.report.show import one_prompt, overview, present, prompt_list
    from gpo.report.story import open_for_reading

    directory = open_for_reading(options.run_dir)
    if options.prompt is not None:
        present(one_prompt(directory, options.prompt, options.iteration))
    elif options.iteration is not None or options.search or options.cycles:
        present(prompt_list(directory, options.iteration, options.search, options.cycles))
    else:
        present(overview(directory))
    return 0
