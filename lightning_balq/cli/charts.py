"""Drawings of a report as SVG, in the colours of its page."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 240, 72
CHART_WIDTH, CHART_HEIGHT, LEFT, BOTTOM, TOP = 560, 220, 64, 24, 8


def histogram(counts: Sequence[int], description: str) -> str:
    """Bars of how often each code occurs, and a line where all would be if they were used alike."""
    highest, total = max(counts, default=0), sum(counts)
    if not highest:
        return '<p class="note">no codes</p>'
    step = WIDTH / len(counts)
    gap = step / 8 if len(counts) <= 32 else 0.0
    bars = ""
    for index, count in enumerate(counts):
        left, right = _n(index * step + gap), _n((index + 1) * step - gap)
        bars += f"M{left} {HEIGHT}V{_n(HEIGHT * (1 - count / highest))}H{right}V{HEIGHT}Z"
    even = _n(HEIGHT * (1 - total / len(counts) / highest))
    return (
        f'<svg role="img" aria-label="{escape(description)}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<path class="bars" d="{bars}"/><path class="even" d="M0 {even}H{WIDTH}"/></svg>'
    )


def line_chart(
    lines: Mapping[str, Mapping[int, float]], main: str, description: str, limits: tuple[float, ...] = ()
) -> str:
    """Values over steps, a line for each name; gaps where they are not finite.

    Args:
        lines: values by step, by name.
        main: name of the line that stands out.
        description: of the chart, for those who cannot see it.
        limits: values that the axis shows at least.
    """
    points = [(x, y) for line in lines.values() for x, y in line.items() if math.isfinite(y)]
    if not points:
        return '<p class="note">no finite values</p>'
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(*(y for _, y in points), *limits, math.inf), max(*(y for _, y in points), *limits, -math.inf)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, low + (abs(low) or 1.0) / 2
    decimals = max(0, min(8, 2 - math.floor(math.log10(high - low))))

    def place(x: int, y: float) -> str:
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - low) / (high - low)
        return f"{_n(LEFT + across * (CHART_WIDTH - LEFT - 8))} {_n(TOP + (1 - up) * (CHART_HEIGHT - BOTTOM - TOP))}"

    drawn = "".join(
        f'<path class="{"main" if name == main else "layer"}" d="{_path(lines[name], place)}">'
        f"<title>{escape(name)}</title></path>"
        for name in sorted(lines, key=lambda name: name == main)  # above the others
    )
    floor = CHART_HEIGHT - BOTTOM
    ticks = "".join(
        _text(LEFT - 8, TOP + share * (floor - TOP) + 4, f"{high - share * (high - low):.{decimals}f}", "end")
        for share in (0, 0.5, 1)
    )
    ends = _text(LEFT, CHART_HEIGHT - 6, f"step {left:,}", "start")
    ends += _text(CHART_WIDTH - 8, CHART_HEIGHT - 6, f"{right:,}", "end")
    axes = f'<path class="axes" d="M{LEFT} {TOP}V{floor}H{CHART_WIDTH}"/>'
    return (
        f'<svg role="img" aria-label="{escape(description)}" viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}">'
        f"{axes}{ticks}{ends}{drawn}</svg>"
    )


def _path(line: Mapping[int, float], place: Callable[[int, float], str]) -> str:
    """Steps that draw a line; a value between two that are missing is a dot."""
    parts, is_down = [], False
    for x, y in line.items():
        if math.isfinite(y):
            parts.append(f"L{place(x, y)}" if is_down else f"M{place(x, y)}h0")
        is_down = math.isfinite(y)
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def _n(value: float) -> str:
    """Coordinate with two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
