"""AutoJ's human-judged pairs as training and held-out files.

Run: python scripts/autoj_pairs.py AUTOJ_PAIRWISE.json models/autoj-pairs

The file is AutoJ's test set (JSON Lines with `prompt`, `response 1`, `response 2`, `label`: 0 or 1 names the better
response, 2 is a tie). Ties are left out. Prompts, not pairs, are held out: a fifth of them, by a hash of their text, so
that the split does not depend on the file's order.
"""

import argparse
import hashlib
import json
from pathlib import Path

HELDOUT_SHARE = 0.2


def rows_of(path: Path) -> list[dict[str, str]]:
    """Decided pairs in our form."""
    rows = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["label"] not in (0, 1):
            continue
        answers = (row["response 1"], row["response 2"])
        better = answers[row["label"]]
        worse = answers[1 - row["label"]]
        rows.append({"instruction": row["prompt"], "chosen": better, "rejected": worse, "scenario": row["scenario"]})
    return rows


def held_out(prompt: str) -> bool:
    """Whether a prompt is only measured on."""
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) / 16**8 < HELDOUT_SHARE


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="autoj_pairwise.json")
    parser.add_argument("output", type=Path, help="folder for train.jsonl and heldout.jsonl")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = rows_of(options.source)
    for name, wanted in (("train", False), ("heldout", True)):
        part = [row for row in rows if held_out(row["instruction"]) is wanted]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (options.output / f"{name}.jsonl").write_text(text, "utf-8")
        print(f"{options.output / name}.jsonl: {len(part)} pairs")


if __name__ == "__main__":
    main()
