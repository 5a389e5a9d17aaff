"""A run from its first line to its closing table: directory, Ray, loop, and what is said at the end."""

import logging
import os
from pathlib import Path

from gpo import interrupts
from gpo.cluster import ray_session, relative, threads_for
from gpo.config import RunConfig
from gpo.context import RunContext
from gpo.errors import StageError, UserError
from gpo.journal import RunDirectory, open_run, set_status
from gpo.logs import log_to_file
from gpo.loop import self_play
from gpo.pool import Pool
from gpo.preflight import Prepared
from gpo.report.terminal import closing_table, samples_before_and_after
from gpo.storage import Storage
from rollout.engine import EngineSettings

logger = logging.getLogger(__name__)


def run_to_end(config: RunConfig, root: Path, prepared: Prepared, *, fresh: bool) -> int:
    """Start or go on with a run; returns the exit status. Raises UserError and StageError."""
    storage = _storage(config, root)
    if storage is not None and not fresh:
        storage.restore()
    directory = open_run(root, config, fresh=fresh, versions=prepared.versions, data=prepared.data_sha256)
    log_to_file(directory.logs, f"driver-{os.getpid()}")
    for note in prepared.notes:
        logger.info("%s", note)
    if directory.finished("evaluate", config.iterations):
        set_status(directory, "finished")
        _say_what_came_out(directory, config)
        return 0
    set_status(directory, "running")
    try:
        directory.storage = storage
        with ray_session(config, root):
            pool = Pool(config, engine_settings(config, prepared), str(directory.logs.absolute()))
            self_play(RunContext(config, directory, pool, prepared.prompts, prepared.heldout))
    except KeyboardInterrupt:
        set_status(directory, "interrupted")
        raise
    except (StageError, UserError):
        set_status(directory, "failed")
        raise
    except Exception as error:
        if interrupts.received:
            # Ray turns an interrupt inside some of its calls into an error of its own.
            set_status(directory, "interrupted")
            raise KeyboardInterrupt from error
        set_status(directory, "failed")
        stage = _stage_at_work(directory)
        logging.getLogger("traceback").exception("%s failed", stage)
        raise StageError(
            f"{stage} failed: {type(error).__name__}: {_first_line(error)}\n"
            f"  details are in {relative(directory.logs)}; start the same command again to go on"
        ) from error
    finally:
        directory.copy_away()
    set_status(directory, "finished")
    directory.copy_away()
    _say_what_came_out(directory, config)
    return 0


def _storage(config: RunConfig, root: Path) -> Storage | None:
    """The copy of the run directory, below `cluster.storage` under the directory's own name."""
    if config.cluster.storage is None:
        return None
    return Storage(f"{config.cluster.storage.rstrip('/')}/{root.absolute().name}", root)


def engine_settings(config: RunConfig, prepared: Prepared) -> EngineSettings:
    """What each sampler's engine may use on this machine."""
    engine = config.rollout.engine
    at_work = 1 if config.cluster.shape == "colocated" else config.cluster.samplers + config.cluster.scorers
    return EngineSettings(
        max_model_len=prepared.max_model_len,
        dtype=config.policy.dtype,
        kv_cache_gib=engine.kv_cache_gib,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        tensor_parallel=engine.tensor_parallel,
        max_sequences=engine.max_sequences,
        threads=threads_for(config, at_work),
        compile=engine.compile,
        trust_remote_code=config.policy.trust_remote_code,
    )


def _stage_at_work(directory: RunDirectory) -> str:
    begun = [line for line in directory.journal() if line.get("event") == "begin"]
    return f"stage {begun[-1]['stage']} of iteration {begun[-1]['iteration']}" if begun else "the start of the run"


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _say_what_came_out(directory: RunDirectory, config: RunConfig) -> None:
    print(closing_table(directory))
    print()
    print(samples_before_and_after(directory, config.iterations))
    print()
    print(f"checkpoint: {relative(directory.checkpoint(config.iterations))}")
    print(f"rollouts, evaluations, logs: {relative(directory.root)}")
