"""The command line: `gpo` and its verbs. Heavy imports happen inside a verb, after its arguments are understood."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from gpo import interrupts
from gpo.errors import StageError, UserError

OK, FAILED, MISTAKE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status (see DESIGN: 0 done, 1 failed, 2 mistake, 130 and 143 interrupted)."""
    options = _parse(arguments)
    verb: Callable[[argparse.Namespace], int] = options.verb
    interrupts.install()
    try:
        return verb(options)
    except UserError as error:
        print(f"gpo: {error}", file=sys.stderr)
        return MISTAKE
    except StageError as error:
        print(f"gpo: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        how, status = ("terminated", TERMINATED) if interrupts.terminated() else ("interrupted", INTERRUPTED)
        print(f"gpo: {how}; the same command goes on where this one stopped", file=sys.stderr)
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """argparse takes positional `key=value` words only before the first option; take those behind one as well."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpo", description="Align a language model with general preferences, by iterative self-play."
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    _add_run(verbs)
    _add_reward(verbs)
    return parser


def _add_run(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = verbs.add_parser(
        "run",
        help="start, or go on with, an iterative self-play run",
        epilog="example: gpo run configs/quickstart.yaml preference.train_on=oracle --run-dir runs/upper-bound",
    )
    run.add_argument("config", type=Path, help="YAML file of the run")
    run.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings that replace the file's")
    run.add_argument("--run-dir", type=Path, help="where the run lives (default: runs/NAME)")
    run.add_argument("--dry-run", action="store_true", help="check everything, print config and plan, start nothing")
    run.add_argument("--fresh", action="store_true", help="throw away what is in the run directory")
    run.set_defaults(verb=_run)


def _add_reward(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    reward = verbs.add_parser("reward", help="train and use reward models").add_subparsers(
        required=True, metavar="VERB"
    )
    train = reward.add_parser(
        "train",
        help="train a GPM or a Bradley-Terry model on preference pairs",
        epilog="example: gpo reward train configs/quickstart_reward.yaml head=bt output=models/quickstart-bt",
    )
    train.add_argument("config", type=Path, help="YAML file of the training")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings that replace the file's")
    train.set_defaults(verb=_reward_train)
    _add_reward_score(reward)


def _add_reward_score(reward: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    score = reward.add_parser(
        "score",
        help="score pairs, or groups of answers, from a file",
        description="One line out for each row in. A row is a pair (`chosen` and `rejected` as message lists; "
        "`instruction` with the texts `chosen` and `reject` is read without chat template) or a group (`prompt`, "
        "`responses`). A row that cannot be scored gets a line with `error`, and the status is 1. A start that was "
        "stopped goes on where it was.",
        epilog="example: gpo reward score --model models/quickstart-gpm --data pairs.jsonl --output scores.jsonl",
    )
    score.add_argument("--model", type=Path, required=True, metavar="DIR", help="GPM or Bradley-Terry model")
    score.add_argument("--data", type=Path, required=True, metavar="FILE", help=".jsonl, .json or .parquet")
    score.add_argument("--output", type=Path, required=True, metavar="FILE", help=".parquet, else JSON Lines")
    score.add_argument("--strict", action="store_true", help="stop at the first row that cannot be scored")
    score.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    score.add_argument("--backend", choices=("auto", "transformers", "vllm"), default="auto")
    score.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: as stored")
    score.add_argument("--max-length", type=_count, metavar="N", help="tokens kept (default: 4096 or the context)")
    score.add_argument("--batch-rows", type=_count, default=64, metavar="N", help="rows at a time (default: 64)")
    score.set_defaults(verb=_reward_score)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    from gpo.config import RunConfig
    from gpo.settings import dump_yaml, read_settings

    config = read_settings(RunConfig, options.config, options.overrides)
    root: Path = options.run_dir or Path("runs") / config.name
    from gpo.plan import check_fits, make_plan
    from gpo.preflight import prepare

    prepared = prepare(config)
    plan = make_plan(config)
    check_fits(plan, root)
    if options.dry_run:
        print(dump_yaml(config))
        print(f"# {plan.parameters / 1e6:.1f} M parameters; run directory {root}, about {plan.disk_gib:.1f} GiB")
        for name, value in plan.memory_gib.items():
            print(f"# memory, {name}: {value:.1f} GiB")
        for note in prepared.notes:
            print(f"# {note}")
        counts = ", ".join(str(len(prompts)) for prompts in prepared.prompts)
        print(f"# prompts an iteration: {counts}; held out: {len(prepared.heldout)}")
        return OK
    from gpo.run import run_to_end

    _quiet_libraries()
    return run_to_end(config, root, prepared, fresh=options.fresh)


def _reward_train(options: argparse.Namespace) -> int:
    from gpo.reward_training import RewardTrainConfig, train_reward_model
    from gpo.settings import read_settings

    config = read_settings(RewardTrainConfig, options.config, options.overrides)
    _quiet_libraries()
    return train_reward_model(config)


def _reward_score(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from gpo.reward_scoring import ScoreRequest, score_rewards

    names = (field.name for field in fields(ScoreRequest))
    request = ScoreRequest(**{name: getattr(options, name) for name in names})
    _quiet_libraries()
    return score_rewards(request)


def _quiet_libraries() -> None:
    """Chatter of the libraries goes to files; only our own sentences reach the terminal."""
    from gpo.cluster import QUIET
    from gpo.logs import log_to_terminal

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.captureWarnings(True)
    log_to_terminal()


if __name__ == "__main__":
    sys.exit(main())
