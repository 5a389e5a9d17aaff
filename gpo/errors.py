"""What the command line turns into an exit status."""


class UserError(Exception):
    """The caller's mistake: one message with field, value, expectation and next step. Exit status 2."""


class StageError(Exception):
    """A stage that cannot go on; the message names it and how to go on. Exit status 1."""
