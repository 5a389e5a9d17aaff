"""`gpo eval`: pairwise judging of two files of answers."""

import argparse
from pathlib import Path

from gpo.verbs.parts import Verbs, add_chat_options, add_reading_options, quiet_libraries, request_of


def add_to(verbs: Verbs) -> None:
    """`gpo eval`."""
    evaluate = verbs.add_parser(
        "eval",
        help="win rate of a file of answers against another, raw and length-controlled",
        description="Both files are AlpacaEval's model_outputs.json over the same instructions. Writes "
        "annotations.json and leaderboard.csv in AlpacaEval's fields, and metrics.json with all numbers and how they "
        "were made.",
        epilog="example: gpo eval --outputs runs/answers/quickstart-003.json --baseline "
        "runs/answers/smollm2-135m-instruct.json --judge gpm:models/quickstart-gpm --output runs/evaluation",
    )
    evaluate.add_argument("--outputs", type=Path, required=True, metavar="FILE", help="answers that are evaluated")
    evaluate.add_argument("--baseline", type=Path, required=True, metavar="FILE", help="answers they are compared with")
    evaluate.add_argument("--judge", required=True, metavar="SPEC", help="gpm:DIR or openai:MODEL")
    evaluate.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    evaluate.add_argument("--cache", type=Path, metavar="DIR", help="what was judged is kept here (default: DIR/cache)")
    evaluate.add_argument("--difficulties", type=Path, metavar="CSV", help="AlpacaEval's instruction_difficulty.csv")
    evaluate.add_argument("--gamed", type=Path, metavar="CSV", help="AlpacaEval's df_gamed.csv")
    add_reading_options(evaluate.add_argument_group("judge gpm:DIR"))
    add_chat_options(evaluate.add_argument_group("judge openai:MODEL (key in OPENAI_API_KEY)"))
    evaluate.set_defaults(verb=_eval)


def _eval(options: argparse.Namespace) -> int:
    from gpo.evaluation.compare import EvalRequest, evaluate_pair, prepare_comparison
    from gpo.evaluation.open_judge import open_judge

    request = request_of(EvalRequest, options)
    quiet_libraries()
    judge = open_judge(options)
    return evaluate_pair(request, prepare_comparison(request), judge)
