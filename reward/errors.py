"""The one exception for mistakes that the caller can mend: a bad row, a bad option, an unreadable checkpoint.
Its message says what was found, what was expected and the next step. Faults of our own are not raised with
it.
"""


class RewardInputError(ValueError):
    """Something the caller gave cannot be used; the message says how to mend it."""
