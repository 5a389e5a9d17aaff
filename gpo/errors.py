"""What the command line turns into an exit status, and how the errors of others are told in a line."""


class UserError(Exception):
    """The caller's mistake: one message with field, value, expectation and next step. Exit status 2."""


class StageError(Exception):
    """A stage that cannot go on; the message names it and how to go on. Exit status 1."""


def last_line(error: BaseException) -> str:
    """The last line of what went wrong, often empty; Ray puts whole tracebacks into its messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def reason_of(error: BaseException) -> str:
    """Its last line, or its type where it says nothing."""
    return last_line(error) or type(error).__name__
