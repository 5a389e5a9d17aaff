"""The trainings that several workers are held against one worker in: name -> what differs from SETTINGS."""

from typing import Any

SETTINGS: dict[str, Any] = {
    "batch_prompts": 3,
    "max_grad_norm": 0.0,
    "num_train_epochs": 2,
    "batch_tokens": 60,
    "clamp": 1.5,
    "lr_scheduler_type": "linear",
}
PLAIN: dict[str, dict[str, Any]] = {
    f"{layout}-{passes}": {"layout": layout, "gradient_accumulation_steps": passes}
    for layout in ("padded", "packed", "shared")
    for passes in (1, 4)
}
PAIRS: dict[str, Any] = {"select": "best-and-worst", "clamp": None, "beta": 0.3}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"objective": "dpo", **PAIRS},
    "ipo": {"objective": "ipo", **PAIRS},
    "by-length-with-sft": {"length_power": 1.0, "sft": 0.1},
}
LIVE = {"precompute_ref_log_probs": False}
FSDP: dict[str, dict[str, Any]] = {
    "fully": {"sharding": "fully"},
    "reference-in-pieces": {"reference_in_pieces": True, **LIVE},
    "fsdp": {"sharding": "fsdp"},
    "fsdp-live": {"sharding": "fsdp", **LIVE},
}
ZERO: dict[str, dict[str, Any]] = {
    "zero1": {"sharding": "zero1"},
    "zero2": {"sharding": "zero2"},
    "zero2-4": {"sharding": "zero2", "gradient_accumulation_steps": 4},
    "zero3": {"sharding": "zero3"},
    "zero3-loaded-live": {"sharding": "zero3", "from_disk": True, **LIVE},
}
SEES = {"sees": True}
PRECISE = {"sharding": "zero3", "compute_dtype": "bfloat16", **LIVE}
STOPS = {"padded-1": 1, "shared-4": 3, "zero2": 3, "zero3": 1}
"""Steps in the middle of an epoch behind which some of them are ended, and resumed from the checkpoint there."""
