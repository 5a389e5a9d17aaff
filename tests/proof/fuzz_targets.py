"""What is fuzzed: from a good workplace and a seed to a damaged copy and the words of a command that reads it.

No target reaches an engine: runs are dry, and a run directory is read, not gone on with.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.proof import certain
from tests.proof.mutations import Mutated, mutate_bytes, mutate_json_lines, mutate_value
from tests.proof.odd_settings import all_settings, odd_override, odd_value, refused_whole, set_at, unknown_key
from tests.proof.odd_values import VALUES, drawn


@dataclass(frozen=True, slots=True)
class Prepared:
    """A case that can be run."""

    words: list[str]
    done: str
    wrong: bool
    """Certainly wrong: status 0 for it is a fault."""
    content: bytes
    """What was put in the place of a good file; with the words it tells a case from all others."""


Target = Callable[[Path, Path, Random], Prepared]


def make_workplace(folder: Path) -> Path:
    """The good files: a tiny policy and GPM, prompts, pairs, a config, and a finished run's directory."""
    from tests.e2e.tiny_run import make_workplace as make_run_workplace
    from tests.gpo.evaluation.small_evaluation import write_answers
    from tests.gpo.report_runs import plant_run
    from tests.reward.batch_files import mixed, write

    folder.mkdir()
    make_run_workplace(folder)
    write(folder / "pairs.jsonl", mixed(9))
    plant_run(folder / "run")
    for name in ("new", "old"):
        write_answers(folder, name)
    return folder


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _dry_run(config: Path, folder: Path) -> list[str]:
    return ["run", str(config), "--dry-run", "--run-dir", str(folder / "run")]


