"""One seed for each request, from what the request is and not from when or where it runs.

The same (run seed, iteration, prompt) gives the same seed whatever the sharding, the pool or a restart.
vLLM adds k to the seed of a request for its k-th sample, which is why 62 bits are used and not 63.
"""

import hashlib


def request_seed(run_seed: int, iteration: int, prompt_id: str, purpose: str = "rollout") -> int:
    """A 62-bit seed, stable over processes and Python versions.

    `purpose` keeps draws apart that would otherwise share their randomness, such as `rollout` and `heldout`.
    """
    text = f"{run_seed}\x1f{iteration}\x1f{purpose}\x1f{prompt_id}"
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2
