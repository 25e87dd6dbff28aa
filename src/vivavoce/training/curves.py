"""Small line charts as SVG text: a report draws dozens of them, and they cost it milliseconds."""

import html
import math
from collections.abc import Mapping, Sequence

Curve = tuple[Sequence[float], Sequence[float]]  # x, y

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 30, 22
COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#0a7ea4", "#57606a")
MOST_POINTS = 600


def chart(title: str, curves: Mapping[str, Curve]) -> str:
    """One chart of named curves over the same axes; logarithmic where all values are above 0 and span 30-fold."""
    xs = [x for steps, _ in curves.values() for x in steps]
    ys = [y for _, values in curves.values() for y in values]
    log = min(ys) > 0 and max(ys) > 30 * min(ys)
    low, high = _span([math.log10(y) for y in ys] if log else ys)
    first, last = min(xs), max(xs)

    def place(x: float, y: float) -> str:
        share = (x - first) / (last - first) if last > first else 0.5
        level = ((math.log10(y) if log else y) - low) / (high - low)
        across = LEFT + share * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{HEIGHT - BOTTOM - level * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = [f"<text x='{LEFT}' y='14' font-weight='bold'>{html.escape(title)}</text>"]
    for value in _ticks(low, high):
        y = HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        label = f"{10**value if log else value:.3g}"
        parts.append(f"<path d='M{LEFT},{y:.1f}H{WIDTH - RIGHT}' stroke='#8886' stroke-width='.5'/>")
        parts.append(f"<text x='{LEFT - 4}' y='{y + 3:.1f}' text-anchor='end'>{label}</text>")
    parts.append(f"<text x='{LEFT}' y='{HEIGHT - 6}'>{first:g}</text>")
    parts.append(f"<text x='{WIDTH - RIGHT}' y='{HEIGHT - 6}' text-anchor='end'>step {last:g}</text>")
    for number, (name, (steps, values)) in enumerate(curves.items()):
        stride = max(1, len(steps) // MOST_POINTS)
        points = " ".join(place(x, y) for x, y in zip(steps[::stride], values[::stride]))
        look = f"fill='none' stroke='{COLORS[number % len(COLORS)]}' stroke-width='1.3'"
        dots = f" stroke-dasharray='{3 + number // len(COLORS)} 2'" if number >= len(COLORS) else ""
        if len(steps) == 1:
            across, down = points.split(",")
            parts.append(f"<circle cx='{across}' cy='{down}' r='2.5' {look}/>")
        else:
            parts.append(f"<polyline points='{points}' {look}{dots}/>")
        if len(curves) > 1:
            label, color = html.escape(name), COLORS[number % len(COLORS)]
            wide = min(104, (WIDTH - LEFT - RIGHT) // len(curves))
            parts.append(f"<text x='{LEFT + 8 + wide * number}' y='{TOP + 2}' fill='{color}'>{label}</text>")
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' font-size='9' font-family='system-ui,sans-serif' fill='currentColor'>"
        + "".join(parts)
        + "</svg>"
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers between `low` and `high`."""
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    start = math.ceil(low / step)
    return [step * index for index in range(start, math.floor(high / step) + 1)]
