"""Learned embeddings of a cycle as a picture, like the paper's Figure 3.
What it is: an SVG with one plane for each block of the embedding, a point an answer, an arrow from each winner to the
loser; in a plane an answer beats those up to half a turn counter-clockwise from it. What it is not: it runs no model.
"""

import html
from collections.abc import Sequence

_SIDE, _MARGIN = 320, 40
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
Point = tuple[float, float]


def embedding_picture(
    title: str,
    names: Sequence[str],
    embeddings: Sequence[Sequence[float]],
    wins: Sequence[tuple[int, int]],
    gate: Sequence[float] | None = None,
) -> str:
    """SVG text; `embeddings` is K rows of even width, `wins` holds (winner, loser) places, `gate` weighs the blocks."""
    blocks = len(embeddings[0]) // 2
    width = blocks * _SIDE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_SIDE + 30}" width="{width}" '
        f'height="{_SIDE + 30}" font-family="sans-serif" font-size="12" role="img" aria-label="{html.escape(title)}">',
        '<defs><marker id="head" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6" '
        'orient="auto"><path d="M0,0L6,3L0,6z" fill="#999"/></marker></defs>',
        f'<rect width="{width}" height="{_SIDE + 30}" fill="white"/>',
        f'<text x="8" y="18" font-size="14">{html.escape(title)}</text>',
    ]
    for block in range(blocks):
        points = [(float(row[2 * block]), float(row[2 * block + 1])) for row in embeddings]
        weight = "" if gate is None else f", weight {gate[block]:.2f}"
        parts += _plane(block * _SIDE, f"block {block + 1}{weight}", names, points, wins)
    return "\n".join([*parts, "</svg>", ""])


def _plane(
    left: float, caption: str, names: Sequence[str], points: Sequence[Point], wins: Sequence[tuple[int, int]]
) -> list[str]:
    reach = max(1e-9, *(max(abs(x), abs(y)) for x, y in points))
    middle, scale = (left + _SIDE / 2, 30 + _SIDE / 2), (_SIDE / 2 - _MARGIN) / reach
    at = [(middle[0] + x * scale, middle[1] - y * scale) for x, y in points]
    lines = [
        f'<circle cx="{middle[0]:.1f}" cy="{middle[1]:.1f}" r="{reach * scale:.1f}" fill="none" stroke="#ddd"/>',
        f'<text x="{middle[0]:.1f}" y="{_SIDE + 22}" text-anchor="middle" fill="#555">{html.escape(caption)}</text>',
    ]
    for winner, loser in wins:
        (x1, y1), (x2, y2) = _shortened(at[winner], at[loser])
        lines.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#999" marker-end="url(#head)"/>'
        )
    for number, ((x, y), name) in enumerate(zip(at, names, strict=True)):
        color = _COLORS[number % len(_COLORS)]
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{color}"/>')
        lines.append(f'<text x="{x + 7:.1f}" y="{y - 7:.1f}">{html.escape(name)}</text>')
    return lines


def _shortened(start: Point, end: Point) -> tuple[Point, Point]:
    """The line between two points without what the points themselves cover."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = max((dx * dx + dy * dy) ** 0.5, 1e-9)
    step_x, step_y = dx / length * min(8, length / 2), dy / length * min(8, length / 2)
    return (start[0] + step_x, start[1] + step_y), (end[0] - step_x, end[1] - step_y)
