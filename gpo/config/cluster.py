"""Where the processes run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpo.config.types import Count, Positive
from gpo.settings import Settings

Share = Annotated[float, Field(ge=0)]


class ClusterConfig(Settings):
    """Where the processes run (placement)."""

    address: str | None = None
    """Ray cluster (`auto`, or HOST:PORT of its head); None starts Ray here, for this run alone."""
    listen: Literal["loopback", "all"] = "loopback"
    """Interfaces on which a Ray that is started here listens."""
    shape: Literal["colocated", "split"] = "colocated"
    """colocated: phases in turn on the same devices; split: samplers and scorers side by side."""
    samplers: Count = 1
    """Engine processes; the most of them where `least_samplers` is given."""
    least_samplers: Count | None = None
    """Begin, and go on, with as few as these; more join as the cluster grows. None: all from the start."""
    scorers: Count = 1
    """Scoring processes; the most of them where `least_scorers` is given."""
    least_scorers: Count | None = None
    """The same for scorers."""
    strategy: Literal["pack", "spread"] = "pack"
    """pack: processes of a kind on as few nodes as hold them; spread: on as many as there are."""
    sampler_cpus: Share = 0
    """CPUs that Ray sets aside for a sampler; 0: none, processes share the node."""
    scorer_cpus: Share = 0
    """The same for a scorer."""
    learner_cpus: Share = 0
    """The same for a learner."""
    sampler_gpus: Positive | None = None
    """GPUs of one sampler, or of each of its tensor-parallel parts; below 1: a share of one. None: by the shape where
    the cluster has GPUs. A number is waited for, also where no GPU has joined yet."""
    scorer_gpus: Share | None = None
    """The same for a scorer; 0 scores on the CPU."""
    learner_gpus: Positive | None = None
    """The same for a learner."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads a process; 0: the CPUs that are set aside for it, or else its share of its node's cores among the
    processes that work at the same time."""
    waiting_shards: Count = 8
    """Sampled shards for a scorer, with which no sampler gets another; colocated: after so many, sampling and scoring
    change places."""
    waiting_mib: Positive = 128.0
    """The same by memory, in MiB of the object store; shards that samplers are at work on come on top."""
    placement_seconds: Positive = 60.0
    """How long to wait for nodes and devices that the run needs and the cluster lacks; nodes may still be joining."""
    shared_disk: Literal["auto", "yes", "no"] = "auto"
    """Whether every node sees the run directory, the policy and the preference sources under the same path; auto looks
    for each. Where not, they travel through Ray's object store."""
    storage: str | None = None
    """URL (s3://, gs://, hdfs://, file://) to which every finished stage is copied, and from which a run goes on where
    its directory is empty. A directory that is behind its copy is refused. None: the run directory alone."""
    wait_seconds: Positive = 3600.0
    """Deadline of a single shard or stage: a process that is silent for so long is replaced."""

    @model_validator(mode="after")
    def _least_is_not_more(self) -> "ClusterConfig":
        for name, least, most in (
            ("samplers", self.least_samplers, self.samplers),
            ("scorers", self.least_scorers, self.scorers),
        ):
            if least is not None and least > most:
                raise ValueError(f"cluster.least_{name} = {least} is more than cluster.{name} = {most}")
        return self
