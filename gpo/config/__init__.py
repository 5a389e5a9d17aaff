"""The one typed config of a run, a file a part.

Keys marked *placement* may change when a run goes on elsewhere; all others are the run's identity.
Nothing here imports torch, vllm or ray.
"""

from gpo.config.baseline import BaselineConfig
from gpo.config.cluster import ClusterConfig
from gpo.config.evaluation import CanaryConfig, EvaluationConfig
from gpo.config.policy import PolicyConfig, PromptsConfig
from gpo.config.preference import PreferenceConfig, TargetConfig
from gpo.config.rollout import EngineConfig, RolloutConfig
from gpo.config.run import RunConfig, changed_identity, identity_hash, identity_values
from gpo.config.train import LoraSettings, StopConfig, TrainConfig

__all__ = [
    "BaselineConfig",
    "CanaryConfig",
    "ClusterConfig",
    "EngineConfig",
    "EvaluationConfig",
    "HubConfig",
    "LoraSettings",
    "PolicyConfig",
    "PreferenceConfig",
    "PromptsConfig",
    "RolloutConfig",
    "RunConfig",
    "StopConfig",
    "TargetConfig",
    "TrackingConfig",
    "TrainConfig",
    "changed_identity",
    "identity_hash",
    "identity_values",
]
