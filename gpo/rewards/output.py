"""The output directory of a whole-model training: whose it is, whether it is finished, and who works in it now."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpo.config.reward import TRAINING_PLACEMENT, RewardTrainConfig
from gpo.errors import UserError
from gpo.files import write_json
from gpo.locking import hold
from reward.checkpoint_files import METRICS_FILE

_LOCK = ".lock"


@contextmanager
def held(config: RewardTrainConfig) -> Iterator[None]:
    """Hold the directory against a second start, which would delete this one's checkpoints; raises UserError."""
    file = _training(config) / _LOCK
    try:
        lock = hold(file)
    except OSError as error:
        raise UserError(f"output = {config.output}: cannot be written ({error.strerror}); give another one") from None
    if lock is None:
        raise UserError(
            f"output = {config.output}: another training is at work in it; wait for it or give another output"
        )
    with lock:
        yield


def check_ours(config: RewardTrainConfig) -> None:
    """Raises UserError where --fresh would delete what no training wrote."""
    output, training = Path(config.output), _training(config)
    ours = any((training / name).is_file() for name in ("config.json", _LOCK))
    if not ours and output.is_dir() and any(output.iterdir()):
        raise UserError(
            f"output = {output}: --fresh would delete what is in it, but no `gpo reward train` wrote it; leave --fresh "
            "out or change output"
        )


def clear(config: RewardTrainConfig) -> None:
    """Delete what an earlier training left; the lock stays, or a second start would hold another file."""
    training = _training(config)
    for path in [*Path(config.output).iterdir(), *training.iterdir()]:
        if path in (training, training / _LOCK):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def begin(config: RewardTrainConfig) -> None:
    """Say whose output directory this is; a result of anything else in it does not count."""
    (Path(config.output) / METRICS_FILE).unlink(missing_ok=True)
    write_json(_written(config), config.model_dump(mode="json"))


def is_finished(config: RewardTrainConfig) -> bool:
    """Whether this very training is done; raises UserError when another one lies in the output directory."""
    if not _written(config).is_file():
        return False
    before, now = json.loads(_written(config).read_text("utf-8")), config.model_dump(mode="json")
    changed = [name for name in now if name not in TRAINING_PLACEMENT and before.get(name) != now[name]]
    if changed:
        raise UserError(
            f"output = {config.output}: holds a training with another {', '.join(changed)} (there "
            f"{before.get(changed[0])!r}, here {now[changed[0]]!r}); give another output, or --fresh to start anew"
        )
    return (Path(config.output) / METRICS_FILE).is_file()


def _written(config: RewardTrainConfig) -> Path:
    return _training(config) / "config.json"


def _training(config: RewardTrainConfig) -> Path:
    return Path(config.output) / "training"
