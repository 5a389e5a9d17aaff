"""The rules of the house: directions of imports, lightness, sizes, and a word about each module.

Run: python -m pytest tests/gpo/test_house.py
"""

import ast
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from vulture import Vulture

from tests.e2e.tiny_run import make_workplace
from tests.gpo.report_runs import plant_run

ROOT = Path(__file__).parents[2]
PACKAGES = {"gpo": {"reward", "rollout"}, "reward": set(), "rollout": set()}
"""Each package, and the others that it may import."""
FOLDERS = [*PACKAGES, "configs", "scripts", "benchmarks", "examples", "tests"]
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 300, 60
LONGER_FOR_A_REASON: dict[str, str] = {}
"""`file.py` or `file.py:function` -> why it must be longer."""
LIGHT_FOLDERS = ["gpo/verbs", "gpo/report", "gpo/planning", "gpo/config"]
LIGHT = ["gpo.cli", "gpo.doctor", "gpo.settings", "gpo.cluster.submit", "gpo.cluster.placement", "reward", "rollout"]
HEAVY = ["torch", "vllm", "ray", "transformers", "trl", "datasets", "accelerate", "peft", "scipy", "sklearn", "openai"]
LIGHT_VERBS = {
    "gpo": ["--help"],
    "doctor": ["doctor", "--help"],
    "show": ["show", "RUN"],
    "one prompt": ["show", "RUN", "--search", "a"],
    "report": ["report", "RUN", "--output", "PLACE/report.html"],
    "plan": ["plan", "PLACE/tiny.yaml"],
    "a mistaken config": ["run", "PLACE/tiny.yaml", "iterations=none"],
}
ALIVE_FOR_OTHERS = {
    "win_rate_against": "for readers of docs/gpm.md",
    "intransitivity": "for readers of docs/gpm.md",
    "skew_part": "for callers of preference_targets with inconsistent judges",
    "prompt_is_prefix": "a mark of rows that a warning names",
    "baseline_weight": "a column of rollout files",
    "ratio_from": "a key of metrics.json",
    "ratio_below": "a key of metrics.json",
    "n_answers": "part of a result",
    "n_pairs": "part of a result",
    "n_groups": "part of a result",
    "after_controller_state_update": "called by Ray Train",
    "asked_report": "called by tests that measure what `make bench-full` tells",
    "get_train_dataloader": "called by transformers",
    "predict": "called by transformers",
    "compute_loss": "called by transformers",
    "raiseExceptions": "read by logging",
    "PretrainedConfig": "in quoted types",
    "PreTrainedTokenizerBase": "in quoted types",
}
"""What only tests use of our own code -> for whom it is there."""

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, also inside functions, strings given to import_module, and relative ones."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = path.relative_to(ROOT).parts[0] if node.level else ""
            yield node.lineno, ".".join(part for part in (here, node.module) if part)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    refused = set(PACKAGES) - PACKAGES[package] - {package}
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in (ROOT / package).rglob("*.py")
        for line, module in imported(path)
        if module.partition(".")[0] in refused | {"tests", "scripts", "benchmarks"}
    ]
    assert found == []


def test_the_search_for_imports_sees_every_kind(tmp_path: Path) -> None:
    source = "import a.b\ndef f():\n    from c import d\n    import importlib\n    importlib.import_module('e.f')\n"
    planted = tmp_path / "planted.py"
    planted.write_text(source)
    assert {module for _, module in imported(planted)} == {"a.b", "c", "importlib", "e.f"}


@each_file
def test_a_module_says_what_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    if path.name == "__init__.py" and not text.strip():
        return
    docstring = ast.get_docstring(tree_of(path))
    assert docstring and len(docstring) > 15, f"{path} has no docstring"


def lengths(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, lines, limit) of a file and of every function in it."""
    name = str(path.relative_to(ROOT))
    yield name, len(path.read_text("utf-8").splitlines()), LONGEST_FILE
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{name}:{node.name}", node.end_lineno - node.lineno + 1, LONGEST_FUNCTION


@each_file
def test_files_and_functions_are_of_a_size_to_be_read_at_once(path: Path) -> None:
    too_long = [
        f"{name}: {lines} lines, expected up to {limit}"
        for name, lines, limit in lengths(path)
        if lines > limit and name not in LONGER_FOR_A_REASON
    ]
    assert too_long == []


def test_every_exception_is_still_one_and_has_a_reason() -> None:
    found = {name: lines > limit for path in FILES for name, lines, limit in lengths(path)}
    assert all(found.get(name) and len(reason) > 10 for name, reason in LONGER_FOR_A_REASON.items())


def test_light_modules_load_nothing_heavy() -> None:
    files = [path for folder in LIGHT_FOLDERS for path in (ROOT / folder).glob("*.py")]
    inside = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    code = f"import sys, {', '.join([*LIGHT, *inside])}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config with its policy, and a finished run."""
    place = tmp_path_factory.mktemp("place")
    make_workplace(place)
    plant_run(place / "run")
    return place


@pytest.mark.parametrize("words", LIGHT_VERBS.values(), ids=LIGHT_VERBS)
def test_light_verbs_load_nothing_heavy_to_their_very_end(words: list[str], place: Path) -> None:
    words = [word.replace("RUN", str(place / "run")).replace("PLACE", str(place)) for word in words]
    code = f"import atexit, sys\natexit.register(lambda: print(*[n for n in {HEAVY!r} if n in sys.modules]))\n"
    code += f"from gpo.cli import main\nsys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == (2 if "run" in words else 0), done.stderr
    assert done.stdout.splitlines()[-1] == "", "the line of what is heavy"


def test_nothing_of_our_own_is_alive_only_for_tests() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["vulture"]
    search = Vulture(ignore_names=told["ignore_names"], ignore_decorators=told["ignore_decorators"])
    search.scavenge([str(ROOT / path) for path in told["paths"] if path != "tests"])
    found = search.get_unused_code(min_confidence=told["min_confidence"])
    dead = [f"{item.filename}:{item.first_lineno} {item.name}" for item in found if item.name not in ALIVE_FOR_OTHERS]
    assert dead == []
    assert {item.name for item in found} == set(ALIVE_FOR_OTHERS), "an exception that is none any more"


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["reward", "train", "--help"]])
def test_help_appears_at_once(words: list[str]) -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "gpo", *words], capture_output=True, text=True, cwd=ROOT)
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0 and done.stdout.startswith("usage: gpo") and done.stderr == ""
    assert min(seconds) < 0.5, "the best of five: what runs beside only adds"


def test_the_help_of_a_verb_ends_with_an_example() -> None:
    for words in (["run"], ["reward", "train"]):
        done = subprocess.run([sys.executable, "-m", "gpo", *words, "--help"], capture_output=True, text=True, cwd=ROOT)
        assert "example: gpo " + " ".join(words) in " ".join(done.stdout.split())
