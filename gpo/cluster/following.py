"""A job of a cluster, followed from here: output, end and exit status. Every wait for the cluster is bounded."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from gpo.errors import StageError
from gpo.printable import tell

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STOPPED = 143
"""Exit status of a job that somebody stopped: as of a run that got SIGTERM."""
POLL_SECONDS = 1.0
ENDING_SECONDS = 60
"""How long a job that is stopped may take to end by itself, before Ray kills it."""
STOP_SECONDS = ENDING_SECONDS + 15.0
LOST_SECONDS = 60.0
"""How long a job may not be heard of before it counts as lost."""
OUTPUT_SECONDS = 10.0
"""For the rest of the output of a job that is over."""


def follow(client: "JobSubmissionClient", job: str) -> int:
    """Show a job's output until it is over; returns its exit status. Ctrl-C stops the job and goes on up.

    Raises StageError when nothing is heard of the job for LOST_SECONDS.
    """
    output = threading.Thread(target=_show_output, args=(client, job), daemon=True, name="job-output")
    output.start()
    try:
        details = _details_at_end(client, job)
    except KeyboardInterrupt:
        print("gpo: stopping the job", file=sys.stderr)
        _stop(client, job)
        output.join(OUTPUT_SECONDS)
        raise
    output.join(OUTPUT_SECONDS)
    return _exit_status(job, details)


def _show_output(client: "JobSubmissionClient", job: str) -> None:
    """In a thread, because a connection to a head that vanished may be silent for ever."""
    import aiohttp

    async def show() -> None:
        async for text in client.tail_job_logs(job):
            sys.stdout.write(text)
            sys.stdout.flush()

    try:
        asyncio.run(show())
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        # The connection may end before the job does; its status says how it went.
        tell(f"gpo: the job's output is no longer shown ({error})", file=sys.stderr)


def _details_at_end(client: "JobSubmissionClient", job: str, seconds: float = float("inf")) -> Any:
    """Ray's details of a job that is over. Raises StageError when it is not within `seconds`, or nothing is heard."""
    end = time.monotonic() + seconds
    heard = time.monotonic()
    while time.monotonic() < end:
        try:
            details = within(LOST_SECONDS, lambda: client.get_job_info(job))
            heard = time.monotonic()
        except (RuntimeError, OSError) as error:
            if time.monotonic() - heard >= LOST_SECONDS:
                raise StageError(
                    f"job {job}: nothing heard of it for {LOST_SECONDS:.0f} s ({error}); it may still run. When its "
                    "cluster answers again, ray job status tells, and the same gpo submit command goes on"
                ) from None
        else:
            if details.status.is_terminal():
                return details
        time.sleep(POLL_SECONDS)
    raise StageError(f"job {job}: not over within {seconds:.0f} s")


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call returns or raises; TimeoutError after so many seconds, which Ray's client has no option for."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # handed to the one who waits
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True, name="ray-client").start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def _stop(client: "JobSubmissionClient", job: str) -> None:
    try:
        within(STOP_SECONDS, lambda: client.stop_job(job))
        _details_at_end(client, job, STOP_SECONDS)
    except (RuntimeError, OSError, StageError) as error:
        tell(f"gpo: whether job {job} has stopped is not known ({error}); see ray job status", file=sys.stderr)


def _exit_status(job: str, details: Any) -> int:
    from ray.job_submission import JobStatus

    if details.status == JobStatus.SUCCEEDED:
        return 0
    tell(f"gpo: job {job}: {details.status.value.lower()}; {details.message or 'no reason given'}", file=sys.stderr)
    return STOPPED if details.status == JobStatus.STOPPED else details.driver_exit_code or 1
