"""The chosen checkpoint of a finished run on the model hub, where the config asks for it.

The token is the hub's own (HF_TOKEN, or what `hf auth login` keeps); it passes through no file of the run.
"""

import logging

from gpo.config import RunConfig
from gpo.errors import StageError
from gpo.evaluation.choosing import choose_checkpoint
from gpo.journal import RunDirectory

logger = logging.getLogger(__name__)


def push_when_asked(config: RunConfig, directory: RunDirectory) -> None:
    """Push once what `evaluation.choose` chose; the journal says that it is done.

    Raises StageError, with the run finished all the same.
    """
    if config.hub.push_to is None or any(line.get("event") == "pushed" for line in directory.journal()):
        return
    choice = choose_checkpoint(directory, config, config.iterations)
    if choice.iteration == 0:
        logger.warning("hub.push_to: nothing is pushed, since what was chosen is the start")
        return
    from huggingface_hub import HfApi

    folder = directory.checkpoint(choice.iteration)
    api = HfApi()
    try:
        api.create_repo(config.hub.push_to, private=config.hub.private, exist_ok=True)
        pushed = api.upload_folder(
            repo_id=config.hub.push_to, folder_path=folder, commit_message=f"{config.name}, by gpo"
        )
    except Exception as error:  # of the hub, of its HTTP client, of its upload library: none may hide a finished run
        raise StageError(
            f"the run is finished, but hub.push_to = {config.hub.push_to}: {type(error).__name__}: {error}\n"
            "  log in with `hf auth login`, or mend hub.push_to, and start the same command again to push"
        ) from error
    directory.record("pushed", repository=config.hub.push_to, iteration=choice.iteration, commit=pushed.oid)
    logger.info("pushed the checkpoint of iteration %d to %s", choice.iteration, pushed.repo_url)
