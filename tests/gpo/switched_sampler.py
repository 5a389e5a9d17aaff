"""A real sampler whose publishing can be made to go wrong: it may keep its weights, or take those of elsewhere."""

import json
from pathlib import Path

from gpo.rollouts.logged_sampler import LoggedSampler

SWITCH = "SWITCH"
"""Environment variable: a JSON file with "keep" (load nothing) or "instead" (load this directory)."""


class SwitchedSampler(LoggedSampler):
    """Does as the switch says, and reports success."""

    async def load(self, model: str, version: str | None) -> str:
        """Load, or pretend to."""
        switch = json.loads((Path(self._settings_folder()) / "switch.json").read_text())
        if switch.get("keep"):
            return version or "start"
        return await super().load(switch.get("instead", model), None if "instead" in switch else version)

    def _settings_folder(self) -> str:
        import os

        return os.environ[SWITCH]
