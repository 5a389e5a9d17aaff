"""Text that others wrote, made fit for a terminal: it may be read there, and it may not steer.

Answers, names and paths can hold escape sequences that recolour, overwrite or retitle a terminal. Whatever is printed
or logged with such text in it passes through here. Imports nothing heavy, so that everybody can.
"""

from typing import Any


def printable(text: str) -> str:
    """The text on one line, each character that is not printable as a blank."""
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))


def printable_lines(text: str) -> str:
    """The same for text of several lines, whose line ends and indents stay."""
    kept = "".join(c if c.isprintable() or c == "\n" else " " for c in text.expandtabs(4))
    return kept.strip("\n")


def tell(text: str, **options: Any) -> None:
    """`print` for lines that hold what others wrote; `options` are those of `print`."""
    print(printable_lines(text), **options)
