"""What is used of Ray 2.60 beyond its documentation, and the names that engines over several GPUs lean on in vLLM 0.32.

Nothing is started. Run: python -m pytest tests/contract/test_ray.py
"""

import importlib.metadata
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpo.cluster.placement import Demand
from gpo.cluster.reservation import Place
from gpo.errors import UserError
from gpo.files import read_json_lines

WRITTEN_FOR = "2.60"


def test_the_installed_ray_is_the_one_this_was_written_for() -> None:
    assert importlib.metadata.version("ray").startswith(WRITTEN_FOR)


def test_free_resources_by_node_come_from_a_private_module() -> None:
    from ray._private import state

    assert list(inspect.signature(state.available_resources_per_node).parameters) == []


def test_ray_does_not_hide_gpus_from_a_process_that_reserves_none() -> None:
    from ray._private import utils

    source = inspect.getsource(utils.set_visible_accelerator_ids)
    assert re.search(r"override_on_zero = env_bool\([^)]*False", source)


def test_ray_trains_backend_is_called_on_start_with_workers_that_run_functions() -> None:
    from ray.train.torch import TorchConfig
    from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

    assert list(inspect.signature(TorchConfig().backend_cls.on_start).parameters) == [
        "self",
        "worker_group",
        "backend_config",
    ]
    assert callable(WorkerGroup.execute) and callable(WorkerGroup.execute_single_async)


def test_a_worker_s_mistake_of_the_caller_s_is_never_tried_again() -> None:
    from ray.train import FailureConfig
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from gpo.rewards.mistakes import Mistakes
    from gpo.rewards.workers import failure_of
    from reward.errors import RewardInputError

    raised: dict[int, Exception] = {0: OSError("reset"), 1: UserExceptionWithTraceback(RewardInputError("mine"), "…")}
    with pytest.raises(RewardInputError, match="mine") as found:
        Mistakes().after_exception(None, raised)
    policy, told = DefaultFailurePolicy(FailureConfig(max_failures=3)), ControllerError(found.value)
    assert policy.make_decision(told) is FailureDecision.RAISE
    assert str(failure_of(told, Path("out"))) == "mine" and isinstance(failure_of(told, Path("out")), UserError)
    Mistakes().after_exception(None, {0: OSError("reset")})
    assert policy.make_decision(WorkerGroupError("reset", {0: OSError("reset")})) is FailureDecision.RETRY


def test_a_worker_that_dies_while_it_starts_is_noted_and_tried_again(tmp_path: Path) -> None:
    from ray.train import FailureConfig, RunConfig
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.controller.state import InitializingState, ReschedulingState
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
    from ray.train.v2.api.exceptions import ControllerError

    from gpo.cluster.lost_workers import WorkersLostAtStart

    noted = WorkersLostAtStart(tmp_path / "lost.jsonl")
    assert RunConfig(callbacks=[noted]).callbacks == [noted], "it need not be a UserCallback"
    hook = inspect.signature(ControllerCallback.after_controller_state_update)
    assert list(hook.parameters) == ["self", "previous_state", "current_state"]
    died, no_room = ControllerError(WorkerGroupStartupFailedError("died")), WorkerGroupStartupTimeoutError(1)
    policy = DefaultFailurePolicy(FailureConfig(max_failures=0))
    assert policy.make_decision(died) is FailureDecision.RETRY
    for state in (ReschedulingState(died), ReschedulingState(ControllerError(no_room)), InitializingState()):
        noted.after_controller_state_update(InitializingState(), state)
    assert read_json_lines(tmp_path / "lost.jsonl") == [{"reason": "while it started: died"}]


def test_what_a_worker_raised_is_inside_what_ray_train_hands_on() -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    error = ValueError("odd")
    assert UserExceptionWithTraceback(error, "Traceback")._base_exc is error


def test_only_a_ray_of_our_own_goes_without_what_a_cluster_needs() -> None:
    """Ray 2.60: `_create_default_callbacks` makes them; without that hook a training ends 12 s later."""
    from gpo.cluster.torch_trainer import OF_A_CLUSTER, torch_trainer
    from gpo.config import ClusterConfig

    def callbacks(cluster: ClusterConfig) -> set[str]:
        made = torch_trainer(cluster)(lambda: None)._create_default_callbacks()
        return {type(one).__name__ for one in made}

    joined = callbacks(ClusterConfig(address="10.0.0.1:6379"))
    assert joined - callbacks(ClusterConfig()) == OF_A_CLUSTER


