"""`gpo eval`: pairwise judging of two files of answers, and checks of one."""

import argparse
from functools import partial
from pathlib import Path

from gpo.verbs.parts import Verbs, add_chat_options, add_reading_options, quiet_libraries, request_of

_JUDGED = {"judge", "cache"}
_CHAT = {"base_url", "concurrency", "timeout", "tries", "price_prompt", "price_completion"}
_PAIRS = {"baseline", "difficulties", "gamed", *_JUDGED}
HAS_EFFECT = {
    "--constraints": {"constraints"},
    "--grade": {"grade", "questions", "references", *_JUDGED, *_CHAT},
    "--judge gpm:DIR": {*_PAIRS, "system", "backend", "dtype", "max_length", "batch_rows"},
    "--judge openai:MODEL": {*_PAIRS, *_CHAT, "template", "top_logprobs"},
}
"""The options that each kind of evaluation listens to, beside --outputs and --output."""


def add_to(verbs: Verbs) -> None:
    """`gpo eval`."""
    evaluate = verbs.add_parser(
        "eval",
        help="win rate of a file of answers against another, raw and length-controlled",
        description="Both files are AlpacaEval's model_outputs.json over the same instructions. Writes "
        "annotations.json and leaderboard.csv in AlpacaEval's fields, and metrics.json with all numbers and how they "
        "were made.",
        epilog="example: gpo eval --outputs runs/answers/quickstart-002.json --baseline "
        "runs/answers/smollm2-135m-instruct.json --judge gpm:models/quickstart-gpm --output runs/evaluation",
    )
    evaluate.add_argument("--outputs", type=Path, required=True, metavar="FILE", help="answers that are evaluated")
    evaluate.add_argument("--baseline", type=Path, metavar="FILE", help="answers they are compared with")
    evaluate.add_argument("--judge", metavar="SPEC", help="gpm:DIR or openai:MODEL")
    evaluate.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    evaluate.add_argument("--cache", type=Path, metavar="DIR", help="what was judged is kept here (default: DIR/cache)")
    evaluate.add_argument("--difficulties", type=Path, metavar="CSV", help="df_gamed.csv, as for --gamed")
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
    evaluate.set_defaults(verb=partial(_eval, evaluate))


def _eval(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from gpo.errors import UserError

    if options.constraints is not None:
        _refuse_without_effect(parser, options, "--constraints")
        from gpo.evaluation.constraints import check_constraints

        quiet_libraries()
        return check_constraints(options.outputs, options.constraints, options.output)
    if options.grade is not None:
        return _grade(parser, options)
    if options.baseline is None or options.judge is None:
        raise UserError(
            "expected --baseline FILE and --judge gpm:DIR or openai:MODEL (or --constraints FILE, or --grade FILE)"
        )
    return _pairs(parser, options)


def _grade(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from gpo.errors import UserError
    from gpo.evaluation.grading import GradeRequest, grade
    from gpo.evaluation.open_judge import cache_folder, chat_settings, prices

    kind, _, model = (options.judge or "").partition(":")
    if kind != "openai" or not model or options.questions is None:
        raise UserError("--grade: expected --judge openai:MODEL and --questions FILE")
    _refuse_without_effect(parser, options, "--grade")
    chat = chat_settings(options, model)
    quiet_libraries()
    return grade(request_of(GradeRequest, options), chat, prices(options), cache_folder(options))


def _pairs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from gpo.evaluation.compare import EvalRequest, evaluate_pair, prepare_comparison
    from gpo.evaluation.open_judge import open_judge

    judge = open_judge(options)
    chat = options.judge.startswith("openai:")
    _refuse_without_effect(parser, options, "--judge openai:MODEL" if chat else "--judge gpm:DIR")
    request = request_of(EvalRequest, options)
    quiet_libraries()
    return evaluate_pair(request, prepare_comparison(request), judge)


def _refuse_without_effect(parser: argparse.ArgumentParser, options: argparse.Namespace, kind: str) -> None:
    """Raises UserError for options that are given and not listened to: their giver expects another number."""
    from gpo.errors import UserError

    others = set().union(*HAS_EFFECT.values()) - HAS_EFFECT[kind]
    given = sorted(name for name in others if getattr(options, name) != parser.get_default(name))
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{named}: without effect with {kind}; leave {'it' if len(given) == 1 else 'them'} out")
