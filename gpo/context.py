"""What every stage of a run is given: the config, the run directory, the pool, the prompts as requests."""

from dataclasses import dataclass
from pathlib import Path

from gpo.cluster.runtime import deliver
from gpo.config import RunConfig
from gpo.journal import RunDirectory
from gpo.prompts import TokenizedPrompt
from gpo.rollouts.pool import Pool, Weights
from gpo.training.forward_process import ForwardProcess
from rollout.engine import SampleRequest, Sampling
from rollout.seeds import request_seed
from rollout.weights import verified_version


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
