"""A run of General Preference Optimization: the loop, its journal, targets, loss, trainer, evaluation and commands.

`GPOTrainer` and `GPOConfig` are loaded on first use, so that `import gpo` stays light.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpo.training.trainer import GPOConfig, GPOTrainer

__version__ = "0.1.0"
__all__ = ["GPOConfig", "GPOTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("GPOTrainer", "GPOConfig"):
        from gpo.training import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module 'gpo' has no attribute {name!r}")
