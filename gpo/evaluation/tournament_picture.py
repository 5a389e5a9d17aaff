"""The tournament's matrix as one SVG file: a cell a pair, blue where the row wins, red where it loses.

Text only; a browser, an editor or the report shows it. Each cell has its interval as a tooltip.
"""

from html import escape

from gpo.evaluation.tournament import Tournament

CELL, LEFT_PER_CHARACTER, TOP, SIDE = 64, 7.2, 64, 150
WIN, EVEN, LOSS = (49, 104, 176), (247, 247, 245), (187, 62, 48)


def picture(names: list[str], result: Tournament) -> str:
    """A standalone SVG document."""
    left = 50 + LEFT_PER_CHARACTER * max(map(len, names))
    width, height = left + CELL * len(names) + SIDE, TOP + CELL * len(names) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="system-ui, sans-serif" font-size="13" role="img" '
        'aria-label="win rates of all checkpoints against each other">',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        '<text x="10" y="22">win rate of the row over the column, %; a bold number\'s 95 % interval excludes 50</text>',
    ]
    edge = left + CELL * len(names)
    parts.append(_text(edge + 40, TOP - 10, "Nash") + _text(edge + 105, TOP - 10, "Elo"))
    for row, name in enumerate(names):
        middle = TOP + CELL * row + CELL / 2 + 5
        parts.append(f'<text x="{left - 10:.0f}" y="{middle:.0f}" text-anchor="end">{escape(name)} ({row + 1})</text>')
        parts.append(_text(left + CELL * row + CELL / 2, TOP - 10, f"({row + 1})"))
        parts += [_cell(names, result, row, column, left) for column in range(len(names)) if column != row]
        parts.append(_text(edge + 40, middle, f"{result.nash_N[row]:.2f}"))
        parts.append(_text(edge + 105, middle, f"{result.elo_N[row]:.0f}"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _cell(names: list[str], result: Tournament, row: int, column: int, left: float) -> str:
    rate, low, high = (float(table[row, column]) for table in (result.win_rate_NN, result.low_NN, result.high_NN))
    x, y = left + CELL * column, TOP + CELL * row
    clear = low > 0.5 or high < 0.5
    ink = "white" if abs(rate - 0.5) > 0.3 else "black"
    told = f"{names[row]} over {names[column]}: {rate:.1%} [{low:.1%}, {high:.1%}]"
    return (
        f'<g><title>{escape(told)}</title><rect x="{x:.0f}" y="{y:.0f}" width="{CELL - 2}" height="{CELL - 2}" '
        f'fill="{_colour(rate)}"/>'
        + _text(x + CELL / 2, y + CELL / 2 + 4, f"{100 * rate:.1f}", ink, bold=clear)
        + "</g>"
    )


def _text(x: float, y: float, text: str, ink: str = "black", *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" fill="{ink}"{weight}>{escape(text)}</text>'


def _colour(rate: float) -> str:
    end, share = (WIN, 2 * rate - 1) if rate > 0.5 else (LOSS, 1 - 2 * rate)
    mixed = (round(even + share * (to - even)) for even, to in zip(EVEN, end, strict=True))
    return "rgb({}, {}, {})".format(*mixed)
