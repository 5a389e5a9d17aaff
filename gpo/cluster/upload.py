"""Which files of a working directory a job is given: sources and data, never secrets, weights, runs or environments.

The files are copied to a folder of their own, and Ray is given that folder: what was checked is what goes up. Nothing
here imports Ray.
"""

import fnmatch
import mmap
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpo.errors import UserError

MIB = 1 << 20
SKIPPED_FOLDERS = (
    "__pycache__",
    "node_modules",
    "build",
    "dist",
    "runs",
    "models",
    "wandb",
    "*.egg-info",
    "site-packages",
)
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.onnx", "*.npz", "*.distcp")
SECRET_NAMES = (
    "*.env", "*.env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.ovpn",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*credential*", "*secret*", "kubeconfig*", "*.kubeconfig",
    "token", "token.*", "*_token", "*_token.*", "*-token", "*-token.*", "*auth_token*", "*api_key*", "*apikey*",
    "*password*", "htpasswd", "service-account*.json", "service_account*.json",
)  # fmt: skip
SECRET_CONTENT = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY"
    rb"|\bhf_[A-Za-z0-9]{30,}"
    rb"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}|\bglpat-[A-Za-z0-9_-]{20,}"
    rb"|\bsk-[A-Za-z0-9_-]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    rb"|\bA(?:KIA|SIA)[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{35}"
    rb"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."
    # A name that promises a secret, set to a long literal of letters and digits: in quotes, or to the end of the line.
    rb"|(?i:api_?key|secret|token|passw(?:or)?d|access_?key)[A-Za-z_]{0,12}\\?[\"']?\s*[=:]\s*"
    rb"(?:\\?[\"'](?=[^\"']*\d)[A-Za-z0-9/+_-]{24,}=*\\?[\"']|(?=\S*\d)[A-Za-z0-9/+_-]{24,}=*\s*(?:[\r\n#]|$))"
)
LISTED = 10


@dataclass(frozen=True, slots=True)
class Upload:
    """Relative paths that go up, and those left out because they look like secrets, each with the reason."""

    root: Path
    files: tuple[Path, ...]
    secrets: dict[Path, str]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum((self.root / path).stat().st_size for path in self.files)


def choose_files(root: Path, excludes: Sequence[str] = (), includes: Sequence[str] = ()) -> Upload:
    """Files below `root` that may go up; `excludes` are further patterns of names or relative paths, `includes`
    relative paths of files that only look like secrets."""
    files: list[Path] = []
    secrets: dict[Path, str] = {}
    for path in _walk(root, excludes):
        relative = path.relative_to(root)
        reason = _secret(path)
        if reason and relative.as_posix() not in includes:
            secrets[relative] = reason
        else:
            files.append(relative)
    return Upload(root, tuple(sorted(files)), secrets)


def _walk(root: Path, excludes: Sequence[str]) -> Iterator[Path]:
    """Regular files; hidden names, links, and folders that are environments, runs or builds are not entered."""
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(
            name for name in folders if not (_is_skipped(here / name) or _matches(here / name, root, excludes))
        )
        for name in sorted(names):
            path = here / name
            unwanted = name.startswith(".") and not _any(name, SECRET_NAMES)
            if not (unwanted or path.is_symlink() or not path.is_file() or _any(name, WEIGHTS)):
                if not _matches(path, root, excludes):
                    yield path


def _is_skipped(folder: Path) -> bool:
    name = folder.name
    environment = (folder / "pyvenv.cfg").exists() or (folder / "conda-meta").exists()
    run = (folder / "run.json").exists() or (folder / "journal.jsonl").exists()
    return name.startswith(".") or folder.is_symlink() or environment or run or _any(name, SKIPPED_FOLDERS)


def _matches(path: Path, root: Path, patterns: Sequence[str]) -> bool:
    relative = path.relative_to(root).as_posix()
    return any(fnmatch.fnmatch(relative, pattern) or fnmatch.fnmatch(path.name, pattern) for pattern in patterns)


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name.lower(), pattern) for pattern in patterns)


def _secret(path: Path) -> str | None:
    """Why a file looks like a secret, or None."""
    if _any(path.name, SECRET_NAMES) and path.suffix not in (".py", ".md"):
        return "by its name"
    if not os.access(path, os.R_OK):
        return "it cannot be read"
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return "by what is in it" if SECRET_CONTENT.search(content) else None


def stage(upload: Upload, target: Path, *, largest_mib: float) -> None:
    """Copy the files into an empty folder; raises UserError with the largest of them when they are too many bytes."""
    size = upload.size
    if size > largest_mib * MIB:
        by_size = sorted(upload.files, key=lambda path: -(upload.root / path).stat().st_size)[:LISTED]
        listed = "\n".join(f"  - {path}: {(upload.root / path).stat().st_size / MIB:.1f} MiB" for path in by_size)
        raise UserError(
            f"{upload.root}: {size / MIB:.1f} MiB in {len(upload.files)} files would go up, the limit is "
            f"{largest_mib:g} MiB; the largest are\n{listed}\nLeave some out with --exclude PATTERN (data on a shared "
            "disk or at a hub: name stays as it is), submit from a smaller directory, or raise --largest-mib"
        )
    for path in upload.files:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(upload.root / path, target / path)
