"""`gpo eval` refuses options that the asked kind of evaluation does not listen to.

Run: python -m pytest tests/gpo/evaluation/test_eval_options.py
"""

import argparse

import pytest

from gpo.cli import _parse
from gpo.errors import UserError
from gpo.verbs.eval import HAS_EFFECT

FILES = ["eval", "--outputs", "a.json", "--output", "out"]
CONSTRAINTS = ["--constraints", "c.jsonl"]
GRADE = ["--grade", "g.jsonl", "--questions", "q.jsonl", "--judge", "openai:x"]
GPM = ["--baseline", "b.json", "--judge", "gpm:x"]
CHAT = ["--baseline", "b.json", "--judge", "openai:x", "--base-url", "http://127.0.0.1:9/v1"]


def asked(*words: str) -> argparse.Namespace:
    return _parse([*FILES, *words])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*CONSTRAINTS, "--grade", "g.jsonl"], "--grade: without effect with --constraints; leave it out"),
        ([*CONSTRAINTS, *GPM], "--baseline, --judge: without effect with --constraints; leave them out"),
        ([*GRADE, "--baseline", "b.json"], "--baseline: without effect with --grade"),
        ([*GRADE, "--template", "t.txt", "--gamed", "g.csv"], "--gamed, --template: without effect with --grade"),
        ([*CHAT, "--system", "Be brief."], "--system: without effect with --judge openai:MODEL"),
        ([*CHAT, "--questions", "q.jsonl"], "--questions: without effect with --judge openai:MODEL"),
    ],
)
def test_an_option_without_effect_is_refused(words: list[str], told: str) -> None:
    options = asked(*words)
    with pytest.raises(UserError, match=told):
        options.verb(options)


def test_every_option_has_its_effect_somewhere() -> None:
    assert set().union(*HAS_EFFECT.values()) | {"outputs", "output", "verb"} == set(vars(asked()))
