"""Records and verdicts as a terminal table, as Markdown, and as the dashboard's front page. Pure: measures nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gate import Judgement, Status, Verdict
from benchmarks.results import Run
from benchmarks.workloads import WORKLOADS

MARKS = {Status.PASS: "PASS", Status.REGRESSION: "REGRESSION", Status.INCONCLUSIVE: "INCONCLUSIVE"}
COLOURS = {Status.PASS: "green", Status.REGRESSION: "red", Status.INCONCLUSIVE: "yellow"}
TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class Row:
    """One verdict in words."""

    workload: str
    clock: str
    fused: str
    reference: str
    speedup: str
    bandwidth: str
    status: Status
    reason: str


def rows(judgement: Judgement) -> list[Row]:
    return [_row(verdict) for verdict in judgement.verdicts]


def _row(verdict: Verdict) -> Row:
    if verdict.speedup is None or verdict.fused_us is None or verdict.reference_us is None:
        return Row(verdict.workload, verdict.clock, "-", "-", "-", "-", verdict.status, verdict.reason)
    bandwidth = "-"
    if verdict.clock == "device_us":
        bandwidth = f"{WORKLOADS[verdict.workload].bytes_read / verdict.fused_us / 1e3:.0f}"
    interval = verdict.speedup
    high = "inf" if interval.high > 1e4 else f"{interval.high:.2f}"
    return Row(
        verdict.workload,
        verdict.clock,
        microseconds(verdict.fused_us),
        microseconds(verdict.reference_us),
        f"{interval.estimate:.2f}x [{interval.low:.2f}, {high}]",
        bandwidth,
        verdict.status,
        verdict.reason,
    )


def microseconds(value: float) -> str:
    """Three significant digits, and thousands apart."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f}"


def headline(run: Run, judgement: Judgement) -> str:
    environment = run.environment
    counts = ", ".join(
        f"{sum(v.status is status for v in judgement.verdicts)} {MARKS[status]}"
        for status in Status
        if any(v.status is status for v in judgement.verdicts)
    )
    where = "GPU" if environment.device_type == "cuda" else "CPU backend, no GPU here"
    return f"{MARKS[judgement.status]} on {environment.device} ({where}): {counts or 'nothing was judged'}"


def versions(run: Run) -> str:
    environment = run.environment
    parts = [f"Python {environment.python}", f"torch {environment.torch}", f"triton {environment.triton or 'none'}"]
    if environment.driver:
        parts.append(f"driver {environment.driver}")
    commit = (environment.commit or "unknown")[:10] + (" + uncommitted changes" if environment.dirty else "")
    return ", ".join([*parts, f"commit {commit}", run.created])


def print_terminal(run: Run, judgement: Judgement) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=headline(run, judgement), caption=versions(run))
    gpu = run.environment.device_type == "cuda"
    for column in ("workload", "clock", "fused µs", "reference µs", "speedup [interval]"):
        table.add_column(column, justify="left" if column in ("workload", "clock") else "right", no_wrap=True)
    if gpu:
        table.add_column("GB/s", justify="right")
    table.add_column("verdict")
    table.add_column("why", overflow="fold")
    for row in rows(judgement):
        verdict = f"[{COLOURS[row.status]}]{MARKS[row.status]}[/]"
        bandwidth = [row.bandwidth] if gpu else []
        table.add_row(row.workload, row.clock, row.fused, row.reference, row.speedup, *bandwidth, verdict, row.reason)
    if not console.is_terminal:
        console = Console(width=160)  # a log has no width of its own
    console.print(table)
    for note in judgement.notes:
        console.print(f"- {note}", highlight=False)


def markdown(run: Run, judgement: Judgement) -> str:
    lines = [
        f"### {headline(run, judgement)}",
        "",
        "| workload | clock | fused µs | reference µs | speedup [interval] | GB/s | verdict | why |",
        "|---|---|--:|--:|--:|--:|---|---|",
    ]
    lines += [
        f"| {r.workload} | {r.clock} | {r.fused} | {r.reference} | {r.speedup} | {r.bandwidth} | {MARKS[r.status]} "
        f"| {r.reason} |"
        for r in rows(judgement)
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in judgement.notes), "", versions(run), ""])


@dataclass(frozen=True)
class Bar:
    """A verdict's interval on the page's axis, in percent of its width."""

    row: Row
    start: float
    width: float
    point: float
    bound: float


def bars(verdicts: Sequence[Verdict]) -> list[Bar]:
    """All on one logarithmic axis from 1 (or the smallest bound) to the largest estimate."""
    known = [v for v in verdicts if v.speedup is not None and v.bound is not None]
    if not known:
        return []
    low = math.log(min(0.9, *(v.speedup.estimate for v in known if v.speedup)))
    high = math.log(max(v.speedup.estimate for v in known if v.speedup) * 1.15)

    def percent(speedup: float) -> float:
        return min(100.0, max(0.0, 100 * (math.log(max(speedup, 1e-9)) - low) / (high - low)))

    return [
        Bar(
            _row(v),
            percent(v.speedup.low),
            max(0.6, percent(v.speedup.high) - percent(v.speedup.low)),
            percent(v.speedup.estimate),
            percent(v.bound),
        )
        for v in known
        if v.speedup and v.bound
    ]


def page(run: Run, judgement: Judgement, history_link: str | None) -> str:
    """The front page: one file without outside requests. `history_link` leads to the asv site beside it."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    clocks = list(dict.fromkeys(verdict.clock for verdict in judgement.verdicts))
    return template.render(
        headline=headline(run, judgement),
        status=MARKS[judgement.status],
        versions=versions(run),
        notes=judgement.notes,
        charts=[(clock, bars([v for v in judgement.verdicts if v.clock == clock])) for clock in clocks],
        methods=run.clock_methods,
        rows=rows(judgement),
        marks=MARKS,
        gpu=run.environment.device_type == "cuda",
        history_link=history_link,
    )
