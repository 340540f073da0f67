"""Records and verdicts as a terminal table, as Markdown, and as the dashboard's front page. Pure: measures nothing."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gate import Judgement, Status, Verdict
from benchmarks.results import KernelTable, Run
from benchmarks.stats import Interval
from benchmarks.workloads import operations

MARKS = {Status.PASS: "PASS", Status.REGRESSION: "REGRESSION", Status.INCONCLUSIVE: "INCONCLUSIVE"}
COLOURS = {Status.PASS: "green", Status.REGRESSION: "red", Status.INCONCLUSIVE: "yellow"}
TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class Row:
    """One verdict in words."""

    workload: str
    clock: str
    fused: str
    beside: str
    question: str
    ratio: str
    bandwidth: str
    status: Status
    reason: str


def rows(judgement: Judgement) -> list[Row]:
    return [_row(verdict) for verdict in judgement.verdicts]


def _row(verdict: Verdict) -> Row:
    name = (printable(verdict.workload), verdict.clock)
    reason = printable(verdict.reason)
    if verdict.ratio is None or verdict.fused_us is None or verdict.beside_us is None:
        return Row(*name, "-", "-", verdict.question, "-", "-", verdict.status, reason)
    bandwidth = "-"
    if verdict.clock == "device_us" and verdict.workload in operations():
        bandwidth = f"{operations()[verdict.workload].bytes_read / verdict.fused_us / 1e3:.0f}"
    return Row(
        *name,
        three_digits(verdict.fused_us),
        three_digits(verdict.beside_us),
        verdict.question,
        _percent(verdict.ratio) if verdict.question == "slowdown" else _times(verdict.ratio),
        bandwidth,
        verdict.status,
        reason,
    )


def printable(text: str) -> str:
    """Text on one line, and without what a terminal takes for a command: records come from elsewhere."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _literal(text: str) -> str:
    """As Markdown shows it: nothing that a record says is markup, or ends a cell."""
    return re.sub(r"[\\`\[\]<>|]", r"\\\g<0>", printable(text))


def _times(ratio: Interval) -> str:
    high = "inf" if ratio.high > 1e4 else f"{ratio.high:.2f}"
    return f"{ratio.estimate:.2f}x [{ratio.low:.2f}, {high}]"


def _percent(ratio: Interval) -> str:
    low, high = ("inf" if value == math.inf else f"{value - 1:+.1%}" for value in (ratio.low, ratio.high))
    return f"{ratio.estimate - 1:+.2%} [{low}, {high}]"


def three_digits(value: float) -> str:
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
    return f"{MARKS[judgement.status]} on {printable(environment.device)} ({where}): {counts or 'nothing was judged'}"


def versions(run: Run | KernelTable) -> str:
    environment = run.environment
    parts = [f"Python {environment.python}", f"torch {environment.torch}", f"triton {environment.triton or 'none'}"]
    if environment.driver:
        parts.append(f"driver {environment.driver}")
    took = [f"{run.seconds:.0f} s of measuring"] if run.seconds else []
    commit = f"commit {_commit(environment.commit, environment.dirty)}"
    if isinstance(run, Run) and run.base is not None:
        commit += f" beside {_commit(run.base.commit, run.base.dirty)}"
    return printable(", ".join([*parts, commit, run.created, *took]))


def _commit(commit: str | None, dirty: bool) -> str:
    return (commit or "unknown")[:10] + (" + uncommitted changes" if dirty else "")


