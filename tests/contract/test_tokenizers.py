"""What `reward.checkpoint` leans on in tokenizers 0.23: the cache of a BPE model can be made smaller.

Run: python -m pytest tests/contract/test_tokenizers.py
Without that method nothing fails, but a process that reads odd words for a whole run grows by 60 MiB.
"""

import subprocess
import sys
from pathlib import Path

from tests.tiny import save_tiny_model

READER = """
import random, string, sys
from pathlib import Path
from reward.checkpoint import load_tokenizer

def mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

def read(words):
    for _ in range(words):
        tokenizer("".join(draw.choices(string.ascii_letters, k=200)))

draw, tokenizer = random.Random(0), load_tokenizer(Path(sys.argv[1]))
assert hasattr(tokenizer.backend_tokenizer.model, "_resize_cache")
read(1500)
before = mib()
read(4000)
print(mib() - before)
"""


def test_a_tokenizer_remembers_few_words(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    printed = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)], check=True, timeout=120, stdout=subprocess.PIPE, text=True
    )
    assert float(printed.stdout) < 4.0
