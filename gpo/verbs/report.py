"""`gpo report`: a run as one HTML file, or as a live page."""

import argparse
from pathlib import Path

from gpo.verbs.parts import Verbs, count

FILE_PROMPTS, LIVE_PROMPTS = 10_000, 1_000


def add_to(verbs: Verbs) -> None:
    """`gpo report`."""
    report = verbs.add_parser(
        "report",
        help="a run as one HTML file that opens without a network",
        epilog="example: gpo report runs/quickstart",
    )
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run, finished or at work")
    report.add_argument("--output", type=Path, metavar="FILE", help="default: RUN_DIR/report.html")
    report.add_argument(
        "--prompts",
        type=count,
        metavar="N",
        help=f"prompts in the sample browser, at most (default: {FILE_PROMPTS}, with --watch {LIVE_PROMPTS})",
    )
    report.add_argument("--watch", action="store_true", help="serve a live page on loopback until Ctrl-C")
    report.add_argument("--port", type=_port, default=8642, metavar="N", help="of --watch; 0: a free one")
    report.set_defaults(
        verb=_report, after_interrupt="the run was only looked at; start the same command to look again"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 0 to 65535")
    return int(text)


def _report(options: argparse.Namespace) -> int:
    from gpo.printable import printable
    from gpo.report.story import open_for_reading

    directory = open_for_reading(options.run_dir)
    if options.watch:
        from gpo.report.live import make_server

        with make_server(directory, options.port, options.prompts or LIVE_PROMPTS) as server:
            shown = printable(str(options.run_dir))
            print(f"http://127.0.0.1:{server.server_port}/ shows {shown}; Ctrl-C ends it", flush=True)
            server.serve_forever()
            return 0
    from gpo.report.page import write_report

    target: Path = options.output or directory.root / "report.html"
    selection = write_report(directory, target, options.prompts or FILE_PROMPTS)
    print(f"wrote {printable(str(target))}, {target.stat().st_size / 1e6:.1f} MB. {selection.rule()}")
    return 0
