"""From the command line's `--judge SPEC` to a judge; raises UserError for what it cannot be."""

import argparse
from pathlib import Path

from gpo.errors import UserError
from gpo.evaluation.embedded import ReaderSettings
from gpo.evaluation.judges import GpmJudge, Judge
from reward.errors import RewardInputError

KINDS = "gpm:DIR (a GPM or Bradley-Terry model)"


def reader_settings(options: argparse.Namespace) -> ReaderSettings:
    """How the reward model of `--judge gpm:DIR` reads answers."""
    kind, _, rest = options.judge.partition(":")
    if kind != "gpm" or not rest:
        raise UserError(f"--judge {options.judge}: expected {KINDS}")
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
    """The judge of `gpo eval`; no model is loaded yet."""
    try:
        return GpmJudge(reader_settings(options), cache_folder(options))
    except RewardInputError as error:
        raise UserError(f"--judge {options.judge}: {error}") from None
