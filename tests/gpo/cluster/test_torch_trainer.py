"""A training on a Ray of our own leaves nothing behind: neither processes nor the code of Ray Train's classes.

Run: python -m pytest tests/gpo/cluster/test_torch_trainer.py
"""

import subprocess
import sys
from pathlib import Path

from tests.e2e.tiny_run import environment

SCRIPT = """
import sys
from gpo.cluster.runtime import ray_alone
from gpo.cluster.torch_trainer import torch_trainer
from gpo.config import ClusterConfig

class Counter:
    def add(self):
        return 1

def nothing(config):
    pass

cluster = ClusterConfig()
with ray_alone(cluster):
    import ray
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list
    from ray.train import RunConfig, ScalingConfig

    def classes():
        keys = _internal_kv_list(b"ActorClass:", namespace=b"fun")
        return [_internal_kv_get(key, namespace=b"fun") for key in keys]

    counter = ray.remote(num_cpus=0)(Counter)
    assert ray.get(counter.remote().add.remote()) == 1 and len(classes()) == 1
    run = RunConfig(name="nothing", storage_path=sys.argv[1])
    torch_trainer(cluster)(
        nothing, train_loop_config={}, scaling_config=ScalingConfig(num_workers=1), run_config=run
    ).fit()
    print(len(classes()), b"Counter" in classes()[0])
    print(ray.get(counter.remote().add.remote()))
"""


def test_the_code_of_ray_trains_classes_goes_with_the_training_and_that_of_others_stays(tmp_path: Path) -> None:
    """Ray 2.60 exports TrainController, RayTrainWorker and SynchronizationActor anew for each training."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert run.stdout.split() == ["1", "True", "1"], run.stderr
