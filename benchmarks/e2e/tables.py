"""An end-to-end record as tables, one a load, after those that the project began with. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks import limits
from benchmarks.e2e.record import EndToEnd, Load, Repeat

# What the project's first benchmarks gave for LLaDA2.0-mini in SGLang on an H20, in tokens per second over the
# unfused step: a single request, and 200 questions of GSM8K with 128 in parallel.
SEED = {"1 request": "+4.6%", "in parallel": "+7.5%"}
SAME_PASS = 0.01  # by which the median passes of two modes may differ
HEADINGS = ("Step", "Accuracy", "Latency", "Throughput", "Speedup", "Tokens a pass", "Pass", "Outside it")


def show(record: EndToEnd, *, markdown: bool) -> None:
    if markdown:
        print(as_markdown(record))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(head(record), highlight=False)
    for load in record.loads:
        # Narrow enough that 80 columns hold every word: what is wider is wrapped between words.
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        table.title, table.title_justify = _title(record, load), "left"
        rows = [row(record, load, mode) for mode in record.modes]
        for heading, *cells in zip(HEADINGS, *rows, strict=True):
            table.add_column(heading, min_width=max(len(word) for text in (heading, *cells) for word in text.split()))
        for texts in rows:
            table.add_row(*texts)
        console.print(table)
        console.print("\n".join(remarks(record, load)), highlight=False)


def as_markdown(record: EndToEnd) -> str:
    lines = [head(record)]
    for load in record.loads:
        lines += ["", f"**{_title(record, load)}**", "", f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
        lines += [f"| {' | '.join(row(record, load, mode))} |" for mode in record.modes]
        lines += ["", *(f"- {remark}" for remark in remarks(record, load))]
    return "\n".join(lines)


def head(record: EndToEnd) -> str:
    environment = record.environment
    versions = f"PyTorch {environment.torch}" + (f", Triton {environment.triton}" if environment.triton else "")
    rate = _tokens_per_pass(record.repeats)
    return (
        f"{environment.device}, {versions}, {record.created[:10]}\n"
        f"Model: {record.model}. Prompts: {record.questions}. Acceptance: {record.acceptance}. "
        f"Measured: {rate:.2f} tokens a forward pass."
    )


def _title(record: EndToEnd, load: Load) -> str:
    repeats = _repeats(record, load)
    return f"{load.name}: {load.requests} prompts, " + (
        "one repeat" if repeats == 1 else f"medians of {repeats} interleaved repeats"
    )


def _repeats(record: EndToEnd, load: Load) -> int:
    return len(record.of(load.name, next(iter(record.modes))))


def row(record: EndToEnd, load: Load, mode: str) -> tuple[str, ...]:
    """A mode's cells under `HEADINGS`."""
    repeats = record.of(load.name, mode)
    seconds = statistics.median(one.seconds for one in repeats)
    speed = statistics.median(one.tokens_per_second for one in repeats)
    first = mode == next(iter(record.modes))
    speedup = "1.0x" if first else f"{100 * (record.gain(load.name, mode) - 1):+.1f}%"
    return (
        mode,
        _accuracy(record, load, mode),
        f"{seconds:.3f} s",
        f"{speed:.2f} token/s",
        speedup,
        f"{_tokens_per_pass(repeats):.2f}",
        f"{statistics.median(us for one in repeats for us in one.forward_us) / 1e3:.2f} ms",
        _us(record.outside_us(load.name, mode)),
    )


def _tokens_per_pass(repeats: Sequence[Repeat]) -> float:
    return sum(one.tokens for one in repeats) / sum(one.sequence_passes for one in repeats)


def _accuracy(record: EndToEnd, load: Load, mode: str) -> str:
    shares = sorted({one.correct / load.requests for one in record.of(load.name, mode) if one.correct is not None})
    return " to ".join(f"{share:.3f}" for share in dict.fromkeys((shares[0], shares[-1]))) if shares else "-"


def _us(us: float | None) -> str:
    return "-" if us is None else f"{us:.0f} us"


def remarks(record: EndToEnd, load: Load) -> list[str]:
    """What the numbers are to be held beside."""
    said = []
    if _repeats(record, load) == 1:
        said.append("One repeat does not say how far repeats differ: a small gain may be none. More: `--repeats N`.")
    bound = 100 * (record.bound(load.name) - 1)
    gain = 100 * (record.gain(load.name, "fused") - 1)
    share = f", {gain / bound:.0%} of it" if bound > 0 else ""
    first_figure = ""
    if record.environment.device_type == "cuda":
        was = SEED["1 request" if load.slots == 1 else "in parallel"]
        first_figure = f" The project's first figure for this row, in SGLang on an H20: {was}."
    said.append(
        f"Gain of fused over {next(iter(record.modes))} {gain:+.1f}%; Amdahl's bound, if the steps between "
        f"forward passes took no time, {bound:+.1f}%{share}.{first_figure}"
    )
    if load.name in record.device_us:
        device_us, outside = record.device_us[load.name], record.mean_outside_us(load.name, "fused")
        beyond = "" if outside is None else f" of {outside:.1f} us, so {outside - device_us:.0f} us are beyond it"
        said.append(f"In such a step, the fused operation alone takes the GPU {device_us:.1f} us{beyond}, on average.")
    elif record.environment.device_type == "cuda":
        said.append("How long the fused operation alone takes is not known: CUPTI did not report every step.")
    said.append(_forward(record, load))
    for agreed in record.agreed:
        if agreed.load == load.name:
            differ = ", ".join(f"{name} {count}" for name, count in agreed.differing.items())
            said.append(
                f"On the same logits, {agreed.steps:,} steps: {agreed.accepted:,} tokens accepted of {agreed.masked:,} "
                f"masked positions; accepted otherwise: {differ}. In float32 {agreed.undecidable} were undecidable, "
                f"{agreed.excused} of them accepted otherwise."
            )
    said += _faults(record, load)
    said += record.differences(load.name)
    return said


def _faults(record: EndToEnd, load: Load) -> list[str]:
    """What a GPU's state does to the times: a model may keep it at its power cap, in every mode alike or not."""
    ends = [one.fault for one in record.repeats if one.load == load.name]
    passes = [
        statistics.median(us for one in record.of(load.name, mode) for us in one.forward_us) for mode in record.modes
    ]
    apart = max(passes) / min(passes) - 1
    begin = "Measure again: after" if apart > SAME_PASS else "After"
    return [
        f"{begin} {ends.count(fault)} of {len(ends)} repeats {fault}; the modes' passes differ by {apart:.1%}."
        for fault in sorted({*ends} - {""})
    ]


def _forward(record: EndToEnd, load: Load) -> str:
    (forward,) = (one for one in record.forwards if one.load == load.name)
    rate = forward.bytes_read / forward.us / 1e3
    known = limits.READ_GB_PER_S.get(record.environment.device)
    beside = f", {rate / known:.0%} of the {known:.0f} GB/s that this device reads" if known else ""
    experts = "" if forward.experts_met is None else f"{forward.experts_met:.0f} experts a layer, "
    return (
        f"A forward pass, the last one repeated, takes {forward.us / 1e3:.2f} ms: {experts}"
        f"at least {forward.bytes_read / 1e9:.3g} GB read, {rate:.0f} GB/s{beside}; "
        f"{forward.operations / forward.us / 1e6:.3g} TFLOP/s."
    )
