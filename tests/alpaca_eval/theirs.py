"""Runs inside alpaca-eval's own environment: what the package makes of a folder of ours, as one JSON object.

Usage: ENVIRONMENT/bin/python tests/alpaca_eval/theirs.py FOLDER (with annotations.json; with instruction_difficulty.csv
and df_gamed.csv for the length-controlled fits). The package would download those two files; the folder's stand in.
"""

import json
import sys
from pathlib import Path

import alpaca_eval
import pandas as pd
from alpaca_eval.metrics import get_winrate, glm_winrate


def main() -> None:
    folder = Path(sys.argv[1])
    # The package's own way to read what it wrote earlier: outputs, leaderboard and annotations, then metrics anew.
    leaderboard, _ = alpaca_eval.evaluate(
        model_outputs=str(folder / "outputs.json"),
        reference_outputs=str(folder / "baseline.json"),
        precomputed_leaderboard=str(folder / "leaderboard.csv"),
        output_path=str(folder),
        annotators_config="",
        is_recompute_metrics_only=True,
        fn_metric="get_winrate",
        sort_by="win_rate",
        is_cache_leaderboard=False,
        is_return_instead_of_print=True,
    )
    annotations = pd.read_json(folder / "annotations.json")
    found = {"leaderboard": leaderboard.iloc[0].to_dict(), "raw": get_winrate(annotations), "controlled": {}}
    if (folder / "df_gamed.csv").exists():
        glm_winrate.hf_hub_download = lambda repo_id, filename, **_: str(folder / filename)
        for name in glm_winrate.GLM_INFO:
            numbers = glm_winrate.get_length_controlled_winrate(
                annotations.copy(), glm_name=name, save_weights_dir=None, is_add_glm_preference_inplace=False
            )
            found["controlled"][name] = [numbers["length_controlled_winrate"], numbers["lc_standard_error"]]
    print(json.dumps(found, default=float))


if __name__ == "__main__":
    main()