def test_ray_train_asks_an_autoscaler_by_three_methods_of_its_policy_and_its_controller_reads_switches() -> None:
    """Ray 2.60: what a training on a Ray of our own overrides, and what the controller reads."""
    from ray.train.v2._internal import constants
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, ScalingPolicy

    from gpo.cluster.ray_environment import ALONE

    asking = {name for name in vars(ScalingPolicy) if name.endswith("_resource_request")}
    assert asking == {
        "_send_resource_request",
        "_maybe_send_resource_request",
        "_cancel_resource_request",
        "_get_num_workers_for_resource_request",
    }
    assert issubclass(FixedScalingPolicy, ScalingPolicy)
    switches = {constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR, constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR}
    assert {name for name in ALONE if name.startswith("RAY_TRAIN")} == switches


def test_the_gcs_knows_the_settings_that_bound_what_it_remembers() -> None:
    """Ray 2.60 reads RAY_ and the name of a setting, and says nothing about a name that it does not know."""
    import ray

    from gpo.cluster.ray_environment import ALONE

    of_python = {name for name in ALONE if name.startswith(("RAY_TRAIN", "RAY_JEMALLOC"))}
    program = (Path(ray.__file__).parent / "core/src/ray/gcs/gcs_server").read_bytes()
    settings = {name.removeprefix("RAY_") for name in ALONE.keys() - of_python}
    assert len(settings) == 3 and all(setting.encode() in program for setting in settings)


def test_scaling_takes_shares_of_gpus_and_a_strategy() -> None:
    from ray.train import ScalingConfig

    config = ScalingConfig(
        num_workers=4,
        use_gpu=True,
        resources_per_worker={"CPU": 2.0, "GPU": 0.24},
        placement_strategy="SPREAD",
    )
    assert config.placement_strategy == "SPREAD" and config.resources_per_worker == {"CPU": 2.0, "GPU": 0.24}


@pytest.fixture
def group() -> Any:
    return SimpleNamespace(id="a placement group")


def test_an_engine_on_one_device_takes_its_share_itself(group: Any) -> None:
    place = Place("sampler", group, (3,), {"CPU": 2.0, "GPU": 0.51})
    options = place.actor_options()
    assert (options["num_cpus"], options["num_gpus"]) == (2.0, 0.51)
    assert options["scheduling_strategy"].placement_group_bundle_index == 3
    assert place.environment() == {}
    on_the_cpu = Place("scorer", group, (0,), {"CPU": 2.0})
    assert on_the_cpu.environment() == {"CUDA_VISIBLE_DEVICES": ""}, "Ray hides nothing from it"


def test_an_engine_over_several_gpus_leaves_the_bundles_to_vllms_own_workers(group: Any) -> None:
    import vllm.envs

    demand = Demand("sampler", 1, 1, {"CPU": 0.01, "GPU": 0.51}, parts=4)
    place = Place("sampler", group, (0, 1, 2, 3), demand.bundle)
    options = place.actor_options()
    assert (options["num_cpus"], options["num_gpus"]) == (0, 0)
    assert options["scheduling_strategy"].placement_group_capture_child_tasks is True
    environment = place.environment()
    assert environment == {"VLLM_RAY_BUNDLE_INDICES": "0,1,2,3", "VLLM_RAY_PER_WORKER_GPUS": "0.51"}
    assert set(environment) <= set(vllm.envs.environment_variables)


def test_vllm_takes_its_workers_by_ray_and_weights_by_nccl() -> None:
    from vllm import EngineArgs
    from vllm.config import WeightTransferConfig

    arguments = EngineArgs(
        model="nowhere", tensor_parallel_size=4, distributed_executor_backend="ray", enable_sleep_mode=True
    )
    assert arguments.tensor_parallel_size == 4 and arguments.enable_sleep_mode
    assert WeightTransferConfig(backend="nccl").backend == "nccl"
