"""The command line: parse, do the verb, and turn what goes wrong into one message and an exit status.

Messages quote what files and models say, so they pass through `say`, which lets nothing steer the terminal.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from gpo import interrupts
from gpo.errors import StageError, UserError
from gpo.logs import say
from gpo.printable import printable
from gpo.verbs import ALL

FAILED, MISTAKE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
GOES_ON = "the same command goes on where this one stopped"


class Parser(argparse.ArgumentParser):
    """argparse's, for the verbs too: what it quotes of the command line may be a file's name."""

    def error(self, message: str) -> NoReturn:
        """Raises SystemExit with status 2."""
        super().error(printable(message))


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status (0 done, 1 failed, 2 mistake, 130 and 143 interrupted).

    Raises SystemExit for words that it does not understand.
    """
    options = _parse(arguments)
    verb: Callable[[argparse.Namespace], int] = options.verb
    interrupts.install()
    try:
        return verb(options)
    except UserError as error:
        say(f"gpo: {error}")
        return MISTAKE
    except StageError as error:
        say(f"gpo: {error}")
        return FAILED
    except KeyboardInterrupt:
        how, status = ("terminated", TERMINATED) if interrupts.terminated() else ("interrupted", INTERRUPTED)
        say(f"gpo: {how}; {getattr(options, 'after_interrupt', GOES_ON)}")
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        say(f"gpo: {error}; make room or mend it, then start the same command again")
        return FAILED


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """argparse takes positional `key=value` words only before the first option; take those behind one as well."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="gpo", description="Align a language model with general preferences, by iterative self-play.")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for verb in ALL:
        verb.add_to(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
