"""A kernel table in the terminal and as a picture. Pure: measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import limits, whole, workloads
from benchmarks.implementations import BLOCK_BY_BLOCK
from benchmarks.report import three_digits, versions
from benchmarks.results import GRAPH_CLOCKS, KernelTable
from benchmarks.workloads import Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLOCKS = ("device_us", "graph_us", "call_us", "replay_us", "host_us")
SPEEDUP_CLOCKS = ("device_us", "call_us", "replay_us")
BESIDE = {"reference": "reference", BLOCK_BY_BLOCK: "formula"}  # of what speedups are shown, and its title
LOG_COLUMNS = 190  # of a log, which has no width of its own
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# Okabe and Ito's colours without the yellow, which is faint on white, and a shape each, so that none is needed.
COLOURS = ("#D55E00", "#000000", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
SHAPES = "oDs^vP*X"
INK = "#222222"


@dataclass(frozen=True)
class Spread:
    """Of samples: their median, and the quarters' ends, in microseconds."""

    median_us: float
    low_us: float
    high_us: float

    def __str__(self) -> str:
        half = (self.high_us - self.low_us) / 2
        return f"{three_digits(self.median_us)} ±{half / self.median_us:.1%}"


class Sheet:
    """One workload of a table: what was measured, and what follows from it."""

    def __init__(self, table: KernelTable, workload: str) -> None:
        self.workload: Workload = workloads.parse(workload)
        self.table = table
        self.absences = [one for one in table.absences if one.workload == workload]
        self.spreads = {
            (one.implementation, one.clock): _spread(one.us) for one in table.times if one.workload == workload
        }

    @property
    def floor_clocks(self) -> tuple[str, ...]:
        """On which implementations are held against the floor, the one that counts first. Calls in a graph follow each
        other at once, so that warm logits are still in the cache."""
        if self.table.environment.device_type == "cpu":
            return ("call_us",)
        return ("graph_us",) if self.workload.warm else ("device_us", "graph_us")

    def median_us(self, implementation: str, clock: str) -> float | None:
        spread = self.spreads.get((implementation, clock))
        return None if spread is None else spread.median_us

    def speedup_clocks(self, beside: str) -> list[str]:
        """On which there are times of `beside`: of the formula, which waits, none of replays."""
        return [clock for clock in speedup_clocks(self.table) if self.median_us(beside, clock) is not None]

    def speedup(self, implementation: str, beside: str, clock: str) -> float | None:
        """How often it is done while `beside` is done once."""
        us, beside_us = self.median_us(implementation, clock), self.median_us(beside, clock)
        return None if us is None or beside_us is None else beside_us / us

    def share_of_limit(self, implementation: str) -> float | None:
        """Of the floor's speed: 1 is as fast as reading the logits."""
        return self.speedup(implementation, limits.FLOOR, self.floor_clocks[0])

    def gb_per_s(self, implementation: str) -> float | None:
        """At which the logits of the masked rows are read, if nothing else is; none where none is masked."""
        us = self.median_us(implementation, self.floor_clocks[0])
        return None if us is None or not self.workload.masked_rows else self.workload.bytes_read / us / 1e3

    def above_floor(self, implementation: str, clock: str) -> tuple[float, float] | None:
        """Microseconds, and how many times the floor's."""
        us, floor_us = self.median_us(implementation, clock), self.median_us(limits.FLOOR, clock)
        return None if us is None or floor_us is None else (us - floor_us, us / floor_us)


def _spread(us: Sequence[float]) -> Spread:
    if len(us) == 1:
        return Spread(us[0], us[0], us[0])
    low, median, high = statistics.quantiles(us, n=4, method="inclusive")
    return Spread(median, low, high)


def speedup_clocks(table: KernelTable) -> tuple[str, ...]:
    """The GPU's own time, which leaves out waits of the host, and what a caller sees, of calls and of replays: as far
    as the table has them."""
    return tuple(clock for clock in SPEEDUP_CLOCKS if clock in table.clock_methods)


def print_terminal(table: KernelTable) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=LOG_COLUMNS, highlight=False)
    for line in _heading(table):
        console.print(line, markup=False)
    for name in table.workloads:
        sheet = Sheet(table, name)
        console.print()
        console.print(_rich_table(sheet))
        for line in _footnotes(sheet):
            console.print(line, markup=False)


def _heading(table: KernelTable) -> Iterator[str]:
    yield f"The kernel beside others and beside its limits, on {table.environment.device}"
    yield versions(table)
    yield "Medians, ± half the distance between the quartiles. " + "; ".join(
        f"{clock}: {method}" for clock, method in table.clock_methods.items()
    )
    if table.environment.device_type == "cpu":
        yield "No GPU here: the CPU backend, and of the clocks call_us alone."
    if not table.checked:
        yield "NOT CHECKED: results were not held against the reference (--skip-correctness)."
    if table.skipped:
        yield f"Left out, because they need a GPU: {', '.join(table.skipped)}"
    for name, digest in table.peers.items():
        yield f"{name}: from a file with SHA-256 {digest}"


