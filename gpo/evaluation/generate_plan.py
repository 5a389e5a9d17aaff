"""What `gpo generate` will do: every mistake found and every prompt rendered before an engine starts."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2

from gpo.errors import UserError
from gpo.evaluation.model_names import model_names
from gpo.evaluation.prompt_forms import EvaluationPrompt, read_evaluation_prompts
from gpo.files import file_hash
from gpo.modelfiles import context_length, has_chat_template, parameter_count, read_model_config, stored_dtype
from reward.compute_type import compute_type, device_here
from reward.errors import RewardInputError
from reward.part_file import check_output
from rollout.engine import SampleRequest, Sampling
from rollout.engine_settings import SLACK_TOKENS
from rollout.errors import RolloutInputError
from rollout.prompts import Prompt, render_prompt_ids
from rollout.seeds import request_seed
from rollout.weights import MARKER, content_hash, verify_published

RECORD_SUFFIX = ".meta"
"""Not .json: `answers/*.json` are answer files and nothing else."""
NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """What the command line asks for."""

    model: list[Path]
    prompts: str
    output: Path
    """A file for one model, a folder for several."""
    name: list[str] | None = None
    """Of the generators; None: from the directories."""
    column: str = "auto"
    system: str | None = None
    """Put before every prompt without a system message when it is asked; AlpacaEval's `instruction` leaves it out."""
    max_tokens: int = 2048
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    chunk_prompts: int = 64
    """Prompts that are answered together and kept together."""
    dtype: str = "auto"
    kv_cache_gib: float = 1.0
    tensor_parallel: int = 1
    wait_seconds: float = 3600.0
    overwrite: bool = False

    def sampling(self) -> Sampling:
        """One answer a prompt."""
        return Sampling(
            samples=1,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )

    def paths(self) -> dict[str, Path]:
        """Where the answers of each generator go."""
        names = self.name or model_names(self.model)
        if len(names) != len(self.model) or len(set(names)) != len(names):
            raise UserError(
                f"--name: {len(names)} names for {len(self.model)} models; expected a distinct one for each"
            )
        if len(names) == 1 and self.output.suffix == RECORD_SUFFIX:
            raise UserError(f"--output {self.output}: {RECORD_SUFFIX} is the record's ending; expected .json")
        if len(names) == 1 and self.output.suffix:
            return {names[0]: self.output}
        if self.output.suffix in (".json", ".jsonl"):
            raise UserError(f"--output {self.output}: expected a folder, because there are {len(names)} models")
        return {name: self.output / f"{name}.json" for name in names}


@dataclass(frozen=True, slots=True)
class Job:
    """The answers of one model."""

    model: Path
    generator: str
    path: Path
    prompts: list[EvaluationPrompt]
    requests: list[SampleRequest]
    max_model_len: int
    version: str | None
    """Of a published checkpoint."""
    dtype: str
    """What the engine computes in."""
    architecture: str
    """Models with the same may follow each other in one engine."""
    made_from: dict[str, str]
    """All that decides the answers."""

    @property
    def record(self) -> Path:
        """How the answers came about: NAME.meta beside NAME.json."""
        return self.path.with_suffix(RECORD_SUFFIX)

    def finished(self) -> bool:
        """Whether an earlier start wrote these very answers, and nobody changed them since."""
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
            sha256 = file_hash(self.path)
        except (OSError, ValueError):
            return False
        known = isinstance(found, dict) and found.get("made_from") == self.made_from
        return known and found.get("answers_sha256") == sha256


def plan_jobs(request: GenerateRequest) -> list[Job]:
    """A job for each model; raises UserError, and RewardInputError where an output cannot be written."""
    _check_numbers(request)
    for model in request.model:
        parameter_count(model)
        if not has_chat_template(model):
            raise UserError(f"--model {model}: its tokenizer has no chat template, as instruction-tuned models have")
    try:
        prompts = read_evaluation_prompts(request.prompts, column=request.column)
    except RolloutInputError as error:
        raise UserError(f"--prompts: {error}") from None
    jobs = [
        _job(request, model, generator, path, prompts)
        for model, (generator, path) in zip(request.model, request.paths().items(), strict=True)
    ]
    for job in jobs:
        check_output(job.path, request.overwrite or job.finished())
    return jobs


