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
    evaluate.add_argument("--baseline", type=Path, metavar="FILE", help="answers they are compared with")
    evaluate.add_argument("--judge", metavar="SPEC", help="gpm:DIR or openai:MODEL")
    evaluate.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    evaluate.add_argument("--cache", type=Path, metavar="DIR", help="what was judged is kept here (default: DIR/cache)")
    evaluate.add_argument("--difficulties", type=Path, metavar="CSV", help="AlpacaEval's instruction_difficulty.csv")
    evaluate.add_argument("--gamed", type=Path, metavar="CSV", help="AlpacaEval's df_gamed.csv")
    evaluate.add_argument(
        "--constraints", type=Path, metavar="FILE", help="IFEval's prompts: check their constraints, without a judge"
    )
    evaluate.add_argument(
        "--grade", type=Path, metavar="FILE", help="MT-Bench: rate single answers with FastChat's judge_prompts.jsonl"
    )
    evaluate.add_argument("--questions", type=Path, metavar="FILE", help="with --grade: MT-Bench's question.jsonl")
    evaluate.add_argument("--references", type=Path, metavar="FILE", help="with --grade: reference answers")
    add_reading_options(evaluate.add_argument_group("judge gpm:DIR"))
    add_chat_options(evaluate.add_argument_group("judge openai:MODEL (key in OPENAI_API_KEY)"))
    evaluate.set_defaults(verb=_eval)


def _eval(options: argparse.Namespace) -> int:
    from gpo.errors import UserError

    if options.constraints is not None:
        if options.baseline is not None or options.judge is not None:
            raise UserError("--constraints: checks one file without a judge; leave out --baseline and --judge")
        from gpo.evaluation.constraints import check_constraints

        quiet_libraries()
        return check_constraints(options.outputs, options.constraints, options.output)
    if options.grade is not None:
        return _grade(options)
    if options.baseline is None or options.judge is None:
        raise UserError(
            "expected --baseline FILE and --judge gpm:DIR or openai:MODEL (or --constraints FILE, or --grade FILE)"
        )
    return _pairs(options)


def _grade(options: argparse.Namespace) -> int:
    from gpo.errors import UserError
    from gpo.evaluation.grading import GradeRequest, grade
    from gpo.evaluation.open_judge import cache_folder, chat_settings

    kind, _, model = (options.judge or "").partition(":")
    if kind != "openai" or not model or options.questions is None or options.baseline is not None:
        raise UserError("--grade: expected --judge openai:MODEL and --questions FILE, and no --baseline")
    chat = chat_settings(options, model)
    quiet_libraries()
    return grade(request_of(GradeRequest, options), chat, cache_folder(options))


def _pairs(options: argparse.Namespace) -> int:
    from gpo.evaluation.compare import EvalRequest, evaluate_pair, prepare_comparison
    from gpo.evaluation.open_judge import open_judge

    request = request_of(EvalRequest, options)
    quiet_libraries()
    judge = open_judge(options)
    return evaluate_pair(request, prepare_comparison(request), judge)
