"""A preference source of the smallest kind: the shorter answer is better. Replace it by your own taste."""


def prefer(messages, a, b):  # type: ignore[no-untyped-def]
    """1 where the first answer is better, -1 where the second is, 0 where neither; fractions say how sure."""
    return float((len(a.text) < len(b.text)) - (len(a.text) > len(b.text)))
