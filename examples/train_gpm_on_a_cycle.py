"""Train a general preference model and a Bradley-Terry model on a cycle, rock over scissors over paper over rock.

    python examples/train_gpm_on_a_cycle.py models/smollm2-135m-instruct

One reward per answer can agree with two of the three preferences at most; an embedding holds all three. In principle
two dimensions do, but heads that start with all answers in one direction rarely find the circle; with four they do. The
backbone stays frozen here; `gpo reward train` is the tool for real data.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer

from reward import GeneralPreferenceModel
from reward.encoding import ConversationEncoder
from reward.losses import logistic_loss
from reward.model import pad_rows
from reward.preference import preference_table
from reward.settings import RewardSettings

HANDS = ["rock", "scissors", "paper"]
WINS = [(0, 1), (1, 2), (2, 0)]
STEPS = 600


def train(backbone: Path, settings: RewardSettings) -> float:
    """Fit the heads to the three preferences; returns the share of them that the model has right."""
    model = GeneralPreferenceModel.from_backbone(backbone, settings, seed=0, dtype="float32")
    encoder = ConversationEncoder(AutoTokenizer.from_pretrained(backbone), settings, max_length=256)
    conversations = [
        [{"role": "user", "content": "Choose a hand."}, {"role": "assistant", "content": hand}] for hand in HANDS
    ]
    with torch.no_grad():
        states = model.hidden_states(*pad_rows(encoder.encode(conversations)))
    optimizer = torch.optim.AdamW(model.heads.parameters(), lr=0.003)
    first, second = (torch.tensor(side) for side in zip(*WINS, strict=True))
    for _ in range(STEPS):
        emb_KD, _ = model.heads(*states)
        score_N = preference_table(emb_KD)[first, second]
        loss = logistic_loss(score_N, settings.tau).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float((score_N > 0).double().mean())


def main() -> None:
    """Command line: a language model's directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", type=Path)
    backbone = parser.parse_args().backbone
    for name, width in (("general preference model, 4 dimensions", 4), ("Bradley-Terry, one reward", 1)):
        settings = RewardSettings.published(width, False)
        right = train(backbone, settings)
        print(f"{name}: {right:.0%} of the three preferences")


if __name__ == "__main__":
    main()
