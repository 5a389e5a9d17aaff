"""`gpo tournament`: all checkpoints against each other."""

import argparse
from pathlib import Path

from gpo.verbs.parts import Verbs, add_reading_options, quiet_libraries, request_of


def add_to(verbs: Verbs) -> None:
    """`gpo tournament`."""
    contest = verbs.add_parser(
        "tournament",
        help="all-against-all win rates, Nash weights, Elo and cycles",
        description="Files are AlpacaEval's model_outputs.json over the same instructions. Each answer is read once by "
        "the reward model, so the cost grows with the number of checkpoints and not of pairs. Writes tournament.json "
        "and tournament.svg.",
        epilog="example: gpo tournament --outputs runs/answers/*.json --judge gpm:models/quickstart-gpm "
        "--output runs/tournament",
    )
    contest.add_argument("--outputs", type=Path, nargs="+", required=True, metavar="FILE", help="one a checkpoint")
    contest.add_argument("--judge", required=True, metavar="SPEC", help="gpm:DIR (a GPM or Bradley-Terry model)")
    contest.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    contest.add_argument("--cache", type=Path, metavar="DIR", help="embeddings are kept here (default: DIR/cache)")
    contest.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default: 0)")
    add_reading_options(contest)
    contest.set_defaults(verb=_tournament)


def _tournament(options: argparse.Namespace) -> int:
    from gpo.evaluation.contest import TournamentRequest, hold_tournament
    from gpo.evaluation.open_judge import cache_folder, reader_settings

    settings = reader_settings(options)
    quiet_libraries()
    return hold_tournament(request_of(TournamentRequest, options), settings, cache_folder(options))