def _rich_table(sheet: Sheet) -> Any:
    from rich.table import Table

    table = sheet.table
    clocks = [clock for clock in CLOCKS if clock in table.clock_methods]
    read = f"{sheet.workload.bytes_read:,} bytes to be read"
    shown = Table(title=f"{sheet.workload.name}: {read}", title_justify="left")
    shown.add_column("implementation", no_wrap=True)
    columns = [*clocks]
    for beside, title in BESIDE.items():
        columns.append(f"x {title}\n" + ",\n".join(sheet.speedup_clocks(beside)))
    columns.append(f"GB/s\n{sheet.floor_clocks[0]}")
    columns += [f"µs above floor\n{clock}" for clock in sheet.floor_clocks]
    for column in columns:
        shown.add_column(column, justify="right", overflow="fold")
    for name in table.implementations:
        shown.add_row(name, *_cells(sheet, name, clocks))
    shown.add_section()
    for name in table.limits:
        shown.add_row(name, *_cells(sheet, name, clocks))
    return shown


def _cells(sheet: Sheet, name: str, clocks: Sequence[str]) -> list[str]:
    """A row without its name."""
    numbers = {
        one.kind: str(number).translate(SUPERSCRIPTS)
        for number, one in enumerate(sheet.absences, start=1)
        if one.implementation == name
    }
    for kind in ("wrong", "failed"):
        if kind in numbers:
            return [f"{kind}{numbers[kind]}"]
    times = []
    for clock in clocks:
        spread = sheet.spreads.get((name, clock))
        mark = numbers.get("not captured", "") if clock in GRAPH_CLOCKS else ""
        times.append(str(spread) if spread else f"-{mark}")
    speedups = [
        ", ".join(_factor(sheet.speedup(name, beside, clock)) for clock in sheet.speedup_clocks(beside))
        for beside in BESIDE
    ]
    if name in sheet.table.limits and name != limits.FLOOR:
        return times  # these read nothing
    above = [sheet.above_floor(name, clock) for clock in sheet.floor_clocks]
    distances = ["-" if one is None else f"{one[0]:+,.1f}, {one[1]:.2f}x" for one in above]
    gb_per_s = sheet.gb_per_s(name)
    return [*times, *speedups, "-" if gb_per_s is None else f"{gb_per_s:,.1f}", *distances]


def _factor(value: float | None) -> str:
    return "-" if value is None else three_digits(value)


def _footnotes(sheet: Sheet) -> Iterator[str]:
    for number, one in enumerate(sheet.absences, start=1):
        mark = str(number).translate(SUPERSCRIPTS)
        outcome = "not timed in a graph" if one.kind == "not captured" else f"{one.kind.upper()}, no times"
        yield f"{mark} {one.implementation}: {outcome}: {one.detail}"
    if search := sheet.table.floor_searches.get(sheet.workload.name):
        ways = f"the fastest of {len(search)} ways to read the logits once"
        nothing = "as there is nothing to be read"
        yield f"floor: {min(search, key=search.__getitem__)}, {ways if sheet.workload.masked_rows else nothing}"
    disturbed = [one.clock for one in sheet.table.times if one.workload == sheet.workload.name and not one.quiet]
    for clock in dict.fromkeys(disturbed):
        yield f"{clock}: other work on this machine disturbed too many samples; do not rely on these"
    for block in sheet.table.blocks:
        if block.workload == sheet.workload.name and block.fault:
            yield f"{block.clock}: {block.fault}; do not rely on these"


def plot(table: KernelTable, path: Path) -> None:
    """Speedup over the reference and share of the limit, per workload, as PNG or SVG by the path's ending; the file is
    written whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    sheets = [Sheet(table, name) for name in table.workloads]
    clock = speedup_clocks(table)[0]
    figure = Figure(figsize=(13, 2.4 + 0.42 * len(sheets)), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    beside = [name for name in table.implementations if name != "reference"]
    for number, name in enumerate(beside):
        style = {"color": COLOURS[number % len(COLOURS)], "marker": SHAPES[number % len(SHAPES)], "linestyle": "none"}
        _points(left, [sheet.speedup(name, "reference", clock) for sheet in sheets], name, style)
        _points(right, [_percent(sheet.share_of_limit(name)) for sheet in sheets], name, style)
    left.axvline(1, color=INK, linewidth=1)
    left.set_xscale("log")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_locator(NullLocator())
    left.set_xlabel(f"speedup over the reference, {clock}")
    right.axvline(100, color=INK, linewidth=1)
    right.set_xlim(left=0)
    clocks = ", ".join(dict.fromkeys(sheet.floor_clocks[0] + " if warm" * sheet.workload.warm for sheet in sheets))
    right.set_xlabel(f"percent of the floor's speed, {clocks}")
    left.set_yticks(range(len(sheets)), [sheet.workload.name for sheet in sheets])
    left.set_ylim(len(sheets) - 0.4, -0.6)  # in the order of the table
    for axes in (left, right):
        axes.grid(axis="both", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK)
        axes.xaxis.label.set_color(INK)
    checked = "" if table.checked else "; results NOT checked"
    figure.suptitle(f"{table.environment.device}, {table.created[:10]}{checked}\n{versions(table)}", color=INK)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, labelcolor=INK)
    with whole.file(path) as part:
        figure.savefig(part, format=path.suffix[1:], dpi=150)


def _points(axes: Axes, values: Sequence[float | None], name: str, style: dict[str, Any]) -> None:
    """One implementation's, a line of the axes for each workload; of fused, with the numbers."""
    known = [(value, place) for place, value in enumerate(values) if value is not None]
    axes.plot([value for value, _ in known], [place for _, place in known], label=name, markersize=8, **style)
    if name == "fused":
        for value, place in known:
            axes.annotate(f"{value:.3g}", (value, place), (0, 7), textcoords="offset points", ha="center", color=INK)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