def print_terminal(run: Run, judgement: Judgement) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title=escape(headline(run, judgement)), caption=escape(versions(run)))
    gpu = run.environment.device_type == "cuda"
    compared = run.base is not None
    columns = ["workload", "clock", "fused µs", "beside µs" if compared else "reference µs"]
    columns += ["question", "ratio [interval]"] if compared else ["speedup [interval]"]
    for column in columns:
        left = column in ("workload", "clock", "question")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    if gpu:
        table.add_column("GB/s", justify="right")
    table.add_column("verdict")
    table.add_column("why", overflow="fold")
    for row in rows(judgement):
        verdict = f"[{COLOURS[row.status]}]{MARKS[row.status]}[/]"
        bandwidth = [row.bandwidth] if gpu else []
        question = [row.question] if compared else []
        # What a record says may hold brackets, which are no markup.
        cells = [row.workload, row.clock, row.fused, row.beside, *question, row.ratio, *bandwidth]
        table.add_row(*map(escape, cells), verdict, escape(row.reason))
    if not console.is_terminal:
        console = Console(width=160)  # a log has no width of its own
    console.print(table)
    for note in judgement.notes:
        console.print(f"- {printable(note)}", highlight=False, markup=False)


def markdown(run: Run, judgement: Judgement) -> str:
    lines = [
        f"### {_literal(headline(run, judgement))}",
        "",
        "| workload | clock | fused µs | beside µs | question | ratio [interval] | GB/s | verdict | why |",
        "|---|---|--:|--:|---|--:|--:|---|---|",
    ]
    lines += [
        f"| {_literal(r.workload)} | {r.clock} | {r.fused} | {r.beside} | {r.question} | {r.ratio} | {r.bandwidth} "
        f"| {MARKS[r.status]} | {_literal(r.reason)} |"
        for r in rows(judgement)
    ]
    return "\n".join(
        [*lines, "", *(f"- {_literal(note)}" for note in judgement.notes), "", _literal(versions(run)), ""]
    )


def plain(run: Run, judgement: Judgement) -> dict[str, Any]:
    """Verdicts and notes for machines; a bound that the samples do not allow is None, because JSON has no infinity."""
    verdicts = [{**dataclasses.asdict(verdict), "status": verdict.status.name} for verdict in judgement.verdicts]
    for verdict in verdicts:
        if verdict["ratio"] and math.isinf(verdict["ratio"]["high"]):
            verdict["ratio"]["high"] = None
    environment = dataclasses.asdict(run.environment)
    base = None if run.base is None else dataclasses.asdict(run.base)
    return {
        "status": judgement.status.name, "environment": environment, "base": base, "verdicts": verdicts,
        "notes": list(judgement.notes),
    }  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """A verdict's interval on the page's axis, in percent of its width."""

    row: Row
    start: float
    width: float
    point: float
    bound: float


def bars(verdicts: Sequence[Verdict]) -> list[Bar]:
    """All on one logarithmic axis from the smallest estimate or bound to the largest."""
    known = [(v, v.ratio, v.bound) for v in verdicts if v.ratio is not None and v.bound is not None]
    if not known:
        return []
    low = math.log(min(min(ratio.estimate, bound) for _, ratio, bound in known) * 0.97)
    high = math.log(max(max(ratio.estimate, bound) for _, ratio, bound in known) * 1.03)

    def percent(ratio: float) -> float:
        return min(100.0, max(0.0, 100 * (math.log(max(ratio, 1e-9)) - low) / (high - low)))

    return [
        Bar(
            _row(verdict),
            percent(ratio.low),
            max(0.6, percent(ratio.high) - percent(ratio.low)),
            percent(ratio.estimate),
            percent(bound),
        )
        for verdict, ratio, bound in known
    ]


def page(run: Run, judgement: Judgement, history_link: str | None) -> str:
    """The front page: one file without outside requests. `history_link` leads to the asv site beside it."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    titles = {"slowdown": "Fused beside that of base", "speedup": "Speedup over the PyTorch reference"}
    asked = list(dict.fromkeys((v.question, v.clock) for v in judgement.verdicts if v.clock != "count"))
    return template.render(
        headline=headline(run, judgement),
        status=MARKS[judgement.status],
        versions=versions(run),
        notes=judgement.notes,
        charts=[
            (
                titles[question],
                clock,
                bars([v for v in judgement.verdicts if (v.question, v.clock) == (question, clock)]),
            )
            for question, clock in asked
        ],
        methods=run.clock_methods,
        rows=rows(judgement),
        marks=MARKS,
        gpu=run.environment.device_type == "cuda",
        history_link=history_link,
    )
