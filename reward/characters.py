"""Half surrogate pairs: JSON can spell them, Python's strings can hold them, and no tokenizer takes them."""

from reward.errors import RewardInputError


def check_characters(text: str, where: str) -> None:
    """Raises RewardInputError, which begins with `where`, for the first half surrogate pair in a text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RewardInputError(
            f"{where}: {text[error.start]!r} is half of a surrogate pair and no character; expected Unicode text"
        ) from None
