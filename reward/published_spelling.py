"""A checkpoint's small files in the spelling of transformers 4.43, which the authors' code is pinned to.
What it is: names that transformers 5 has changed, written the old way; it reads both. Old readers pass over a name that
they do not know, and would compute other embeddings without a word. What it is not: it turns no weights, and model
types younger than transformers 4.43 stay as they are.
"""

import json
from pathlib import Path
from typing import Any

from reward.checkpoint_files import read_object

TOKENIZER_CONFIG, TOKENIZER_FILE, TEMPLATE_FILE = "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"
_ROPE_NAMES = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
_NEOX_NAMES = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}


def published_config(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A new config.json with the stored type and the rotary positions under their old names."""
    spelled = {name: value for name, value in config.items() if name != "dtype"} | {"torch_dtype": dtype}
    rope = config.get("rope_parameters")
    # Those that differ by layer lie a level deeper; transformers 4.43 has no such models.
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return spelled
    old_names = _NEOX_NAMES if config.get("model_type") == "gpt_neox" else _ROPE_NAMES
    scaling = {name: value for name, value in rope.items() if name not in old_names}
    is_plain = scaling.get("rope_type", "default") == "default"
    spelled |= {old: rope[name] for name, old in old_names.items() if name in rope}
    return spelled | {"rope_scaling": None if is_plain else scaling}


def respell_tokenizer(directory: Path) -> None:
    """Rewrite a directory's tokenizer files in place; raises RewardInputError for one that is no JSON object."""
    if (directory / TOKENIZER_FILE).is_file():
        _respell_merges(directory / TOKENIZER_FILE)
    file, template = directory / TOKENIZER_CONFIG, directory / TEMPLATE_FILE
    if not file.is_file() and not template.is_file():
        return
    config = read_object(file) if file.is_file() else {}
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config.setdefault("additional_special_tokens", config.pop("extra_special_tokens"))
    if template.is_file():
        # Of two templates transformers 5 takes the file.
        config["chat_template"] = template.read_text("utf-8")
        template.unlink()
    file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def _respell_merges(file: Path) -> None:
    """tokenizers before 0.20 knows the merges of a BPE as texts only, which cannot say pieces with a space in them."""
    tokenizer = read_object(file)
    model = tokenizer.get("model")
    model = model if isinstance(model, dict) else {}
    merges = model.get("merges")
    if not merges or not all(isinstance(pair, list) and not any(" " in piece for piece in pair) for pair in merges):
        return
    model["merges"] = [" ".join(pair) for pair in merges]
    file.write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n", "utf-8")
