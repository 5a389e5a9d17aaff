"""The four ways of scoring that `benchmarks/scoring.py` compares, each run in a process that it starts.

card          as the model card of the published GPMs does it, in our own words: one left-padded batch a prompt, the
              value head over all positions, each prompt tokenised again to find where the gate is read; it keeps keys
              and values of all layers, as transformers does unless told otherwise
transformers  reward.PreferenceScorer with its transformers back end
vllm          reward.PreferenceScorer with its vLLM back end, cache emptied before every repeat
limit         no scoring at all: the backbone over as many tokens as are left when every common beginning is computed
              once, tokenised beforehand, in dense rows without padding of the fastest of some shapes

All compute in the type that is asked for, also where the scorer by itself would rather not, as in bfloat16 on a CPU
without instructions for it.

Not meant to be run by hand: python benchmarks/scoring.py
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from gpo.cpu import prepare_process
from reward.heads import read_head_tensors
from reward.model import GeneralPreferenceModel
from reward.packing import common_length
from reward.preference import preference_table
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings

Conversation = list[dict[str, str]]
Group = list[Conversation]
"""K answers to one prompt, each with the prompt."""
Tables = list[list[list[float]]]
DENSE_SHAPES = ((1, 256), (1, 512), (1, 1024), (2, 512), (4, 512))
"""Rows of a batch and tokens of a row."""


class CardWay:
    """A batch a prompt."""

    def __init__(self, checkpoint: Path, dtype: str) -> None:
        self.backbone = AutoModel.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
        heads = read_head_tensors(checkpoint, self.backbone.config.hidden_size)
        self.value_DH, self.prompt_LH = (
            heads[f"{name}_head.weight"].to(self.backbone.dtype) for name in ("value", "prompt")
        )
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")

    @torch.no_grad()
    def score(self, groups: list[Group]) -> Tables:
        return [self._table(group) for group in groups]

    def _table(self, group: Group) -> list[list[float]]:
        texts = [self.tokenizer.apply_chat_template(talk, tokenize=False) for talk in group]
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=4096)
        ids_KT, mask_KT = batch["input_ids"], batch["attention_mask"]
        ids_KT[:, -1], mask_KT[:, -1] = self.tokenizer.eos_token_id, 1
        positions_KT = (mask_KT.cumsum(-1) - 1).masked_fill(mask_KT == 0, 1)
        hidden_KTH = self.backbone(ids_KT, attention_mask=mask_KT, position_ids=positions_KT).last_hidden_state
        values_KTD = hidden_KTH @ self.value_DH.T
        emb_KD = torch.nn.functional.normalize(values_KTD[:, -1], dim=-1)
        gates = []
        for place, talk in enumerate(group):
            prompt = self.tokenizer.apply_chat_template(talk[:1], tokenize=False)
            prompt_tokens = self.tokenizer(prompt, return_tensors="pt")["input_ids"].shape[1]
            padding = ids_KT.shape[1] - int(mask_KT[place].sum())
            gates.append(torch.softmax(hidden_KTH[place, padding + prompt_tokens - 1] @ self.prompt_LH.T, dim=-1))
        return preference_table(emb_KD.float(), gate_L=torch.stack(gates).float().mean(0)).tolist()


class OurWay:
    """All groups at once."""

    def __init__(self, checkpoint: Path, dtype: str, backend: str) -> None:
        self.scorer = PreferenceScorer.from_pretrained(checkpoint, backend, dtype)
        self.engine: Any = getattr(self.scorer.backend, "_llm", None)

    def score(self, groups: list[Group]) -> Tables:
        if self.engine is not None:
            self.engine.reset_prefix_cache()
        found = self.scorer.embed([talk for group in groups for talk in group])
        assert found.gate_NL is not None
        bounds = itertools.pairwise(itertools.accumulate(map(len, groups), initial=0))
        return [
            preference_table(found.v_ND[start:stop], gate_L=found.gate_NL[start:stop].mean(0)).tolist()
            for start, stop in bounds
        ]


class Limit:
    """A dense forward pass over the tokens that cannot be saved."""

    def __init__(self, checkpoint: Path, dtype: str) -> None:
        self.scorer = PreferenceScorer.from_pretrained(checkpoint, "transformers", dtype)
        self.backbone = self.scorer.backend.model.backbone  # type: ignore[attr-defined]

    def tokens(self, groups: list[Group]) -> dict[str, int]:
        rows = sorted({tuple(row.input_ids) for row in self._rows(groups)})
        saved = sum(itertools.starmap(common_length, itertools.pairwise(rows)))
        return {"all": sum(map(len, rows)), "after_sharing": sum(map(len, rows)) - saved}

    def read(self, groups: list[Group]) -> None:
        """What `score` computes from now on, in the shape that is fastest here."""
        stream = [token for row in self._rows(groups) for token in row.input_ids]
        left = stream[: self.tokens(groups)["after_sharing"]]
        some = left[: max(batch * length for batch, length in DENSE_SHAPES)]

        def seconds(shape: tuple[int, int]) -> float:
            return min(timed(lambda: self._forward(some, shape))[0] for _ in range(2))

        self._left, self._shape = left, min(DENSE_SHAPES, key=seconds)

    def score(self, groups: list[Group]) -> Tables:
        """Nothing is scored: the groups are those that were read."""
        self._forward(self._left, self._shape)
        return []

    @torch.no_grad()
    def _forward(self, tokens: list[int], shape: tuple[int, int]) -> None:
        batch, length = shape
        for start in range(0, len(tokens), batch * length):
            part = torch.tensor(tokens[start : start + batch * length])
            whole = len(part) // length * length
            for ids_BT in (part[:whole].view(-1, length), part[whole:][None]):
                if ids_BT.numel():
                    self.backbone(input_ids=ids_BT, use_cache=False)

    def _rows(self, groups: list[Group]) -> list[Any]:
        return self.scorer.encoder.encode([talk for group in groups for talk in group])


def open_way(name: str, checkpoint: Path, dtype: str, groups: list[Group]) -> CardWay | OurWay | Limit:
    """What scores the groups in this way."""
    if name in ("transformers", "vllm"):
        return OurWay(checkpoint, dtype, name)
    if name == "limit":
        limit = Limit(checkpoint, dtype)
        limit.read(groups)
        return limit
    assert name == "card", name
    return CardWay(checkpoint, dtype)


def timed(score: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = score()
    return time.perf_counter() - started, found


def interleaved(names: list[str], checkpoint: Path, dtype: str, groups: list[Group], repeats: int) -> dict[str, Any]:
    """Seconds of every repeat and the tables of the last, the ways taking turns."""
    ways = {name: open_way(name, checkpoint, dtype, groups).score for name in names}
    found: dict[str, Any] = {name: {"seconds": []} for name in names}
    for score in ways.values():
        score(groups[:4])
    for _ in range(repeats):
        for name, score in ways.items():
            seconds, tables = timed(lambda score=score: score(groups))  # type: ignore[misc]
            found[name]["seconds"].append(seconds)
            found[name]["tables"] = tables
    return found


def peak_mib() -> float:
    """The process's largest resident memory so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def prepare(backbone: Path, checkpoint: Path, dtype: str) -> None:
    settings = RewardSettings.published(6, gated=True)
    GeneralPreferenceModel.from_backbone(backbone, settings, dtype=dtype).save_pretrained(checkpoint)


def main() -> None:
    """Do one role and write what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("role", choices=("prepare", "together", "vllm", "memory"))
    parser.add_argument("--way", help="for the role memory")
    parser.add_argument("--backbone", type=Path, help="for the role prepare")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    options = parser.parse_args()
    prepare_process(options.threads)
    workload = json.loads(options.workload.read_text("utf-8"))
    found: dict[str, Any] = {}
    if options.role == "prepare":
        prepare(options.backbone, options.checkpoint, options.dtype)
        found["tokens"] = Limit(options.checkpoint, options.dtype).tokens(workload["groups"])
    elif options.role == "memory":
        open_way(options.way, options.checkpoint, options.dtype, workload["groups"]).score(workload["groups"])
        found["peak_mib"] = peak_mib()
    elif options.role == "vllm":
        found = interleaved(["vllm"], options.checkpoint, options.dtype, workload["groups"], options.repeats)
        found["vllm"]["peak_mib"] = peak_mib()
    else:
        names = ["card", "transformers", "limit"]
        found = interleaved(names, options.checkpoint, options.dtype, workload["groups"], options.repeats)
    options.result.write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
