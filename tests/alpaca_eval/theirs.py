"""Runs inside alpaca-eval's own environment: what the package makes of files of ours, as one line of JSON.

PYTHON tests/alpaca_eval/theirs.py read FOLDER                     reads outputs, leaderboard, annotations; all metrics
PYTHON tests/alpaca_eval/theirs.py fit FOLDER                      length-controlled fits of annotations.json
PYTHON tests/alpaca_eval/theirs.py prompt INSTRUCTION OUTPUT OUTPUT  the messages that its AlpacaEval 2 judge gets

The package downloads instruction_difficulty.csv and df_gamed.csv; those of the folder stand in for them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import alpaca_eval
import pandas as pd
from alpaca_eval import constants, utils
from alpaca_eval.metrics import get_winrate, glm_winrate


def read(folder: Path) -> dict[str, Any]:
    """The package's own way to compute metrics anew from what was written earlier."""
    # Before the package writes the file again, with ten digits.
    raw = get_winrate(pd.read_json(folder / "annotations.json", precise_float=True))
    leaderboard, _ = alpaca_eval.evaluate(
        model_outputs=str(folder / "outputs.json"),
        reference_outputs=str(folder / "baseline.json"),
        precomputed_leaderboard=str(folder / "leaderboard.csv"),
        output_path=str(folder),
        annotators_config=str(folder / "no/annotator"),
        is_recompute_metrics_only=True,
        fn_metric="get_winrate",
        sort_by="win_rate",
        is_cache_leaderboard=False,
        is_return_instead_of_print=True,
    )
    return {"leaderboard": leaderboard.iloc[0].to_dict(), "raw": raw, **fit(folder)}


def fit(folder: Path) -> dict[str, Any]:
    """(win rate, standard error) of each of the package's length-controlled models."""
    glm_winrate.hf_hub_download = lambda repo_id, filename, **_: str(folder / filename)
    found = {}
    for name in glm_winrate.GLM_INFO:
        numbers = glm_winrate.get_length_controlled_winrate(
            pd.read_json(folder / "annotations.json"),
            glm_name=name,
            save_weights_dir=None,
            is_add_glm_preference_inplace=False,
        )
        found[name] = [numbers["length_controlled_winrate"], numbers["lc_standard_error"]]
    return {"controlled": found}


def prompt(instruction: str, output_1: str, output_2: str) -> Any:
    """What the annotator weighted_alpaca_eval_gpt4_turbo sends."""
    template = (constants.EVALUATORS_CONFIG_DIR / "alpaca_eval_clf_gpt4_turbo" / "alpaca_eval_clf.txt").read_text()
    pair = pd.DataFrame([{"instruction": instruction, "output_1": output_1, "output_2": output_2}])
    (text,), _ = utils.make_prompts(pair, template)
    return utils.prompt_to_chatml(text)


if __name__ == "__main__":
    task, *words = sys.argv[1:]
    made = prompt(*words) if task == "prompt" else {"read": read, "fit": fit}[task](Path(words[0]))
    print(json.dumps(made, default=float))
