"""Train a general preference model and a Bradley-Terry model on a cycle, rock over scissors over paper over rock.

    python examples/train_gpm_on_a_cycle.py models/smollm2-135m-instruct

One reward per answer can agree with two of the three preferences at most; an embedding holds all three. In principle
two dimensions do, but heads that start with all answers in one direction rarely find the circle; with four they do. The
backbone stays frozen here: `tune: heads` of `gpo reward train` does the same with files.
"""

import argparse
import tempfile
from pathlib import Path

from reward import PreferenceScorer
from reward.head_settings import HeadTrainingSettings
from reward.head_training import train_heads
from reward.pairs import PreferencePair

HANDS = ["rock", "scissors", "paper"]
WINS = [(0, 1), (1, 2), (2, 0)]


QUESTION = [{"role": "user", "content": "Choose a hand."}]
EPOCHS = 600
"""An epoch is one step: there are three pairs."""


def answered(hand: int) -> list[dict[str, str]]:
    """The question, answered with that hand."""
    return [*QUESTION, {"role": "assistant", "content": HANDS[hand]}]


def train(backbone: Path, settings: HeadTrainingSettings, folder: Path) -> float:
    """Fit heads to the three preferences; returns the share of them that the saved model has right."""
    pairs = [PreferencePair(answered(better), answered(worse)) for better, worse in WINS]
    train_heads(backbone, pairs, [], folder / settings.head, settings, folder / "states")
    table = PreferenceScorer.from_pretrained(folder / settings.head).table(QUESTION, HANDS)
    return sum(float(table[better, worse]) > 0 for better, worse in WINS) / len(WINS)


def main() -> None:
    """Command line: a language model's directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", type=Path)
    backbone = parser.parse_args().backbone
    with tempfile.TemporaryDirectory() as folder:
        gpm = train(backbone, HeadTrainingSettings(value_head_dim=4, epochs=EPOCHS), Path(folder))
        bt = train(backbone, HeadTrainingSettings(head="bt", epochs=EPOCHS), Path(folder))
    print(f"general preference model, 4 dimensions: {gpm:.0%} of the three preferences")
    print(f"Bradley-Terry, one reward: {bt:.0%} of the three preferences")


if __name__ == "__main__":
    main()
