"""In a process of its own: how many numbers torch's sine and cosine were first called with.

A first call by two threads at once may be wrong in one of their parts (`reward.vector_math`).
"""

import json
import subprocess
import sys

from tests.e2e.tiny_run import environment

RECORDER = """
import json
from torch.utils._python_dispatch import TorchDispatchMode

first = {}

class Recorder(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        if name in ("sin", "cos"):
            first.setdefault(name, args[0].numel())
        return function(*args, **(kwargs or {}))

with Recorder():
"""


def first_calls(body: str, *words: str) -> dict[str, int]:
    """Run Python lines, which find `words` in sys.argv[1:]; numbers in the first call, by function."""
    code = RECORDER + "".join(f"    {line}\n" for line in body.strip().splitlines()) + "print(json.dumps(first))\n"
    run = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    return found
