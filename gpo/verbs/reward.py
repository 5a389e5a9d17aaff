"""`gpo reward …`: train and use reward models."""

import argparse
from pathlib import Path

from gpo.verbs.parts import Verbs, add_scorer_options, count, quiet_libraries, request_of
from gpo.verbs.reward_experiments import add_bench, add_cyclic


def add_to(verbs: Verbs) -> None:
    """`gpo reward` and its verbs."""

    reward = verbs.add_parser("reward", help="train and use reward models").add_subparsers(
        required=True, metavar="VERB"
    )
    _add_train(reward)
    _add_score(reward)
    add_bench(reward)
    add_cyclic(reward)


def _add_train(reward: Verbs) -> None:
    train = reward.add_parser(
        "train",
        help="train a GPM or a Bradley-Terry model on preference pairs",
        epilog="example: gpo reward train configs/quickstart_reward.yaml head=bt output=models/quickstart-bt",
    )
    train.add_argument("config", type=Path, help="YAML file of the training")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings that replace the file's")
    train.add_argument(
        "--fresh", action="store_true", help="throw away what is in output; heads are always trained anew"
    )
    train.set_defaults(verb=_train)


def _add_score(reward: Verbs) -> None:
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
    add_scorer_options(score)
    score.add_argument("--max-length", type=count, metavar="N", help="tokens kept (default: 4096 or the context)")
    score.add_argument("--batch-rows", type=count, default=64, metavar="N", help="rows at a time (default: 64)")
    score.set_defaults(verb=_score)


def _train(options: argparse.Namespace) -> int:
    from gpo.rewards.training import RewardTrainConfig, train_reward_model
    from gpo.settings import read_settings

    config = read_settings(RewardTrainConfig, options.config, options.overrides)
    quiet_libraries()
    return train_reward_model(config, fresh=options.fresh)


def _score(options: argparse.Namespace) -> int:
    from gpo.rewards.scoring import ScoreRequest, score_rewards

    request = request_of(ScoreRequest, options)
    quiet_libraries()
    return score_rewards(request)
