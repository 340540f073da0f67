"""Values as they are read: three significant digits, with the unit where it fits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
BYTES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))


def reading(value: float, unit: str) -> str:
    """asv's units by their rules, any other as it is written."""
    if unit in ("seconds", "s"):
        return _scaled(value, SECONDS)
    if unit in ("bytes", "B"):
        return _scaled(value, BYTES)
    if unit in ("x", "×"):  # noqa: RUF001
        return f"{digits(value)}×"  # noqa: RUF001
    return f"{digits(value)} {unit}".rstrip()


def brief(value: float, unit: str) -> str:
    """Without what the value is of: "12 %" of "% of the limit"."""
    return reading(value, f" {unit}".partition(" of ")[0].strip())


def scale(values: Sequence[float], unit: str) -> tuple[float, str]:
    """What to divide such values by on one axis, and what is written behind them then."""
    middle = statistics.median(map(abs, values)) if values else 1.0
    for names, sizes in ((("seconds", "s"), SECONDS), (("bytes", "B"), BYTES)):
        if unit in names:
            size, name = next(((size, name) for size, name in sizes if middle >= size), sizes[-1])
            return size, f" {name}"
    return 1.0, "×" if unit in ("x", "×") else f" {unit}".rstrip()  # noqa: RUF001


def _scaled(value: float, scale: tuple[tuple[float, str], ...]) -> str:
    rounded = abs(float(f"{value:.3g}"))  # 999.7 of one unit are 1.00 of the next
    size, name = next(((size, name) for size, name in scale if rounded >= size), scale[-1])
    return f"{digits(value / size)} {name}"


def digits(value: float) -> str:
    """Three significant ones, or all before the point."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) < 1e-3 or abs(value) >= 1e9:
        return f"{value:.2e}"
    rounded = float(f"{value:.3g}")
    places = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{places}f}"


def percent(share: float, *, sign: bool = False) -> str:
    """0.0512 is 5.1 %."""
    size = abs(100 * share)
    places = 0 if size >= 99.5 else 1 if size >= 0.95 else 2
    return f"{100 * share:{'+' if sign else ''}.{places}f} %"
