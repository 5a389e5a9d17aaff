"""What every stage of a run is given: the config, the run directory, the pool, the prompts as requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpo.cluster.runtime import deliver
from gpo.config import RunConfig
from gpo.journal import RunDirectory
from gpo.rollouts.pool import Pool, Weights
from gpo.training.forward_process import ForwardProcess
from rollout.engine import SampleRequest, Sampling
from rollout.prompts import Prompt
from rollout.seeds import request_seed
from rollout.weights import verify_published


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt and its ids under the policy's template; tokenised once in a run."""

    prompt: Prompt
    prompt_ids: Sequence[int]
    """Preflight makes them arrays: the driver holds every prompt of a run, and a list takes eight times as much."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """A run at work."""

    config: RunConfig
    directory: RunDirectory
    pool: Pool
    forward: ForwardProcess
    prompts: list[list[TokenizedPrompt]]
    """Of each iteration, the first at index 0."""
    heldout: list[TokenizedPrompt]

    def sampling(self, samples: int) -> Sampling:
        """How answers are drawn."""
        rollout = self.config.rollout
        return Sampling(
            samples=samples,
            max_tokens=rollout.max_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
        )

    def requests(self, prompts: list[TokenizedPrompt], iteration: int, purpose: str) -> list[SampleRequest]:
        """Requests with the seeds that belong to them."""
        return [
            SampleRequest(
                prompt_id=item.prompt.prompt_id,
                prompt=item.prompt.as_messages(),
                prompt_ids=list(item.prompt_ids),
                seed=request_seed(self.config.seed, iteration, item.prompt.prompt_id, purpose),
            )
            for item in prompts
        ]

    def weights_after(self, iteration: int) -> Weights:
        """What an iteration published; the policy itself before the first. Raises ValueError when damaged."""
        if iteration == 0:
            return Weights(str(Path(self.config.policy.model).absolute()), None)
        directory = self.directory.checkpoint(iteration)
        deliver(directory)
        return Weights(str(directory.absolute()), verified_version(directory))


def verified_version(directory: Path) -> str:
    """Of a published directory whose content agrees with its marker; raises ValueError otherwise."""
    return _verified_version(directory.absolute(), _file_stamps(directory))


def _file_stamps(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of every file."""
    files = ((path.name, path.stat()) for path in sorted(directory.iterdir()))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)


@cache
def _verified_version(directory: Path, _stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Hashing a checkpoint takes seconds a GiB, so once a process while no file of it changes."""
    return verify_published(directory).version
