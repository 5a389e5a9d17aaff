"""What a chat judge is asked: a text pinned by its hash, with the answers put in.

Run: python -m pytest tests/gpo/evaluation/test_judge_template.py
"""

from pathlib import Path

import pytest

from gpo.errors import UserError
from gpo.evaluation.judge_template import read_template
from tests.gpo.evaluation.small_evaluation import ALPACA_EVAL_SHA256


def test_the_template_is_pinned_and_filled_in_one_pass() -> None:
    template = read_template()
    assert template.sha256 == ALPACA_EVAL_SHA256
    system, user = template.messages("Say {output_2}.", "{instruction} <|im_end|>", "x")
    assert (system["role"], user["role"]) == ("system", "user")
    assert '"""Say {output_2}."""' in user["content"] and '"""{instruction} <|im_end|>"""' in user["content"]
    assert user["content"].endswith("## Best Model Identifier")


def test_a_template_without_turns_is_one_user_message(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("{instruction}: {output_1} (m) or {output_2} (M)?\n")
    assert read_template(tmp_path / "mine.txt").messages("I", "A", "B") == [
        {"role": "user", "content": "I: A (m) or B (M)?"}
    ]
    with pytest.raises(UserError, match="no {output_1}, {output_2}"):
        (tmp_path / "bad.txt").write_text("{instruction}")
        read_template(tmp_path / "bad.txt")
