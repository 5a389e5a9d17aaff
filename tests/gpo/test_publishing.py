"""The canary after a publish: stale, half and wrong weights stop the run; what it cannot see, the marker does.

One real vLLM engine on a tiny model, whose loading a test can spoil. Run: python -m pytest tests/gpo/test_publishing.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpo.cluster.runtime import ray_session
from gpo.context import RunContext
from gpo.errors import StageError
from gpo.files import write_json
from gpo.journal import open_run
from gpo.publishing import measure_noise_floor, publish
from gpo.rollouts.pool import Pool
from gpo.training.forward import load_policy, token_logps
from gpo.training.forward_process import ForwardProcess
from gpo.training.log_probs import add_log_prob_head
from reward.checkpoint import load_tokenizer
from rollout.canary import canary_rows
from rollout.cores import FOLDER_VARIABLE
from rollout.engine_settings import EngineSettings
from rollout.weights import mark_published
from tests.gpo.small_runs import run_config
from tests.gpo.switched_sampler import SWITCH, SwitchedSampler
from tests.tiny import save_tiny_model

LARGE, TINY = 0.01, 1e-10
"""Of an update, relative to weights of about 0.1."""


def save_updated(policy: Path, target: Path, size: float, share: float = 1.0) -> Any:
    """The policy with noise on the first `share` of its tensors; returns the model."""
    model = load_policy(policy, attention="eager", device="cpu")
    generator = torch.Generator().manual_seed(7)
    named = list(model.named_parameters())
    with torch.no_grad():
        for number, (_, parameter) in enumerate(named):
            noise = size * torch.randn(parameter.shape, generator=generator)
            if number < share * len(named):
                parameter += noise
    model.save_pretrained(target)
    load_tokenizer(policy).save_pretrained(target)
    return model.eval()


class Workplace:
    """A run whose iteration 1 is trained and not yet published."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Tied, because vLLM on the CPU keeps such a head over a reload unless it is told.
        self.policy = save_tiny_model(folder / "policy", tied=True)
        config = run_config(folder)
        directory = open_run(folder / "run", config, fresh=False, versions={}, data={})
        settings = EngineSettings(max_model_len=256, dtype="float32", threads=1)
        pool = Pool(config, settings, str(folder / "logs"), sampler=SwitchedSampler)
        self.run = RunContext(config, directory, pool, ForwardProcess(config, str(folder / "logs")), [], [])

    def switch(self, **how: Any) -> None:
        write_json(self.folder / "switch.json", how)

    def train(self, size: float) -> None:
        """Leave what a learner leaves."""
        checkpoint = self.run.directory.checkpoint(1)
        model = save_updated(self.policy, checkpoint, size)
        mark_published(checkpoint, "001")
        add_log_prob_head(model)
        rows = canary_rows(load_tokenizer(self.policy))
        logps = [row.tolist() for row in token_logps(model, rows, "float32")]
        write_json(self.run.directory.training(1) / "canary.json", {"answer_logps": logps})

    def publish(self, **how: Any) -> dict[str, Any]:
        """Publish from an engine that holds the start, with the switch as told."""
        self.switch()
        for worker in self.run.pool.workers("sampler"):
            worker.loaded = None
        self.run.pool.samplers(self.run.weights_after(0))
        self.switch(**how)
        return publish(self.run, 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    folder = tmp_path_factory.mktemp("publish")
    patch = pytest.MonkeyPatch()
    patch.setenv(SWITCH, str(folder))
    patch.setenv(FOLDER_VARIABLE, str(folder / "locks"))
    with ray_session(run_config(folder), folder, "a run"):
        found = Workplace(folder)
        found.switch()
        measure_noise_floor(found.run, 0)
        yield found
    patch.undo()


def test_a_large_update_is_accepted_when_the_engine_has_it_and_refused_when_not(place: Workplace) -> None:
    place.train(LARGE)
    canary = place.publish()["canary"]
    assert canary["accepted"] and not canary["below_noise"] and canary["movement"]["share"] == pytest.approx(1, abs=0.1)
    half, other = place.folder / "half", place.folder / "other"
    save_updated(place.policy, half, LARGE, share=0.5)
    save_tiny_model(other, tied=True, seed=9)
    for how in ({"keep": True}, {"instead": str(half)}, {"instead": str(other)}):
        with pytest.raises(StageError, match="does not hold the published weights"):
            place.publish(**how)


def test_below_the_noise_the_marker_says_what_the_canary_cannot(place: Workplace) -> None:
    place.train(TINY)
    canary = place.publish(keep=True)["canary"]
    assert canary["accepted"] and canary["below_noise"], "nothing to be seen by numbers"
    weights = place.run.directory.checkpoint(1) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="content hash"):
        place.publish()


def test_a_directory_with_the_version_of_another_update_is_never_loaded(place: Workplace) -> None:
    place.train(TINY)
    known = place.run.weights_after(1)
    marker = place.run.directory.checkpoint(1) / "gpo_weights.json"
    values = json.loads(marker.read_text())
    marker.write_text(json.dumps(values | {"version": "000-stale"}))
    place.switch()
    with pytest.raises(StageError, match="holds version 000-stale"):
        place.run.pool.samplers(known)