def _check_numbers(request: GenerateRequest) -> None:
    if not 0 <= request.temperature < float("inf"):
        raise UserError(f"--temperature {request.temperature}: expected 0 (always the likeliest token) or more")
    if not 0 < request.top_p <= 1:
        raise UserError(f"--top-p {request.top_p}: expected a share above 0 and up to 1")


def _job(request: GenerateRequest, model: Path, generator: str, path: Path, prompts: list[EvaluationPrompt]) -> Job:
    requests = _requests(request, model, prompts)
    longest = max(len(one.prompt_ids) for one in requests)
    config = read_model_config(model)
    _check_room(request, model, requests, context_length(config))
    try:
        version = verify_published(model).version if (model / MARKER).exists() else None
        weights = content_hash(model)
    except RolloutInputError as error:
        raise UserError(f"--model: {error}") from None
    except ValueError as error:
        raise UserError(f"--model {model}: {error}; publish or copy it again") from None
    dtype = compute_type(stored_dtype(model), device_here()) if request.dtype == "auto" else request.dtype
    ids = json.dumps([(one.prompt_ids, one.seed) for one in requests])
    made_from = {
        "weights": weights,
        "prompt_ids_and_seeds": hashlib.sha256(ids.encode()).hexdigest(),
        "generator": generator,
        "dtype": dtype,
        **{name: str(value) for name, value in asdict(request.sampling()).items()},
    }
    return Job(
        model=model,
        generator=generator,
        path=path,
        prompts=prompts,
        requests=requests,
        max_model_len=longest + request.max_tokens + SLACK_TOKENS,
        version=version,
        dtype=dtype,
        architecture=json.dumps(config, sort_keys=True),
        made_from=made_from,
    )


def _requests(request: GenerateRequest, model: Path, prompts: list[EvaluationPrompt]) -> list[SampleRequest]:
    from reward.checkpoint import load_tokenizer

    try:
        tokenizer = load_tokenizer(model)
    except RewardInputError as error:
        raise UserError(f"--model {error}") from None
    requests = []
    for number, one in enumerate(prompts, start=1):
        asked = _asked(one.prompt, request.system)
        try:
            ids = render_prompt_ids(tokenizer, asked)
        except jinja2.TemplateError as error:
            raise UserError(f"--model {model}: its chat template refuses prompt {number}: {error}") from None
        # A repeated prompt gets an answer of its own.
        name = f"{one.prompt.prompt_id}#{one.occurrence}" if one.occurrence else one.prompt.prompt_id
        seed = request_seed(request.seed, 0, name, "generate")
        requests.append(SampleRequest(prompt_id=name, prompt=asked.as_messages(), prompt_ids=ids, seed=seed))
    return requests


def _asked(prompt: Prompt, system: str | None) -> Prompt:
    if system is None or prompt.messages[0][0] == "system":
        return prompt
    return Prompt(prompt.prompt_id, (("system", system), *prompt.messages))


def _check_room(request: GenerateRequest, model: Path, requests: list[SampleRequest], context: int | None) -> None:
    """A prompt that does not fit is refused and not left out: the win rate must be over all of them."""
    if context is None:
        return
    room = context - request.max_tokens - SLACK_TOKENS
    too_long = [number for number, one in enumerate(requests, start=1) if len(one.prompt_ids) > room]
    if too_long:
        named = ", ".join(map(str, too_long[:NAMED])) + (", ..." if len(too_long) > NAMED else "")
        raise UserError(
            f"--prompts {request.prompts}: {len(too_long)} prompts (rows {named}) leave no room for --max-tokens "
            f"{request.max_tokens} answer tokens in the {context} that {model} was made for; lower --max-tokens or "
            "take those rows out of the file"
        )
