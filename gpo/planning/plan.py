"""What a run will need, before it starts: memory, disk and counts, by simple formulas.

Memory of a process = base + weights x bytes of their type (+ cache, + optimizer). Printed by `--dry-run`, and checked
against the machine before anything heavy starts. Imports neither torch, vllm nor ray.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from gpo.config import RunConfig
from gpo.errors import UserError
from gpo.modelfiles import adapter_parameter_count, parameter_count
from gpo.planning.kv_cache import kv_cache
from gpo.planning.memory import BYTES, GIB, available_memory_gib

BASE_GIB = 0.55
"""A Python process with torch and transformers."""
ENGINE_BASE_GIB = 1.1
"""The same with vllm."""
FORWARD_WORK_GIB = 0.1
"""What a forward pass without gradients takes beside the weights."""
DRIVER_GIB = 1.4
"""The driver and Ray's own processes on its node."""
OPTIMIZER_STATES = {"rmsprop": 1, "adamw": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """GiB of one process, by what takes it."""

    process: str
    base: float
    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    kv_cache: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.base + self.weights + self.gradients + self.optimizer + self.activations + self.kv_cache


@dataclass(frozen=True, slots=True)
class Plan:
    """GiB of memory by kind of process, GiB of disk, and what one process of each kind is made of."""

    parameters: int
    memory_gib: dict[str, float]
    disk_gib: float
    processes: tuple[Memory, ...] = ()

    @property
    def peak_gib(self) -> float:
        """All that is there at one moment on one machine: the forward has its model only while no learner is there."""
        resting = sum(memory.total - memory.base for memory in self.processes if memory.process == "forward")
        return sum(self.memory_gib.values()) - resting


def make_plan(config: RunConfig) -> Plan:
    """Estimates for one machine."""
    parameters = parameter_count(Path(config.policy.model))
    weights = parameters * BYTES[config.policy.dtype] / GIB
    trained = _trained_parameters(config, parameters) * 4 / GIB
    sampler, scorer, learner, forward = processes = (
        Memory(
            process="sampler",
            base=ENGINE_BASE_GIB,
            # On the CPU vLLM keeps packed copies of the linear layers beside what it loaded.
            weights=2 * weights,
            kv_cache=kv_cache(config).gib,
        ),
        Memory(process="scorer", base=BASE_GIB, weights=_scorer_weights(config)),
        Memory(
            process="learner",
            base=BASE_GIB,
            weights=_learner_weights(config, parameters),
            gradients=_gradient_copies(config) * trained / _pieces(config, "zero2", "zero3", "fsdp"),
            optimizer=OPTIMIZER_STATES[config.train.optimizer]
            * trained
            / _pieces(config, "zero1", "zero2", "zero3", "fsdp"),
            activations=_activations(config),
        ),
        Memory(
            process="forward",
            base=BASE_GIB,
            weights=parameters * 4 / GIB,
            # While it loads, the stored form lies beside what becomes of it.
            activations=FORWARD_WORK_GIB + parameters * 2 / GIB,
        ),
    )
    memory = {
        "driver and Ray": DRIVER_GIB,
        "samplers": config.cluster.samplers * sampler.total,
        "scorers": config.cluster.scorers * scorer.total,
        "learner": config.train.workers * learner.total,
        "forward": forward.total,
    }
    states = 2 + OPTIMIZER_STATES[config.train.optimizer]
    kept_on_disk = config.iterations * weights + 2 * trained + (2 * states * trained if config.train.save_steps else 0)
    rounded = {name: round(value, 2) for name, value in memory.items()}
    return Plan(parameters, rounded, round(kept_on_disk + 0.1, 2), processes)


def device_phases(config: RunConfig, plan: Plan) -> dict[str, float]:
    """GiB that each phase takes on one GPU, without what a process needs of the host.

    An engine on a GPU takes `rollout.engine.gpu_memory_utilization` of the device whatever the model; this is the
    least it must be. Weights are shared out over the engine's tensor-parallel GPUs.
    """
    by_name = {memory.process: memory for memory in plan.processes}
    sampler, learner = by_name["sampler"], by_name["learner"]
    parts = config.rollout.engine.tensor_parallel
    return {
        "generate": (sampler.weights / 2 + sampler.kv_cache) / parts,
        "score": by_name["scorer"].weights,
        "train": learner.total - learner.base,
    }


def _trained_parameters(config: RunConfig, parameters: int) -> int:
    """Of the whole model, or of its adapter."""
    lora = config.train.lora
    return parameters if lora is None else adapter_parameter_count(Path(config.policy.model), lora.rank, lora.modules)


def _gradient_copies(config: RunConfig) -> int:
    """DDP, which plain workers are joined by, has buckets as large as the gradients beside them."""
    return 2 if config.train.workers > 1 and config.train.sharding == "none" else 1


def _learner_weights(config: RunConfig, parameters: int) -> float:
    """GiB of float32 masters, of what autocast makes of them, and of the other models that a learner holds."""
    train, master = config.train, parameters * 4 / GIB
    # A live reference is a second model, but for an adapter, which is switched off for it; the anchor is one too.
    models = 1 + (train.reference == "live" and train.lora is None) + (train.pull > 0)
    cast = 0 if config.policy.dtype == "float32" else parameters * BYTES[config.policy.dtype] / GIB
    engine = master / train.workers if train.workers > 1 and train.sharding.startswith("zero") else 0
    return models * master / _pieces(config, "zero3", "fsdp") + cast + engine


def _pieces(config: RunConfig, *shardings: str) -> int:
    """Into how many pieces these ways of sharding cut something; 1 where train.sharding is another."""
    return config.train.workers if config.train.sharding in shardings else 1


def _scorer_weights(config: RunConfig) -> float:
    directories = {spec.partition(":")[2] for spec in config.preference.sources.values() if spec.startswith("gpm:")}
    # A machine that computes the policy in float32 for want of bfloat16 computes its reward models so too.
    width = BYTES[config.policy.dtype]
    return sum(width * parameter_count(Path(directory)) / GIB for directory in directories)


def _activations(config: RunConfig) -> float:
    """GiB for a forward pass: measured at about 1.6 MiB a token for a 135M model, growing with the square root."""
    step = config.train.batch_prompts * config.rollout.samples * (config.rollout.max_tokens + 64)
    tokens = min(step, max(config.train.batch_tokens, config.rollout.max_tokens + config.prompts.max_tokens))
    scale = (parameter_count(Path(config.policy.model)) / 135e6) ** 0.5
    share = 0.15 if config.train.gradient_checkpointing is True else 1.0
    return tokens * 1.6 * share * scale / 1024


def with_checkpointing(config: RunConfig, notes: list[str]) -> RunConfig:
    """The config with `train.gradient_checkpointing` as it will be, and a note where `auto` makes it true.

    Needed is it where this machine alone does the run and has too little memory otherwise.
    """
    if config.train.gradient_checkpointing != "auto":
        return config
    peak, available = make_plan(config).peak_gib, available_memory_gib()
    needed = config.cluster.address is None and peak > available
    if needed:
        notes.append(
            f"train.gradient_checkpointing = auto: true, because the run would need about {peak:.1f} GiB otherwise and "
            f"{available:.1f} GiB are free"
        )
    train = config.train.model_copy(update={"gradient_checkpointing": needed})
    return config.model_copy(update={"train": train})


def check_fits(plan: Plan, run_directory: Path, *, alone: bool = True) -> None:
    """Raises UserError when this machine's disk, and (where it works `alone`) its memory, cannot hold the run.

    What earlier starts wrote into the run directory needs no room any more.
    """
    available = available_memory_gib()
    if alone and plan.peak_gib > available:
        parts = ", ".join(f"{name} {value:.1f}" for name, value in plan.memory_gib.items())
        raise UserError(
            f"the run needs about {plan.peak_gib:.1f} GiB of memory ({parts}), {available:.1f} GiB are free; lower "
            "train.batch_tokens, rollout.max_tokens or rollout.engine.kv_cache_gib, or leave "
            "train.gradient_checkpointing at auto"
        )
    existing = next(
        folder for folder in [run_directory.absolute(), *run_directory.absolute().parents] if folder.exists()
    )
    free = shutil.disk_usage(existing).free / GIB
    written = sum(file.stat().st_size for file in run_directory.rglob("*") if file.is_file()) / GIB
    if plan.disk_gib - written > free:
        raise UserError(
            f"the run writes about {plan.disk_gib:.1f} GiB under {run_directory}, {free:.1f} GiB are free there; free "
            "some or choose another --run-dir"
        )
