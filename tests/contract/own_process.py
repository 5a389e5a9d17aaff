"""Code that runs in a process of its own, because what it imports rearranges the process, and what it found out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def found_by(code: str, *words: str) -> dict[str, Any]:
    """What the code printed as JSON behind FOUND; `words` are its arguments."""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(lines[0].removeprefix("FOUND "))
    return told
