"""A finished model on the model hub, where the config asks for it: a run's chosen checkpoint, or a reward model.

The token is the hub's own (HF_TOKEN, or what `hf auth login` keeps); it passes through no file of the run.
"""

import logging
from pathlib import Path
from typing import Any

from gpo.config import RunConfig
from gpo.config.reward import RewardTrainConfig
from gpo.config.tracking import HubConfig
from gpo.errors import StageError
from gpo.evaluation.choosing import choose_checkpoint
from gpo.files import read_json, write_json
from gpo.journal import RunDirectory
from rollout.weights import content_hash

logger = logging.getLogger(__name__)

PUSHED = "training/pushed.json"
"""In a reward model's directory: where its weights went."""


def push_when_asked(config: RunConfig, directory: RunDirectory) -> None:
    """Push once what `evaluation.choose` chose; the journal says that it is done.

    Raises StageError, with the run finished all the same.
    """
    if config.hub.push_to is None or any(line.get("event") == "pushed" for line in directory.journal_lines()):
        return
    choice = choose_checkpoint(directory, config, config.iterations)
    if choice.iteration == 0:
        logger.warning("hub.push_to: nothing is pushed, since what was chosen is the start")
        return
    pushed = _push(config.hub, directory.checkpoint(choice.iteration), config.name)
    directory.record("pushed", repository=config.hub.push_to, iteration=choice.iteration, commit=pushed.oid)
    logger.info("pushed the checkpoint of iteration %d to %s", choice.iteration, pushed.repo_url)


def push_reward_model(config: RewardTrainConfig) -> None:
    """Push a finished reward model, these weights once; raises StageError, with the model finished all the same."""
    output = Path(config.output)
    if config.hub.push_to is None:
        return
    made = {"repository": config.hub.push_to, "content": content_hash(output)}
    if (output / PUSHED).is_file() and made.items() <= read_json(output / PUSHED).items():
        return
    pushed = _push(config.hub, output, output.name)
    write_json(output / PUSHED, made | {"commit": pushed.oid})
    logger.info("pushed %s to %s", output, pushed.repo_url)


def _push(hub: HubConfig, folder: Path, name: str) -> Any:
    """The model's own files of a folder; what lies in folders below is of its making."""
    from huggingface_hub import HfApi

    api = HfApi()
    assert hub.push_to is not None
    try:
        api.create_repo(hub.push_to, private=hub.private, exist_ok=True)
        return api.upload_folder(
            repo_id=hub.push_to, folder_path=folder, ignore_patterns=["*/*"], commit_message=f"{name}, by gpo"
        )
    except Exception as error:  # of the hub, of its HTTP client, of its upload library: none may hide a finished model
        raise StageError(
            f"{folder} is finished, but hub.push_to = {hub.push_to}: {type(error).__name__}: {error}\n"
            "  log in with `hf auth login`, or mend hub.push_to, and start the same command again to push"
        ) from error
