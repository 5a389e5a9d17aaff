"""The actor that samples, as a run uses it: `rollout`'s own, with a log file in the run directory."""

import logging
import os
from pathlib import Path

from gpo.cpu import leave_out_sklearn
from gpo.logs import log_to_file
from rollout.engine_settings import EngineSettings
from rollout.sampler import Sampler


class LoggedSampler(Sampler):
    """Says in `logs` which engine settings were chosen and why, and what vLLM says."""

    def __init__(self, settings: EngineSettings, logs: str) -> None:
        log_to_file(Path(logs), f"sampler-{os.getpid()}")
        # Read when vLLM is imported: its lines go to the root logger's file instead of standard output.
        os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
        logging.getLogger("vllm").setLevel(logging.INFO)
        super().__init__(settings)
        leave_out_sklearn()  # Behind the settings, which torch reads when it is imported.
