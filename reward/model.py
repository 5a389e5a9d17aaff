"""GeneralPreferenceModel: a causal backbone plus preference heads, in the published file layout.
What it is: loading (backbone through AutoModel, heads by name from the shards that hold them), the forward
pass on right-padded rows, and saving so that the authors' own pipeline reads the result. What it is not: it
knows no text (`reward.encoding`), forms no batches (`reward.backend_transformers`) and no scores
(`reward.preference`).

Shape suffixes: N rows, T tokens, H hidden size, D embedding width, L = D / 2 blocks.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from reward.checkpoint import check_directory, load_config, loaded, publish, write_tensors
from reward.checkpoint_files import read_object
from reward.encoding import EncodedConversation
from reward.errors import RewardInputError
from reward.heads import PROMPT_HEAD, VALUE_HEAD, PreferenceHeads, read_head_tensors
from reward.lm_head import LM_HEADS, is_tied, stored_lm_head
from reward.published_spelling import published_config, respell_tokenizer
from reward.settings import CONFIG_KEY, RewardSettings
from reward.vector_math import settle_vector_math

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json chat_template.jinja "
    "tokenizer.model vocab.json merges.txt"
).split()


class PaddedBatch(NamedTuple):
    """Rows padded on the right, as `GeneralPreferenceModel.forward` takes them."""

    input_ids_NT: Tensor
    attention_mask_NT: Tensor
    last_index_N: Tensor
    prompt_index_N: Tensor


def pad_rows(rows: Sequence[EncodedConversation], device: torch.device | str = "cpu") -> PaddedBatch:
    """Right padding with id 0: under causal attention no real position ever sees it."""
    lengths_N = torch.tensor([len(row.input_ids) for row in rows])
    input_ids_NT = torch.zeros(len(rows), int(lengths_N.max()), dtype=torch.long)
    for place, row in enumerate(rows):
        input_ids_NT[place, : len(row.input_ids)] = torch.tensor(row.input_ids)
    mask_NT = (torch.arange(input_ids_NT.shape[1]) < lengths_N[:, None]).long()
    prompt_index_N = torch.tensor([row.prompt_end for row in rows])
    tensors = (input_ids_NT, mask_NT, lengths_N - 1, prompt_index_N)
    return PaddedBatch(*(tensor.to(device) for tensor in tensors))


class GeneralPreferenceModel(nn.Module):
    """Backbone, heads and the settings they were trained with."""

    def __init__(self, backbone: PreTrainedModel, settings: RewardSettings) -> None:
        super().__init__()
        settle_vector_math()
        self.backbone = backbone
        self.settings = settings
        self.heads = PreferenceHeads(
            _hidden_size(backbone.config),
            settings.value_head_dim,
            gated=settings.gated,
            l2_normalize=settings.l2_normalize,
        )
        # Kept for saving only: the layout has an unused lm_head, which is copied from file to file.
        self.source: Path | None = None
        self._live_lm_head: Tensor | None = None

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> "GeneralPreferenceModel":
        """A published or own checkpoint: width, gate and kind of head by tensor shapes, the rest: config.

        Raises RewardInputError where files are missing, damaged or do not fit each other.
        """
        source = Path(directory)
        check_directory(source)
        raw_config = read_object(source / "config.json")
        config = load_config(source, trust_remote_code)
        tensors = read_head_tensors(source, _hidden_size(config))
        settings = RewardSettings.from_config(raw_config, tensors[VALUE_HEAD].shape[0], PROMPT_HEAD in tensors)
        backbone = _load_backbone(source, config, dtype, attn_implementation, trust_remote_code)
        model = cls(backbone, settings)
        model.heads.load(tensors)
        model.source = source
        return model

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        settings: RewardSettings,
        *,
        seed: int = 0,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> "GeneralPreferenceModel":
        """Fresh heads, drawn from `seed`, on a language model given as a directory or as a loaded model."""
        if isinstance(backbone, PreTrainedModel):
            model = cls(cast(PreTrainedModel, backbone.base_model), settings)
            head = backbone.get_output_embeddings()
            if head is not None and not is_tied(backbone.config):
                model._live_lm_head = head.weight
        else:
            source = Path(backbone)
            check_directory(source)
            config = load_config(source, trust_remote_code)
            loaded = _load_backbone(source, config, dtype, attn_implementation, trust_remote_code)
            model = cls(loaded, settings)
            model.source = source
        model.heads.initialise(seed)
        model.heads.to(model.backbone.device)
        return model

    @property
    def vocabulary(self) -> int:
        """How many ids it has embeddings of."""
        return int(self.backbone.config.get_text_config().vocab_size)

    def hidden_states(
        self,
        input_ids_NT: Tensor,
        attention_mask_NT: Tensor | None,
        last_index_N: Tensor,
        prompt_index_N: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Final-norm states (answer_NH, prompt_NH) at each row's last token and at its prompt's end."""
        output = self.backbone(input_ids=input_ids_NT, attention_mask=attention_mask_NT, use_cache=False)
        hidden_NTH = output.last_hidden_state
        row_N = torch.arange(len(input_ids_NT), device=hidden_NTH.device)
        return hidden_NTH[row_N, last_index_N], hidden_NTH[row_N, prompt_index_N]

    def forward(
        self,
        input_ids_NT: Tensor,
        attention_mask_NT: Tensor | None,
        last_index_N: Tensor,
        prompt_index_N: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """(v_ND, gate_NL or None), float32, of right-padded rows; gradients flow through both."""
        states = self.hidden_states(input_ids_NT, attention_mask_NT, last_index_N, prompt_index_N)
        v_ND, gate_NL = self.heads(*states)
        return v_ND, gate_NL

    def save_pretrained(
        self,
        directory: str | Path,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        max_shard_size: str = "5GB",
    ) -> None:
        """Write the published layout; files appear whole, config.json (without which nothing loads) last.

        Without `tokenizer` the tokenizer files of the directory this model came from are copied.
        """
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as name:
            staging = Path(name)
            write_tensors(self._published_tensors(), staging, max_shard_size)
            self._write_tokenizer(tokenizer, staging)
            config_text = json.dumps(self._published_config(), indent=2, sort_keys=True) + "\n"
            (staging / "config.json").write_text(config_text, "utf-8")
            publish(staging, target)
        if not self.settings.card_compatible:
            logger.info("%s is %s", target, self.settings.described)

    def _published_tensors(self) -> dict[str, Tensor]:
        prefix = self.backbone.base_model_prefix
        tensors = {f"{prefix}.{name}": tensor for name, tensor in self.backbone.state_dict().items()}
        tensors |= {name: lm_head.to(self.backbone.dtype) for name, lm_head in self._lm_head().items()}
        tensors |= self.heads.state_dict()
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def _lm_head(self) -> dict[str, Tensor]:
        if self._live_lm_head is not None:
            return {LM_HEADS[self.backbone.config.model_type == "gpt_neox"]: self._live_lm_head}
        return {} if self.source is None else stored_lm_head(self.source, self.backbone)

    def _published_config(self) -> dict[str, Any]:
        raw: dict[str, Any] = json.loads(self.backbone.config.to_json_string(use_diff=True))
        if self.source is not None:
            # The file as it came may say what this version of transformers leaves out.
            original = read_object(self.source / "config.json")
            if original.get("vocab_size") == raw.get("vocab_size"):
                raw = original
        raw = published_config(raw, str(self.backbone.dtype).removeprefix("torch."))
        raw["architectures"] = ["CustomRewardModel"]
        raw[CONFIG_KEY] = self.settings.to_config()
        return raw

    def _write_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None", staging: Path) -> None:
        if tokenizer is not None:
            tokenizer.save_pretrained(staging, save_jinja_files=False)
        elif self.source is not None:
            for name in _TOKENIZER_FILES:
                if (self.source / name).is_file():
                    shutil.copyfile(self.source / name, staging / name)
        respell_tokenizer(staging)


def _hidden_size(config: "PretrainedConfig") -> int:
    return int(config.get_text_config().hidden_size)


def _load_backbone(
    source: Path, config: "PretrainedConfig", dtype: str, attention: str | None, trust_remote_code: bool
) -> PreTrainedModel:
    if dtype not in DTYPES:
        raise RewardInputError(f"dtype is {dtype!r}, expected one of: {', '.join(DTYPES)}")
    options: dict[str, Any] = {
        "dtype": DTYPES[dtype],
        "attn_implementation": choose_attention(config, attention),
    }
    verbosity = transformers_logging.get_verbosity()
    # The heads and lm_head are reported as unexpected each time; real faults are checked below instead.
    transformers_logging.set_verbosity_error()
    try:
        backbone, info = loaded(
            source,
            "its backbone",
            AutoModel.from_pretrained,
            config=config,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if missing:
        raise RewardInputError(
            f"{source} lacks {len(missing)} tensors of its backbone, or has them in another shape, "
            f"first {missing[0]}; expected all of a {config.model_type} model: copy the checkpoint again"
        )
    found: PreTrainedModel = backbone.eval()
    return found


def choose_attention(config: "PretrainedConfig", asked: str | None) -> str | None:
    """The attention to ask transformers for; None leaves it to transformers."""
    cap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    if cap is None or (asked or "").startswith("flash"):
        return asked
    if asked != "eager":
        # transformers 5.19 takes sdpa here and drops the cap without a word.
        logger.warning(
            "attention: eager instead of %s, because %s caps its attention logits at %s, which only eager and flash "
            "attention are known to do",
            asked or "the default",
            config.model_type,
            cap,
        )
    return "eager"
