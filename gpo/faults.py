"""Mistakes of the caller, gathered, so that all of them are said at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from gpo.errors import UserError
from reward.errors import RewardInputError
from rollout.errors import RolloutInputError


class Faults:
    """The caller's mistakes so far: every check is made, and all that was found is said at once."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    @contextmanager
    def noted(self, field: str = "") -> Iterator[None]:
        """A mistake found inside is kept, and what stands behind the block goes on.

        What is said without the name of the field gets it in front.
        """
        try:
            yield
        except (UserError, RolloutInputError, RewardInputError) as error:
            said = str(error)
            self._messages.append(said if said.startswith(field) else f"{field}: {said}")

    def raise_found(self) -> None:
        """Raises UserError with all of them."""
        if len(self._messages) == 1:
            raise UserError(self._messages[0])
        if self._messages:
            listed = "\n".join(f"  - {message}" for message in self._messages)
            raise UserError(f"{len(self._messages)} mistakes:\n{listed}")
