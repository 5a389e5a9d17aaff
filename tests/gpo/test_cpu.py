"""What a computing process on the CPU is started with.

Run: python -m pytest tests/gpo/test_cpu.py
"""

import os
import subprocess
import sys

import pytest
import torch

from gpo.cpu import forward_environment, keeping_malloc


def test_a_prepared_process_imports_model_classes_without_scikit_learn() -> None:
    """transformers 5.19: `generation.candidate_generator` imports it where `utils.is_sklearn_available` says so."""
    script = (
        "import sys; from gpo.cpu import prepare_process; prepare_process(1)\n"
        "from transformers import AutoModelForCausalLM, GenerationMixin\n"
        "import gpo.evaluation.length_control\n"
        "assert not {'sklearn', 'pandas'} & set(sys.modules), 'imported all the same'\n"
        "from sklearn.linear_model import LogisticRegression"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_the_malloc_comes_before_what_was_to_be_preloaded_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    alone = keeping_malloc()["LD_PRELOAD"]
    assert alone.endswith("libjemalloc.so") and ":" not in alone
    monkeypatch.setenv("LD_PRELOAD", "/lib/other.so:/lib/third.so")
    assert keeping_malloc()["LD_PRELOAD"] == f"{alone}:/lib/other.so:/lib/third.so"


KEEPER = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def taken(mib):
    found = libc.malloc(mib << 20)
    libc.memset(found, 1, mib << 20)
    return found

def pages():
    return int(open("/proc/self/statm").read().split()[1])

libc.free(taken(256))
before = pages()
kept = [taken(1) for _ in range(100)]
print((pages() - before) * 4096 >> 20)
"""


def test_what_is_kept_serves_requests_of_any_size() -> None:
    """The jemalloc of Ray 2.60, which by default keeps a buffer from requests of less than a 64th of it."""
    environment = {**os.environ, **keeping_malloc()}
    done = subprocess.run([sys.executable, "-c", KEEPER], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and int(done.stdout) < 10


HALF_PRECISION = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="no bfloat16 products by oneDNN here"
)


def grown(first: int, middle: int, last: int, **environment: str) -> float:
    """MiB that a prepared process grows by from the middle of products of ever new shapes to their end."""
    script = (
        "import psutil, torch; from gpo.cpu import prepare_process; prepare_process(1)\n"
        "weight = torch.ones(64, 64, dtype=torch.bfloat16)\n"
        f"for row in range({first}, {last}):\n"
        f"    if row == {middle}: before = psutil.Process().memory_full_info().uss\n"
        "    torch.ones(row, 64, dtype=torch.bfloat16) @ weight\n"
        "print((psutil.Process().memory_full_info().uss - before) / 2**20)"
    )
    words = [sys.executable, "-c", script]
    whole = {**os.environ, **environment}
    return float(subprocess.run(words, check=True, timeout=120, capture_output=True, text=True, env=whole).stdout)


@HALF_PRECISION
def test_a_prepared_process_stops_growing_under_half_precision_products_of_ever_new_shapes() -> None:
    """torch 2.13 with oneDNN 3.12: by their defaults it grows by 400 MiB here, two thirds of one for each shape."""
    assert grown(2, 300, 900) < 80


@HALF_PRECISION
def test_the_forwards_process_which_lasts_for_a_run_keeps_the_kernels_of_a_few_shapes_only() -> None:
    assert grown(2, 50, 300, **forward_environment()) < 8


def test_scattered_memory_that_was_freed_is_given_back() -> None:
    script = """
from gpo.cpu import give_back_memory
from pathlib import Path

def held_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024

pieces = [bytearray(b"x") * (64 << 10) for _ in range(4000)]
del pieces[::2], pieces[:-1]  # the last one stays above them all
freed = held_mib()
give_back_memory()
print(freed, held_mib())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    freed, kept = map(float, run.stdout.split())
    assert freed > 200 and kept < 60, run.stdout


@pytest.mark.parametrize(("first", "arenas"), [("share_one_arena()", {1}), ("", {2, 3, 4, 5})])
def test_threads_share_an_arena_when_told_so(first: str, arenas: set[int]) -> None:
    script = f"""
import ctypes, threading
from gpo.cpu import share_one_arena
{first}
libc, all_there = ctypes.CDLL(None), threading.Barrier(5)

def hold():
    libc.malloc(100)
    all_there.wait(60)

threads = [threading.Thread(target=hold) for _ in range(4)]
for thread in threads:
    thread.start()
all_there.wait(60)
libc.malloc_stats()
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stderr.count("Arena ") in arenas, run.stderr
