"""The one exception of this package for a mistake of the caller: no traceback is shown for it."""


class RolloutInputError(ValueError):
    """A fault in prompts, a model directory or settings; the message says where, what, and what to do."""
