"""The Markdown of a pull request's summary and comment: what a stranger's record says in it is inert. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from benchmarks import gate, report
from benchmarks.results import Run
from benchmarks.service.overrides import Override
from benchmarks.service.verdict import Outcome
from benchmarks.workloads import WORKLOADS

MARKER = "<!-- perf-verdict -->"  # by which our own comment is found again
JOINER = "\u2060"  # takes no room; a name, link or number with one in it notifies nobody and leads nowhere
LONGEST = 400  # characters of one text out of a record
MOST_ROWS = 120  # of a table; 25 workloads on both clocks, beside base and reference, make 96
MOST_PATHS = 50
FARTHEST = 100.0  # times base; an interval that reaches further is not drawn
# GitHub takes 65536 characters in a comment.
MOST_CHARACTERS = 60_000


def inert(text: str) -> str:
    """`text` as one line that Markdown shows as it is: no markup, HTML, mention, link, reference or new cell."""
    line = " ".join(text.split())
    line = "".join(one for one in line if unicodedata.category(one)[0] != "C")
    if len(line) > LONGEST:
        line = line[:LONGEST] + "…"
    line = re.sub(r"[\\`*\[\]<>~|$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", line).replace("&", "&amp;")
    return re.sub(r"@|#|:(?=/)|www(?=\.)|GH(?=-)", rf"\g<0>{JOINER}", line, flags=re.IGNORECASE)


def headline(outcome: Outcome, override: Override | None) -> str:
    if outcome.green:
        return "perf-verdict: GREEN"
    return "perf-verdict: RED" if override is None else "perf-verdict: RED, overridden for this commit"


def page(outcome: Outcome, changed: Sequence[str], override: Override | None, head: str, base: str) -> str:
    """The whole: outcome and reasons first, then each GPU model's picture and table."""
    lines = [f"## {headline(outcome, override)}", "", f"Head {head[:10]} beside its merge base {base[:10]}.", ""]
    if override is not None:
        lines += [f"Overridden by {inert(override.by)}: {inert(override.reason)} ([run]({override.url}))", ""]
    lines += [f"- {inert(reason)}" for reason in outcome.reasons]
    if changed:
        lines += ["", "#### Changes of what it is judged by", ""]
        lines += [
            "It was judged as the merge base judges: none of these counted. They count for others once merged.",
            "",
        ]
        lines += [f"- {inert(path)}" for path in changed[:MOST_PATHS]]
        lines += [f"- and {len(changed) - MOST_PATHS} more"] if len(changed) > MOST_PATHS else []
    whole = "\n".join([*lines, "", *(section(one.judgement, one.run) for one in outcome.found)])
    if len(whole) <= MOST_CHARACTERS:
        return whole
    return "\n".join([*lines, "", *(section(one.judgement, one.run, passes=False) for one in outcome.found)])[
        :MOST_CHARACTERS
    ]


def section(judgement: gate.Judgement, run: Run, passes: bool = True) -> str:
    """One record: its picture, what did not pass, and, folded away, what did."""
    rows = report.rows(judgement)
    bad = [row for row in rows if row.status is not gate.Status.PASS]
    good = [row for row in rows if row.status is gate.Status.PASS]
    lines = [f"### {inert(report.headline(run, judgement))}", "", *chart(judgement.verdicts)]
    lines += table(bad) if bad else []
    if good and passes:
        lines += ["<details>", f"<summary>{len(good)} that passed</summary>", "", *table(good), "</details>", ""]
    lines += [f"- {inert(note)}" for note in judgement.notes]
    return "\n".join([*lines, "", inert(report.versions(run)), ""])


def table(rows: Sequence[report.Row]) -> list[str]:
    head = [
        "| workload | clock | fused µs | beside µs | question | ratio [interval] | verdict | why |",
        "|---|---|--:|--:|---|--:|---|---|",
    ]
    cells = [
        f"| {inert(row.workload)} | {inert(row.clock)} | {row.fused} | {row.beside} | {row.question} | {row.ratio} "
        f"| {report.MARKS[row.status]} | {inert(row.reason)} |"
        for row in rows[:MOST_ROWS]
    ]
    more = [f"| and {len(rows) - MOST_ROWS} more |"] if len(rows) > MOST_ROWS else []
    return [*head, *cells, *more, ""]


def chart(verdicts: Iterable[gate.Verdict]) -> list[str]:
    """How much longer head takes than base, with interval and limit, on the first clock that is judged.

    Mermaid, because neither summaries nor comments show an image that is not on some host: GitHub draws that.
    """
    drawn = [
        (one.clock, one.workload, *(round(100 * (value - 1), 2) for value in (one.ratio.estimate, *ends, one.bound)))
        for one in verdicts
        if one.question == "slowdown" and one.workload in WORKLOADS and one.ratio and one.bound
        if 0 < (ends := (one.ratio.low, one.ratio.high))[0] <= ends[1] < FARTHEST
    ]
    clock = next((name for name in ("device_us", "call_us") if any(one[0] == name for one in drawn)), None)
    rows = [one[1:] for one in drawn if one[0] == clock]
    if not rows:
        return []
    names, found, low, high, limit = map(list, zip(*rows, strict=True))
    return [
        "```mermaid",
        "---",
        "config:",
        "  xyChart:",
        f"    height: {140 + 26 * len(names)}",
        "    width: 900",
        "  themeVariables:",
        "    xyChart:",
        '      plotColorPalette: "#9ecae1, #737373, #737373, #d62728"',
        "---",
        "xychart-beta horizontal",
        f'  title "{clock} of head beside base: found (bar), interval (grey), limit (red)"',
        f"  x-axis [{', '.join(names)}]".replace("[", '["').replace(", ", '", "').replace("]", '"]'),
        f'  y-axis "% longer" {min([*low, *found, -1.0])} --> {max([*high, *limit, 1.0])}',
        f"  bar {found}",
        f"  line {low}",
        f"  line {high}",
        f"  line {limit}",
        "```",
        "",
    ]
