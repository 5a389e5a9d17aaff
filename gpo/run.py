"""A run from its first line to its closing table: directory, Ray, loop, and what is said at the end."""

import logging
import os
from functools import partial
from pathlib import Path

from gpo import interrupts
from gpo.cluster.runtime import ray_session, relative, threads_for
from gpo.cluster.storage import storage_of
from gpo.config import RunConfig
from gpo.context import RunContext
from gpo.cpu import keep_from_collections
from gpo.errors import StageError, UserError, last_line
from gpo.evaluation.choosing import choose_checkpoint
from gpo.files import remove_parts
from gpo.hub import push_when_asked
from gpo.journal import RunDirectory, open_run, set_status
from gpo.logs import log_to_file
from gpo.loop import self_play
from gpo.planning.kv_cache import kv_cache
from gpo.preflight import Prepared
from gpo.printable import tell
from gpo.report.terminal import closing_table, samples_before_and_after
from gpo.rollouts.pool import Pool
from gpo.trackers import Trackers
from gpo.training.forward_process import ForwardProcess
from gpo.verification import verify_finished
from rollout.engine_settings import EngineSettings

logger = logging.getLogger(__name__)
file_only = logging.getLogger("driver")
"""Lines for the driver's log alone: only our packages' loggers reach the terminal."""


def run_to_end(config: RunConfig, root: Path, prepared: Prepared, *, fresh: bool) -> int:
    """Start or go on with a run; returns the exit status. Raises UserError and StageError."""
    try:
        return _start_or_go_on(config, root, prepared, fresh)
    except BrokenPipeError:  # Nobody reads the closing table; the run is over.
        raise
    except OSError as error:
        raise StageError(
            f"the run in {root} cannot be kept ({error}); make room or mend it, then start the same command again"
        ) from error


def _start_or_go_on(config: RunConfig, root: Path, prepared: Prepared, fresh: bool) -> int:
    storage = storage_of(config.cluster, root)
    if storage is not None and not fresh:
        storage.restore()
    directory = open_run(root, config, fresh=fresh, versions=prepared.versions, data=prepared.data_sha256)
    directory.storage = storage
    log_to_file(directory.logs, f"driver-{os.getpid()}")
    for note in prepared.notes:
        logger.info("%s", note)
    _verify(directory, config)
    if directory.finished("evaluate", config.iterations):
        return _finish(directory, config)
    set_status(directory, "running")
    try:
        with Trackers(config, directory), ray_session(config, root, directory.began()):
            keep_from_collections()
            logs = str(directory.logs.absolute())
            pool = Pool(config, engine_settings(config, prepared), logs, record=directory.record)
            forward = ForwardProcess(config, logs, record=directory.record)
            self_play(RunContext(config, directory, pool, forward, prepared.prompts, prepared.heldout))
    except KeyboardInterrupt:
        _close(directory, "interrupted", "interrupted; the same command goes on where this start stopped")
        raise
    except (StageError, UserError) as error:
        _close(directory, "failed", str(error))
        raise
    except Exception as error:
        if interrupts.received:
            # Ray turns an interrupt inside some of its calls into an error of its own.
            _close(directory, "interrupted", "interrupted; the same command goes on where this start stopped")
            raise KeyboardInterrupt from error
        stage = _stage_at_work(directory)
        file_only.exception("%s failed", stage)
        message = (
            f"{stage} failed: {type(error).__name__}: {last_line(error)}\n"
            f"  details are in {relative(directory.logs)}; start the same command again to go on"
        )
        _close(directory, "failed", message)
        raise StageError(message) from error
    return _finish(directory, config)


def _close(directory: RunDirectory, status: str, message: str) -> None:
    """The run's status, and at the end of the driver's log what happened and the way on; the terminal gets it later.

    Where the disk is full none of it can be kept: what ended the run matters more, so nothing is raised.
    """
    file_only.error("%s", message)
    for keep in (
        partial(set_status, directory, status),
        partial(directory.record, status, reason=message),
        directory.copy_away,
    ):
        try:
            keep()
        except (OSError, StageError, UserError) as error:
            logger.warning("the end of the run is not kept everywhere: %s", error)


def _verify(directory: RunDirectory, config: RunConfig) -> None:
    """What earlier starts finished; raises StageError, which stands in the driver's log too."""
    try:
        verify_finished(directory, config.iterations)
    except StageError as error:
        file_only.error("%s", error)
        raise


def _finish(directory: RunDirectory, config: RunConfig) -> int:
    remove_parts(directory.root)
    set_status(directory, "finished")
    _say_what_came_out(directory, config)
    try:
        push_when_asked(config, directory)
    except StageError as error:
        file_only.error("%s", error)
        raise
    finally:
        directory.copy_away()
    return 0


def engine_settings(config: RunConfig, prepared: Prepared) -> EngineSettings:
    """What each sampler's engine may use on this machine."""
    engine = config.rollout.engine
    shared = config.cluster.shape == "colocated"
    at_work = config.cluster.samplers + (0 if shared else config.cluster.scorers)
    cache = kv_cache(config)
    return EngineSettings(
        max_model_len=prepared.max_model_len,
        dtype=config.policy.dtype,
        kv_cache_gib=cache.gib,
        kv_cache_reason=cache.reason,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        tensor_parallel=engine.tensor_parallel,
        max_sequences=engine.max_sequences,
        threads=threads_for(config.cluster, at_work, config.cluster.sampler_cpus),
        compile=engine.compile,
        weight_transfer=engine.weight_transfer,
        sleep_level=engine.sleep_level if shared else 0,
        trust_remote_code=config.policy.trust_remote_code,
        lora_rank=config.train.lora.rank if config.train.lora is not None and engine.adapters else 0,
        lora_base=str(Path(config.policy.model).absolute()),
    )


def _stage_at_work(directory: RunDirectory) -> str:
    begun = [line for line in directory.journal_lines() if line.get("event") == "begin"]
    return f"stage {begun[-1]['stage']} of iteration {begun[-1]['iteration']}" if begun else "the start of the run"


def _say_what_came_out(directory: RunDirectory, config: RunConfig) -> None:
    tell(closing_table(directory))
    print()
    tell(samples_before_and_after(directory, config.iterations))
    print()
    choice = choose_checkpoint(directory, config, config.iterations)
    tell(choice.sentence())
    chosen = directory.checkpoint(choice.iteration) if choice.iteration else Path(config.policy.model)
    tell(f"checkpoint: {relative(chosen)}")
    tell(f"rollouts, evaluations, logs: {relative(directory.root)}")
    tell(f"to look at it: gpo show {relative(directory.root)}, or gpo report {relative(directory.root)}")
