"""`gpo` up to where a reward model would be trained: all before it is read and checked as ever, and the status is 0.

Run: python -m tests.proof.until_training reward train config.yaml

Neither Ray nor a training starts. What a worker reads and encodes before its first step is read and encoded here.
"""

import sys
from collections.abc import Sequence
from typing import Any, NoReturn
from unittest import mock

from gpo.cli import main as gpo_main


class BeginsError(BaseException):
    """A training would begin; no handler of ordinary errors may take it for one."""


def main(words: Sequence[str]) -> int:
    """The status of `gpo` with these words, 0 where it would train."""
    with (
        mock.patch("gpo.rewards.training.run_training", read_as_a_worker),
        mock.patch("reward.head_training._states", begin),
        mock.patch("reward.cyclic.compare_on_cycles", begin),
    ):
        try:
            return gpo_main(list(words))
        except BeginsError:
            return 0


def begin(*_: Any) -> NoReturn:
    """In the place of what would compute."""
    raise BeginsError


def read_as_a_worker(task: Any, _config: Any) -> NoReturn:
    """Model, data and the first forward pass's rows, as `reward.training.train_pairs` does before it computes."""
    from reward.checkpoint import load_tokenizer
    from reward.encoded_pairs import PairEncoder
    from reward.encoding import ConversationEncoder
    from reward.starting_model import open_model
    from reward.step_plan import Share
    from reward.training_data import read_data

    settings = task.settings
    tokenizer = load_tokenizer(task.backbone, settings.trust_remote_code)
    model = open_model(task.backbone, settings)
    encoder = PairEncoder(ConversationEncoder(tokenizer, model.settings, settings.max_length, model.vocabulary))
    share = Share(accumulation=settings.accumulation, with_answers=settings.sft_weight > 0)
    data = read_data(task.train, task.heldout, task.stream_buffer, settings, encoder, share)
    next(iter(data.passes), None)
    raise BeginsError


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
