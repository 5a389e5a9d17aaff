"""Score two answers with a general preference model: the example of the published model card.

    python examples/score_two_answers.py models/quickstart-gpm

The score is raw; divided by the model's tau it is log-odds, and their sigmoid is the probability that the first
answer is preferred.
"""

import argparse
from pathlib import Path

from reward import PreferenceScorer
from reward.preference import preference_probability

QUESTION = "Describe the importance of reading books in today's digital age."
ANSWERS = [
    "Books remain crucial in the digital era, offering in-depth knowledge and fostering critical thinking. They "
    "provide a unique, immersive experience that digital media cannot replicate, contributing significantly to "
    "personal and intellectual growth.",
    "Books are still useful for learning new things. They help you relax and can be a good break from screens.",
]


def main() -> None:
    """Command line: the model's directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    scorer = PreferenceScorer.from_pretrained(parser.parse_args().model)
    table_KK = scorer.table([{"role": "user", "content": QUESTION}], ANSWERS)
    score = float(table_KK[0, 1])
    probability = float(preference_probability(table_KK[0, 1], scorer.tau))
    print(f"score of the first over the second: {score:+.4f} (raw), {score / scorer.tau:+.3f} (log-odds)")
    print(f"probability that the first is preferred: {probability:.1%}")


if __name__ == "__main__":
    main()
