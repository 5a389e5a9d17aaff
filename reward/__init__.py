"""Which answer is better: general preference models and Bradley-Terry reward models behind one interface.
What it is: preference mathematics, the model (backbone plus heads), conversation encoding, scoring and
losses. What it is not: it neither samples answers (`rollout`) nor trains policies (`gpo`), and imports
neither.

The exports are lazy, so that `import reward` and `import reward.preference` work without loading
transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward.model import GeneralPreferenceModel
    from reward.scorer import Embeddings, PreferenceScorer

__all__ = ["Embeddings", "GeneralPreferenceModel", "PreferenceScorer"]

_HOME = {
    "Embeddings": "reward.scorer",
    "GeneralPreferenceModel": "reward.model",
    "PreferenceScorer": "reward.scorer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'reward' has no attribute {name!r}; it exports {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
