"""Numbers with units, and tables, as text."""

import math
from collections.abc import Sequence


def number_text(value: float) -> str:
    """Two digits, or all of those before the point."""
    if value == 0 or value >= 10:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}".replace("e-0", "e-")


def count_text(value: float) -> str:
    return f"{value:,.0f}"


def recall_text(value: float) -> str:
    return f"{value:.4g}"


def image_text(value: float) -> str:
    """A number of images, such as 2.5e7."""
    power = math.floor(math.log10(value) + 1e-9)
    return f"{value / 10**power:.3g}e{power}"


def hour_text(seconds: float) -> str:
    return number_text(seconds / 3600)


def second_text(value: float) -> str:
    return f"{number_text(value)} s" if value >= 0.9995 else f"{number_text(value * 1000)} ms"


def byte_text(value: float) -> str:
    """Bytes in units of thousands."""
    power = max(0, min(5, math.floor(math.log10(max(value, 1.0)) / 3 + 1e-4)))
    return f"{number_text(value / 1000**power)} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def rate_text(value: float) -> str:
    return f"{byte_text(value)}/s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown with aligned columns."""
    widths = [max(3, *(len(row[column]) for row in [head, *rows])) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in lines
    )
