"""What several verbs need: number options, and quiet libraries."""

import argparse
import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def count(text: str) -> int:
    """argparse type: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def above_zero(text: str) -> float:
    """argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


Request = TypeVar("Request")


def request_of(kind: type[Request], options: argparse.Namespace) -> Request:
    """A request dataclass from the options that bear its fields' names; fields without an option keep their default."""
    given = vars(options)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    values: dict[str, Any] = {name: given[name] for name in names if name in given}
    return kind(**values)


def quiet_libraries() -> None:
    """Chatter of the libraries goes to files; only our own sentences reach the terminal."""
    from gpo.cluster.ray_environment import QUIET
    from gpo.logs import log_to_terminal

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.captureWarnings(True)
    log_to_terminal()


def add_scorer_options(parser: argparse._ActionsContainer) -> None:
    """What a reward model is computed with."""
    parser.add_argument("--backend", choices=("auto", "transformers", "vllm"), default="auto")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: as stored; float32 on a CPU without bfloat16",
    )


def add_reading_options(parser: argparse._ActionsContainer) -> None:
    """How a reward model reads answers."""
    parser.add_argument("--system", metavar="TEXT", help="system message before prompts that have none")
    add_scorer_options(parser)
    parser.add_argument("--max-length", type=count, metavar="N", help="tokens kept (default: 4096 or the context)")
    parser.add_argument("--batch-rows", type=count, default=64, metavar="N", help="answers at a time (default: 64)")


def add_chat_options(parser: argparse._ActionsContainer) -> None:
    """Where and how a chat model is asked."""
    parser.add_argument("--base-url", metavar="URL", help="OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--template", type=Path, metavar="FILE", help="what is asked (default: AlpacaEval 2's)")
    parser.add_argument("--top-logprobs", type=count, default=5, metavar="N", help="default: 5, as AlpacaEval 2")
    parser.add_argument("--concurrency", type=count, default=8, metavar="N", help="questions at a time (default: 8)")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds of a try (default: 120)")
    parser.add_argument("--tries", type=count, default=5, metavar="N", help="of a question (default: 5)")
    parser.add_argument("--price-prompt", type=float, metavar="USD", help="a million prompt tokens, for the costs")
    parser.add_argument("--price-completion", type=float, metavar="USD", help="a million answer tokens")
