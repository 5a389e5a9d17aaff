"""What a chat model is asked when it judges a pair: a text with placeholders, named by its content's hash.

The template that comes along, `templates/alpaca_eval_clf.txt`, is AlpacaEval 2's own (alpaca-eval 0.6.6, Apache-2.0,
`evaluators_configs/alpaca_eval_clf_gpt4_turbo`), so that numbers compare with published ones. It calls the first
answer `m` and the second `M` and asks for one of the two names.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from gpo.errors import UserError
from rollout.prompts import Message

ALPACA_EVAL = Path(__file__).parent / "templates" / "alpaca_eval_clf.txt"
FIELDS = ("instruction", "output_1", "output_2")
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class JudgeTemplate:
    """Turns with placeholders {instruction}, {output_1}, {output_2}."""

    name: str
    sha256: str
    turns: tuple[tuple[str, str], ...]
    """(role, text with placeholders)."""

    def messages(self, instruction: str, output_1: str, output_2: str) -> list[Message]:
        """The turns, filled in one pass: a placeholder inside an answer stays the answer's text."""
        values = {"instruction": instruction, "output_1": output_1, "output_2": output_2}
        pattern = re.compile("|".join(f"{{{field}}}" for field in FIELDS))
        return [
            {"role": role, "content": pattern.sub(lambda found: values[found.group()[1:-1]], text)}
            for role, text in self.turns
        ]


def read_template(path: Path | None = None) -> JudgeTemplate:
    """A template file, AlpacaEval 2's if none is given; raises UserError where a placeholder is missing.

    Turns stand between `<|im_start|>ROLE` and `<|im_end|>`; a text without them is one user turn.
    """
    file = path or ALPACA_EVAL
    try:
        content = file.read_bytes()
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template {file}: cannot be read ({error})") from None
    missing = [field for field in FIELDS if f"{{{field}}}" not in text]
    if missing:
        named = ", ".join(f"{{{field}}}" for field in missing)
        raise UserError(f"--template {file}: no {named}; expected {{instruction}}, {{output_1}} and {{output_2}}")
    turns = tuple((role, body.strip()) for role, body in _TURN.findall(text)) or (("user", text.strip()),)
    return JudgeTemplate(file.stem, hashlib.sha256(content).hexdigest(), turns)
