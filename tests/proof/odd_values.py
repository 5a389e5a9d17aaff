"""Odd values for any place of a file or a command line, drawn by Hypothesis from the seed of a case.

Hypothesis reads its choices from bytes here, its way for fuzzers from outside: then a seed gives the same value in
every process. Its own random search would take constants from whatever modules happen to be loaded.
"""

from random import Random
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

BYTES_A_DRAW = 4096
MOST_TRIES = 100
"""Bytes may be too few for a value, or make one that a strategy refuses."""
ODD_TEXTS = ["", " ", "\x00", "nan", "None", "../../etc", "\u202e", "\x1b[2J", "<script>", "{{ 7 * 7 }}", "%s%n"]
ODD_TEXTS += ["\r\n", "\ufeff", "\U0001f600" * 3, "a" * 20_000, "\ud800"]
ODD_INTEGERS = [0, -1, 1, 2**31, 2**63, -(2**64), 10**400]
ODD_FLOATS = [0.0, -0.0, 5e-324, 1e308, float("inf"), float("nan")]
ODD_WORDS = ["", "~", "'", "[", "{}", "[" * 10_000, "1e400", "1" * 5000, "0x1F", "1_000", "12:30:45", "2024-13-45"]
ODD_WORDS += ["!!python/object:os", "&a [*a]", "<<: 1", "yes", "nan", "x" * 5000, "\udcff"]
"""As typed behind `key=`; the last is what Python makes of a byte that is no UTF-8."""

TEXTS = st.sampled_from(ODD_TEXTS) | st.text(st.characters(max_codepoint=0x17F), max_size=20) | st.text(max_size=40)
INTEGERS = st.sampled_from(ODD_INTEGERS) | st.integers(-9, 99) | st.integers(0, 10**6) | st.integers()
NUMBERS = INTEGERS | st.sampled_from(ODD_FLOATS) | st.floats(0, 9) | st.floats()
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
"""What JSON and YAML can hold."""


def as_typed(value: Any) -> str:
    """YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n").removesuffix("\n...")


WORDS = (
    st.sampled_from(ODD_WORDS)
    | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)
    | VALUES.map(as_typed)
)
"""What can stand behind `key=` on a command line, where no character may be 0."""


def drawn(strategy: st.SearchStrategy[Any], draw: Random) -> Any:
    """One value of a strategy, the same for the same state of `draw`."""
    found: list[Any] = []

    @settings(database=None, deadline=None)
    @given(strategy)
    def take(value: Any) -> None:
        found.append(value)

    for _ in range(MOST_TRIES):
        take.hypothesis.fuzz_one_input(draw.randbytes(BYTES_A_DRAW))  # type: ignore[attr-defined]
        if found:
            return found[0]
    raise ValueError(f"{strategy!r} gave no value in {MOST_TRIES} tries")


def near(texts: list[str], draw: Random) -> str:
    """Almost one of some texts: another case, a letter too few or twice, a space or a sign too many."""
    text = draw.choice(texts)
    place = draw.randrange(len(text))
    return draw.choice(
        [
            text.upper(),
            text.capitalize(),
            text[:place] + text[place + 1 :],
            text[:place] + text[place] + text[place:],
            f" {text}",
            f"{text}\t",
            f"{text}_{draw.randrange(100)}",
            text.replace("-", "_"),
            f"{text},{draw.choice(texts)}",
        ]
    )
