"""Write docs/configuration.md from the config classes: every key with its type, default and meaning.

The text under each field of the classes is the one source; this page repeats it. Run after a change of a class:

    python scripts/config_reference.py docs/configuration.md
"""

import argparse
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from gpo.config.cyclic import CyclicConfig
from gpo.config.reward import TRAINING_PLACEMENT, RewardTrainConfig, SourceConfig
from gpo.config.run import PLACEMENT, RunConfig
from gpo.files import write_text
from gpo.settings import Settings

HEAD = """# Configuration reference

<!-- Written by scripts/config_reference.py from the config classes; change those, not this page. -->

A setting is a line of the YAML file or a word `key=value` on the command line, with dots between the levels
(`train.learning_rate=1e-6`). A key that is not in this list is refused, with the nearest name. `gpo run CONFIG
--dry-run` prints what holds.

Keys marked *placement* may change between starts of the same run, or of the same training; all others are its
identity, and its directory refuses a start with another value.

Variables of the environment: `GPO_MEMORY_GIB` lowers what this machine is taken to have free, `GPO_CORE_LOCKS` names
the folder in which engines of this machine agree about their cores, `OPENAI_BASE_URL` and `OPENAI_API_KEY` are a chat
judge's.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## A run: `gpo run`\n", *section("", RunConfig, PLACEMENT)]
    parts += ["## Reward training: `gpo reward train`\n", *section("", RewardTrainConfig, TRAINING_PLACEMENT)]
    parts += ["### Sources\n", f"{first_sentence(SourceConfig)} `train` and `heldout` may be lists of them.\n"]
    parts += table("", SourceConfig, ())
    parts += ["## Cyclic experiment: `gpo reward cyclic`\n", *section("", CyclicConfig, ())]
    return "\n".join(parts)


def section(prefix: str, kind: type[Settings], placement: Sequence[str], note: str = "") -> Iterator[str]:
    """Tables of a class and of the classes below it, in the order of the fields."""
    if prefix:
        yield f"### {prefix.removesuffix('.')}\n"
        yield f"{first_sentence(kind)}{note}\n"
    yield from table(prefix, kind, placement)
    for name, field in kind.model_fields.items():
        inner = settings_class(field.annotation)
        if inner is not None:
            absent = not field.is_required() and field.get_default(call_default_factory=True) is None
            yield from section(f"{prefix}{name}.", inner, placement, " Off unless it is given." if absent else "")


def table(prefix: str, kind: type[Settings], placement: Sequence[str]) -> Iterator[str]:
    """The fields of a class that are no sections."""
    fields = kind.model_fields.items()
    rows = [row(f"{prefix}{name}", field, placement) for name, field in fields if not settings_class(field.annotation)]
    if rows:
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        yield "\n".join(rows) + "\n"


def settings_class(annotation: Any) -> type[Settings] | None:
    """The config class of a field that is a section, also where it may be None."""
    choices = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for choice in choices:
        if isinstance(choice, type) and issubclass(choice, Settings):
            return choice
    return None


def first_sentence(kind: type[Settings]) -> str:
    """Of the class's docstring."""
    return " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split())


def row(name: str, field: FieldInfo, placement: Sequence[str]) -> str:
    """One line of a table."""
    placed = any(name == key or name.startswith(f"{key}.") for key in placement)
    meaning = " ".join((field.description or "").split())
    if placed and "placement" not in meaning:
        meaning = f"{meaning} *Placement.*"
    default = "required" if field.is_required() else f"`{shown(field.get_default(call_default_factory=True))}`"
    return f"| `{name}` | {kind_of(field)} | {default} | {escaped(meaning)} |"


def shown(value: Any) -> str:
    """A default as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return escaped(str(value))


def kind_of(field: FieldInfo) -> str:
    """The type in words, with its bounds."""
    return escaped(", ".join([annotation_words(field.annotation), *bounds(field.metadata)]))


def bounds(parts: Iterable[Any]) -> Iterator[str]:
    """What pydantic knows of a number's range."""
    for part in parts:
        for constraint in getattr(part, "metadata", None) or [part]:
            for word, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
                limit = getattr(constraint, word, None)
                if limit is not None:
                    yield f"{sign} {limit}" if isinstance(limit, int) else f"{sign} {limit:g}"


NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}


def annotation_words(annotation: Any) -> str:
    """A type annotation in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin is typing.Annotated:
        return ", ".join([annotation_words(inner[0]), *bounds(inner[1:])])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(annotation_words(choice) for choice in inner)
    if origin in (list, tuple):
        return f"list of {annotation_words(inner[0])}"
    if origin is dict:
        return f"{annotation_words(inner[0])} → {annotation_words(inner[1])}"
    return NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def escaped(text: str) -> str:
    """Text inside a cell of a Markdown table."""
    return text.replace("|", "\\|")


def main() -> None:
    """Command line: the page to write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    write_text(parser.parse_args().target, page())


if __name__ == "__main__":
    main()
