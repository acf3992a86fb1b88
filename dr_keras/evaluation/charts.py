"""Small charts as SVG, for pages that must not load anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 50, 40
LEGEND = 34  # pixels from the top
TICKS = 4


@dataclass(frozen=True)
class Curve:
    """One curve of a chart.

    Attributes:
        name: Its name.
        x, y: (n,) its points.
    """

    name: str
    x: np.ndarray
    y: np.ndarray


def line_chart(title: str, axis: str, curves: Sequence[Curve], *, percent: bool = False) -> str:
    """Returns a line chart as an SVG element.

    Args:
        title: The title, also for screen readers.
        axis: What the horizontal axis shows.
        curves: The curves; the vertical axis begins at 0 and ends at 1, or at their maximum with `percent`.
        percent: Whether the vertical axis shows percentages of its maximum.

    Example:
        >>> svg = line_chart("Loss", "step", [Curve("loss", np.arange(3), np.array([1, 0.5, 0.25]))])
        >>> svg.startswith("<svg"), "polyline" in svg
        (True, True)
    """
    low, high = (float(f(np.concatenate([curve.x for curve in curves]))) for f in (np.min, np.max))
    if percent:
        low = 0.0
    top = max(float(max(curve.y.max() for curve in curves)), 1e-9) if percent else 1.0
    span = max(high - low, 1e-9)
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - low) / span * across, TOP + (1 - y / top) * down

    parts = [f"<text class=title x={LEFT} y=16>{escape(title)}</text>"]
    for number in range(TICKS + 1):
        share = number / TICKS
        _, y = place(low, share * top)
        label = f"{100 * share * top:.1f} %" if percent else f"{share * top:.2f}"
        parts.append(f'<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class=tick x={LEFT - 6} y="{y + 4:.1f}" text-anchor=end>{label}</text>')
        x, _ = place(low + share * span, 0)
        value = low + share * span
        text = f"{value:.0f}" if span >= 10 else f"{value:.2f}"
        parts.append(f'<text class=tick x="{x:.1f}" y={HEIGHT - BOTTOM + 16} text-anchor=middle>{text}</text>')
    parts.append(f"<text class=tick x={LEFT + across / 2:.0f} y={HEIGHT - 6} text-anchor=middle>{escape(axis)}</text>")
    for number, curve in enumerate(curves):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*xy) for xy in zip(curve.x, curve.y, strict=True)))
        parts.append(f'<polyline class="curve c{number}" points="{points}"/>')
        if len(curves) > 1:
            x = LEFT + 110 * number
            parts.append(f'<line class="curve c{number}" x1={x} x2={x + 16} y1={LEGEND} y2="{LEGEND}"/>')
            parts.append(f"<text class=tick x={x + 21} y={LEGEND + 4}>{escape(curve.name)}</text>")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg>'
    )


def bars(share: float) -> str:
    """Returns a bar for a share from 0 to 1 as an HTML element."""
    return f'<span class=bar><span style="width:{100 * share:.1f}%"></span></span>'
