"""Number types that settings share."""

from typing import Annotated

from pydantic import Field

Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""What numpy and torch take, with room for the number of an iteration."""
Width = Annotated[int, Field(ge=1, le=2**16)]
"""Of an embedding of preferences."""
Rank = Annotated[int, Field(ge=1, le=2**14)]
"""Of an adapter's update of a layer, which is as wide itself."""
MOST_EPOCHS = 100_000
"""Of a reward training, all of whose steps are laid out before the first one."""
Count = Annotated[int, Field(ge=1)]
