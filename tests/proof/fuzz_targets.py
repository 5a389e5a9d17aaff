"""What is fuzzed: from a good workplace and a seed to a damaged copy and the words of a command that reads it.

No target reaches an engine or a training: runs are dry, and a run directory is read, not gone on with. Those of reward
models are in `fuzz_rewards`.
"""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.proof import certain, fuzz_rewards
from tests.proof.mutations import mutate_bytes
from tests.proof.odd_settings import odd_config, odd_override, refused_whole
from tests.proof.prepared import Prepared, Target, dry_run, fresh, mutate_file, named, put
from tests.proof.row_forms import SUFFIXES, bad_rows, mutate_rows


def make_workplace(folder: Path) -> Path:
    """The good files: a tiny policy and GPM, prompts, pairs, a config, and a finished run's directory."""
    from tests.e2e.tiny_run import make_workplace as make_run_workplace
    from tests.gpo.evaluation.small_evaluation import write_answers
    from tests.gpo.report_runs import plant_run
    from tests.reward.batch_files import mixed, write
    from tests.reward.training_data import cycle, write_rows

    folder.mkdir()
    make_run_workplace(folder)
    write(folder / "pairs.jsonl", mixed(9))
    write_rows(folder / "other.jsonl", [row for prompt in ("Choose.", "Hand?") for row in cycle(prompt)])
    plant_run(folder / "run")
    for name in ("new", "old"):
        write_answers(folder, name)
    return folder


def config_values(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """A setting of the config has an odd value, is removed or unknown."""
    values, done = odd_config(yaml.safe_load((workplace / "tiny.yaml").read_text()), draw)
    return _config(folder, yaml.safe_dump(values).encode(), done)


def config_bytes(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """The config's bytes are damaged."""
    mutated = mutate_bytes((workplace / "tiny.yaml").read_bytes(), draw)
    return _config(folder, mutated.content, mutated.done)


def _config(folder: Path, content: bytes, done: str) -> Prepared:
    config = fresh(folder) / "case.yaml"
    config.write_bytes(content)
    return Prepared(dry_run(config, folder), done, certain.bad_settings(content, refused_whole), content)


def overrides(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """Odd `key=value` words behind a good config, each below another section so that none takes another one back."""
    odd = {key.partition(".")[0]: (key, text, wrong) for key, text, wrong in (odd_override(draw) for _ in range(3))}
    chosen = list(odd.values())[: draw.randint(1, 3)]
    words = [f"{key}={text}" for key, text, _ in chosen]
    wrong = any(wrong for _, _, wrong in chosen)
    done = ", ".join(f"{word!r:.60}" for word in words)
    return Prepared([*dry_run(workplace / "tiny.yaml", fresh(folder)), *words], done, wrong, b"")


def prompts(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """The prompts file is damaged, in each form that it may have."""
    texts = [json.loads(line)["prompt"] for line in (workplace / "prompts.jsonl").read_text().splitlines()]
    suffix = draw.choice(SUFFIXES)
    mutated = mutate_rows([_prompt_row(number, text) for number, text in enumerate(texts)], suffix, draw)
    values = yaml.safe_load((workplace / "tiny.yaml").read_text())
    values["prompts"]["train"] = str(put(folder, f"prompts{suffix}", mutated))
    config = folder / "case.yaml"
    config.write_text(yaml.safe_dump(values))
    wrong = bad_rows(mutated.content, suffix, certain.bad_prompt)
    return Prepared(dry_run(config, folder), f"{suffix}: {mutated.done}", wrong, mutated.content)


def _prompt_row(number: int, text: str) -> dict[str, Any]:
    """One of the forms; every row has all columns, as in a table."""
    row: dict[str, Any] = {"prompt": None, "messages": None, "instruction": None, "input": None}
    if number % 3 == 0:
        return row | {"prompt": text}
    if number % 3 == 1:
        return row | {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]}
    return row | {"instruction": text, "input": "in short" if number % 2 else ""}


def policy(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """A file of the policy is damaged, then a dry run looks at it."""
    model = fresh(folder) / "policy"
    shutil.copytree(workplace / "policy", model)
    path = draw.choice(sorted(path for path in model.iterdir() if path.is_file()))
    mutated = mutate_file(path.read_bytes(), path.suffix, draw)
    path.write_bytes(mutated.content)
    words = [*dry_run(workplace / "tiny.yaml", folder), f"policy.model={model}"]
    wrong = certain.bad_model_file(path.name, mutated.content)
    return Prepared(words, f"{path.name}: {mutated.done}", wrong, named(path.name, mutated))


def outputs(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """One of two files of model outputs is damaged, then they are compared."""
    damaged = draw.choice(("new", "old"))
    mutated = mutate_file((workplace / f"{damaged}.json").read_bytes(), ".json", draw)
    path = put(folder, f"{damaged}.json", mutated)
    files = {name: str(workplace / f"{name}.json") for name in ("new", "old")} | {damaged: str(path)}
    words = ["eval", "--outputs", files["new"], "--baseline", files["old"], "--judge", f"gpm:{workplace / 'gpm'}"]
    wrong = certain.bad_list(mutated.content, certain.bad_output)
    words += ["--output", str(folder / "eval")]
    return Prepared(words, f"{damaged}: {mutated.done}", wrong, mutated.content)


def run_directory(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """A file of a finished run is damaged, then the run is looked at, or a run of its directory checked."""
    run = fresh(folder) / "run"
    shutil.copytree(workplace / "run", run)
    looks = {
        "overview": ["show", str(run)],
        "prompts": ["show", str(run), "--search", "prompt"],
        "report": ["report", str(run), "--output", str(folder / "report.html")],
        "again": dry_run(workplace / "tiny.yaml", folder),
    }
    look = draw.choice(list(looks))
    # To check a run reads what it is, and no more.
    files = [run / "run.json"] if look == "again" else sorted(path for path in run.rglob("*") if path.is_file())
    path = draw.choice(files)
    whole = path.read_bytes()
    mutated = mutate_file(whole, path.suffix, draw)
    path.write_bytes(mutated.content)
    name = str(path.relative_to(run))
    wrong = certain.bad_run_file(look, name, mutated.content, len(whole))
    return Prepared(looks[look], f"{name}: {mutated.done}", wrong, named(name, mutated))


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        *(config_values, config_bytes, overrides, prompts, policy, outputs, run_directory),
        *fuzz_rewards.TARGETS,
    )
}
