"""Tiny random language models and a byte-level tokenizer, built in memory: real parts instead of mocks.

What it is: directories that AutoTokenizer, AutoModelForCausalLM and vLLM load. What it is not: these
models have learned nothing; they are only sensitive to mistakes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"

BOS, EOS, PAD, START, END = "<|bos|>", "<|eot|>", "<|pad|>", "<|start|>", "<|end|>"

# Prints BOS itself, as Llama-3.1's does, so that the post-processor doubles it.
LLAMA_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim "
    "+ '<|eot|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\n\n' }}{%- endif %}"
)
# Ends in a newline behind the end-of-turn token and knows no system role, as Gemma's.
GEMMA_TEMPLATE = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{{- raise_exception('System role not supported') }}{%- endif %}{%- for message in messages %}"
    "{{- '<|start|>' + message['role'].replace('assistant', 'model') + '\n' + message['content'] | trim "
    "+ '<|end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>model\n' }}{%- endif %}"
)


def make_tokenizer(template: str | None = LLAMA_TEMPLATE, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """A token a byte (ids 0 to 255) and five special tokens; `template` None: no chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([BOS, EOS, PAD, START, END])
    if adds_bos:
        bos_id = core.token_to_id(BOS)
        core.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[START, END],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def make_tiny_model(
    model_type: str = "llama", tied: bool = False, seed: int = 0, layers: int = 2, **config_changes: Any
) -> PreTrainedModel:
    """A random causal model: hidden 64, two heads of 32, 512 positions, float32.

    Weights are drawn wide (0.1) so that wrong tokens, positions or attention show in every number.
    """
    tokenizer = make_tokenizer()
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "tie_word_embeddings": tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if model_type == "gemma2":
        # A low cap, so that leaving it out changes the numbers visibly.
        values |= {"query_pre_attn_scalar": 32, "sliding_window": 512, "attn_logit_softcapping": 2.0}
    config = AutoConfig.for_model(model_type, **{**values, **config_changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def save_tiny_model(
    directory: str | Path,
    model_type: str = "llama",
    tied: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    template: str | None = None,
    max_shard_size: str = "5GB",
    **changes: Any,
) -> Path:
    """Model and tokenizer in a directory; Gemma types get Gemma's template unless another is given."""
    target = Path(directory)
    chosen = template or (GEMMA_TEMPLATE if model_type.startswith("gemma") else LLAMA_TEMPLATE)
    model = make_tiny_model(model_type, tied, seed, **changes)
    nn.Module.to(model, dtype)
    model.config.dtype = dtype
    model.save_pretrained(target, max_shard_size=max_shard_size)
    make_tokenizer(chosen).save_pretrained(target)
    return target


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