def config_values(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """A setting of the config has an odd value, is removed or unknown, and never is as it was."""
    good = (workplace / "tiny.yaml").read_bytes()
    while True:
        values, done = _odd_config(yaml.safe_load(good), draw)
        content = yaml.safe_dump(values).encode()
        if content != good:
            return _config(folder, content, done)


def _odd_config(values: dict[str, Any], draw: Random) -> tuple[dict[str, Any], str]:
    setting = draw.choice(all_settings())
    odd = odd_value(setting, draw)
    kind = draw.random()
    if kind < 0.15:
        section = draw.choice([values, *(value for value in values.values() if isinstance(value, dict))])
        key = unknown_key(draw)
        section[key] = drawn(VALUES, draw)
        return values, f"an unknown key {key!r:.40}"
    if kind < 0.25:
        return mutate_value(values, draw)
    set_at(values, setting.path, odd)
    if kind < 0.4:
        key = draw.choice(["name", "policy", "prompts", "preference", "target"])
        values.pop(key)
        return values, f"{setting.key} = {odd!r:.40}, and without {key}"
    return values, f"{setting.key} = {odd!r:.40}"


def config_bytes(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """The config's bytes are damaged."""
    mutated = mutate_bytes((workplace / "tiny.yaml").read_bytes(), draw)
    return _config(folder, mutated.content, mutated.done)


def _config(folder: Path, content: bytes, done: str) -> Prepared:
    config = _fresh(folder) / "case.yaml"
    config.write_bytes(content)
    return Prepared(_dry_run(config, folder), done, certain.bad_settings(content, refused_whole), content)


def overrides(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """Odd `key=value` words behind a good config, each below another section so that none takes another one back."""
    odd = {key.partition(".")[0]: (key, text, wrong) for key, text, wrong in (odd_override(draw) for _ in range(3))}
    chosen = list(odd.values())[: draw.randint(1, 3)]
    words = [f"{key}={text}" for key, text, _ in chosen]
    wrong = any(wrong for _, _, wrong in chosen)
    done = ", ".join(f"{word!r:.60}" for word in words)
    return Prepared([*_dry_run(workplace / "tiny.yaml", _fresh(folder)), *words], done, wrong, b"")


def prompts(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """The prompts file is damaged."""
    mutated = mutate_json_lines((workplace / "prompts.jsonl").read_bytes(), draw)
    values = yaml.safe_load((workplace / "tiny.yaml").read_text())
    values["prompts"]["train"] = str(_put(folder, "prompts.jsonl", mutated))
    config = folder / "case.yaml"
    config.write_text(yaml.safe_dump(values))
    wrong = certain.bad_lines(mutated.content, certain.bad_prompt)
    return Prepared(_dry_run(config, folder), mutated.done, wrong, mutated.content)


def pairs(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """A file of pairs and groups is damaged, then scored."""
    mutated = mutate_json_lines((workplace / "pairs.jsonl").read_bytes(), draw)
    data = _put(folder, "pairs.jsonl", mutated)
    words = ["reward", "score", "--model", str(workplace / "gpm"), "--backend", "transformers"]
    wrong = certain.bad_lines(mutated.content, certain.bad_comparison)
    words += ["--data", str(data), "--output", str(folder / "scores.jsonl")]
    return Prepared(words, mutated.done, wrong, mutated.content)


def reward_model(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """A file of the reward model is damaged, then used."""
    model = _fresh(folder) / "gpm"
    shutil.copytree(workplace / "gpm", model)
    path = draw.choice(sorted(path for path in model.iterdir() if path.is_file()))
    mutated = _mutate_json_or_bytes(path.read_bytes(), path.suffix, draw)
    path.write_bytes(mutated.content)
    words = ["reward", "score", "--model", str(model), "--backend", "transformers"]
    words += ["--data", str(workplace / "pairs.jsonl"), "--output", str(folder / "scores.jsonl")]
    wrong = certain.bad_model_file(path.name, mutated.content)
    return Prepared(words, f"{path.name}: {mutated.done}", wrong, _named(path.name, mutated))


def policy(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """A file of the policy is damaged, then a dry run looks at it."""
    model = _fresh(folder) / "policy"
    shutil.copytree(workplace / "policy", model)
    path = draw.choice(sorted(path for path in model.iterdir() if path.is_file()))
    mutated = _mutate_json_or_bytes(path.read_bytes(), path.suffix, draw)
    path.write_bytes(mutated.content)
    words = [*_dry_run(workplace / "tiny.yaml", folder), f"policy.model={model}"]
    wrong = certain.bad_model_file(path.name, mutated.content)
    return Prepared(words, f"{path.name}: {mutated.done}", wrong, _named(path.name, mutated))


def outputs(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """One of two files of model outputs is damaged, then they are compared."""
    damaged = draw.choice(("new", "old"))
    mutated = _mutate_json_or_bytes((workplace / f"{damaged}.json").read_bytes(), ".json", draw)
    path = _put(folder, f"{damaged}.json", mutated)
    files = {name: str(workplace / f"{name}.json") for name in ("new", "old")} | {damaged: str(path)}
    words = ["eval", "--outputs", files["new"], "--baseline", files["old"], "--judge", f"gpm:{workplace / 'gpm'}"]
    wrong = certain.bad_list(mutated.content, certain.bad_output)
    words += ["--output", str(folder / "eval")]
    return Prepared(words, f"{damaged}: {mutated.done}", wrong, mutated.content)


def run_directory(workplace: Path, folder: Path, draw: Random) -> Prepared:
    """A file of a finished run is damaged, then the run is looked at, or a run of its directory checked."""
    run = _fresh(folder) / "run"
    shutil.copytree(workplace / "run", run)
    looks = {
        "overview": ["show", str(run)],
        "prompts": ["show", str(run), "--search", "prompt"],
        "report": ["report", str(run), "--output", str(folder / "report.html")],
        "again": _dry_run(workplace / "tiny.yaml", folder),
    }
    look = draw.choice(list(looks))
    # To check a run reads what it is, and no more.
    files = [run / "run.json"] if look == "again" else sorted(path for path in run.rglob("*") if path.is_file())
    path = draw.choice(files)
    whole = path.read_bytes()
    mutated = _mutate_json_or_bytes(whole, path.suffix, draw)
    path.write_bytes(mutated.content)
    name = str(path.relative_to(run))
    wrong = certain.bad_run_file(look, name, mutated.content, len(whole))
    return Prepared(looks[look], f"{name}: {mutated.done}", wrong, _named(name, mutated))


def _mutate_json_or_bytes(content: bytes, suffix: str, draw: Random) -> Mutated:
    if suffix == ".json" and draw.random() < 0.6:
        value, done = mutate_value(json.loads(content), draw)
        return Mutated(json.dumps(value).encode(), done)
    if suffix == ".jsonl":
        return mutate_json_lines(content, draw)
    return mutate_bytes(content, draw)


def _named(name: str, mutated: Mutated) -> bytes:
    return f"{name}\n".encode() + mutated.content


def _put(folder: Path, name: str, mutated: Mutated) -> Path:
    path = _fresh(folder) / name
    path.write_bytes(mutated.content)
    return path


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (config_values, config_bytes, overrides, prompts, pairs, reward_model, policy, outputs, run_directory)
}
