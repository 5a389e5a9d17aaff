"""From the command line's `--judge SPEC` to a judge; raises UserError for what it cannot be."""

import argparse
from pathlib import Path

from gpo.errors import UserError
from gpo.evaluation.chat_client import ChatSettings, check_chat_settings
from gpo.evaluation.embedded import ReaderSettings
from gpo.evaluation.judge_template import read_template
from gpo.evaluation.judges import GpmJudge, Judge
from gpo.evaluation.openai_judge import OpenAIJudge
from gpo.evaluation.prices import Prices
from reward.errors import RewardInputError

KINDS = "gpm:DIR (a GPM or Bradley-Terry model) or openai:MODEL (a chat model, with --base-url for other servers)"


def reader_settings(options: argparse.Namespace) -> ReaderSettings:
    """How the reward model of `--judge gpm:DIR` reads answers."""
    kind, _, rest = options.judge.partition(":")
    if kind != "gpm" or not rest:
        raise UserError(f"--judge {options.judge}: expected gpm:DIR (a GPM or Bradley-Terry model)")
    return ReaderSettings(
        model=Path(rest),
        system=options.system,
        backend=options.backend,
        dtype=options.dtype,
        max_length=options.max_length,
        batch_rows=options.batch_rows,
    )


def cache_folder(options: argparse.Namespace) -> Path:
    """Where judgements and embeddings are kept."""
    return options.cache or options.output / "cache"


def open_judge(options: argparse.Namespace) -> Judge:
    """The judge of `gpo eval`; no model is loaded and nobody is asked yet."""
    kind, _, rest = options.judge.partition(":")
    if kind not in ("gpm", "openai") or not rest:
        raise UserError(f"--judge {options.judge}: expected {KINDS}")
    try:
        if kind == "gpm":
            return GpmJudge(reader_settings(options), cache_folder(options))
        return OpenAIJudge(
            chat_settings(options, rest),
            read_template(options.template),
            prices(options),
            cache_folder(options),
            options.top_logprobs,
        )
    except RewardInputError as error:
        raise UserError(f"--judge {options.judge}: {error}") from None


def prices(options: argparse.Namespace) -> Prices:
    """What the caller says that a chat model's tokens cost."""
    return Prices(prompt=options.price_prompt, completion=options.price_completion)


def chat_settings(options: argparse.Namespace, model: str) -> ChatSettings:
    """Where and how a chat model is asked; raises UserError without a key for OpenAI's own server."""
    settings = ChatSettings(
        model=model,
        base_url=options.base_url,
        timeout_seconds=options.timeout,
        tries=options.tries,
        concurrency=options.concurrency,
    )
    check_chat_settings(settings)
    return settings
