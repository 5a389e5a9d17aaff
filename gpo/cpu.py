"""Threads, memory and imports of a process that computes on the CPU.

Freed memory is kept, because training and scoring allocate the same large buffers again and again: glibc hands them
back to the kernel at once and gets them zeroed again at the next step. Keeping them made a training step of SmolLM2 a
quarter faster on two cores. In the main thread glibc can be told so; in other threads, where Ray Train trains, it
cannot, so actors get the jemalloc that Ray ships.
"""

import atexit
import ctypes
import gc
import importlib.util
import os
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""glibc's malloc.h."""
TOP_PAD_BYTES = 1 << 28
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "passive"}
"""OpenMP's threads by themselves spin while they wait, which takes the cores from the actor beside, as from a scorer
while the engine samples."""

KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's cache and that of torch's layer above it, each of 1,024 entries by default: an entry is the code and the
scratch space of half-precision products of one shape, from half a MiB to more than one. Packed rows have ever new
lengths, so that the caches fill, and they are of use only from layer to layer."""
KERNELS_KEPT = 128
"""Enough for that, with the gradients of a training."""
KERNELS_OF_A_FORWARD = 16
"""Enough for a forward pass of one batch alone."""


def prepare_process(threads: int) -> None:
    """Set torch to so many threads, bound its kernels, settle its vector functions (`reward.vector_math`), keep freed
    memory where there is no GPU, and spare an import that takes seconds.

    To be called before a model class is imported.
    """
    import torch

    leave_out_sklearn()
    from reward.vector_math import settle_vector_math

    torch.set_num_threads(threads)
    bound_kernel_caches()
    settle_vector_math()
    if not torch.cuda.is_available():
        keep_freed_memory()


def leave_out_sklearn() -> None:
    """Keep transformers from importing scikit-learn, pandas and scipy with the first model class.

    It needs one function of it, for speculative decoding by an assistant model, which nothing here does. Three of ten
    seconds of a process's start go there.
    """
    from transformers import utils

    utils.is_sklearn_available = lambda: False


def bound_kernel_caches() -> None:
    """Before the first product; what the environment says already is left as it is."""
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, str(KERNELS_KEPT))


def keep_from_collections() -> None:
    """Have Python's garbage collector never look again at what exists now: modules, models, a run's prompts.

    To be called once those are there. Rows come and go by the thousands, and each full collection walked over all of
    it: a third of the time of a scorer.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # Or libraries complain at the end of what seems to have leaked.


def give_back_models() -> None:
    """Free models that are of no more use, whose parts hold each other in circles, and give it to the system.

    Cheap behind `keep_from_collections`.
    """
    gc.collect()
    give_back_memory()


def keep_freed_memory() -> bool:
    """Tell malloc to use no mappings of their own for large buffers and never to trim; returns whether it took it."""
    return _set_malloc({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: (1 << 31) - 1, M_TOP_PAD: TOP_PAD_BYTES})


def _set_malloc(settings: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(key, value) == 1 for key, value in settings.items())


def forward_environment() -> dict[str, str]:
    """Environment of an actor process that makes a forward pass now and then: threads that sleep, and few kernels."""
    return SLEEPING_THREADS | dict.fromkeys(KERNEL_CACHES, str(KERNELS_OF_A_FORWARD))


def actor_environment() -> dict[str, str]:
    """Environment of an actor process that computes on the CPU while others do; a learner has the cores to itself.

    A malloc that keeps what is freed, and threads that sleep while they wait.
    """
    return SLEEPING_THREADS | keeping_malloc()


def give_back_memory() -> None:
    """What this process has freed goes back to the system, where its malloc is glibc's.

    For a process that lives as long as a run: freed pieces lie scattered, and without this it grows with each iteration
    although what it holds does not.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def share_one_arena() -> None:
    """Have all threads take memory from one place, where malloc is glibc's; each takes an arena of its own by default.

    For a process that lives as long as a run, before its first thread: Ray's are many, what each freed serves no other,
    and small pieces that last keep the rest of an arena from being given back.
    """
    _set_malloc({M_ARENA_MAX: 1})


def keeping_malloc() -> dict[str, str]:
    """Environment that preloads Ray's jemalloc, told to keep what is freed, where Ray has one.

    Kept memory serves requests of any size: by default a buffer is not used for one of less than a 64th of it, and a
    training whose steps differ in length took new memory in every step.
    It comes before what this process was told to preload, which an actor would inherit without it.
    """
    spec = importlib.util.find_spec("ray")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else Path()
    library = folder / "core" / "libjemalloc.so"
    if not library.is_file():
        return {}
    return {
        "LD_PRELOAD": ":".join(filter(None, (str(library), os.environ.get("LD_PRELOAD")))),
        "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0,lg_extent_max_active_fit:20",
    }
