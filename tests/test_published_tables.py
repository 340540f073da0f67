"""The kernel's tables in README and docs say what their records hold, cell by cell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.table import Sheet

ROOT = Path(__file__).parent.parent
EVIDENCE = ROOT / "benchmarks" / "evidence"
H100, H200 = "kernel-nvidia-h100-80gb-hbm3.json", "kernel-nvidia-h200.json"
TABLES = [("README.md", 0, H200), ("docs/kernel.md", 0, H100), ("docs/kernel.md", 1, H200)]  # which of a page's
FIRST_HEAD = "blocks x positions x vocabulary, logits"
TIMES = {
    "fused, GPU": ("fused", "device_us"),
    "floor, GPU": ("floor", "device_us"),
    "fused, in a graph": ("fused", "graph_us"),
    "floor, in a graph": ("floor", "graph_us"),
    "fused, call to result": ("fused", "call_us"),
    "fused, replayed": ("fused", "replay_us"),
    "empty kernel, replayed": ("empty kernel", "replay_us"),
}
PEERS = {  # by their names in the records; of files that were brought along, by that of the function
    "x reference": ("reference",),
    "x formula": ("formula, block by block",),
    "x compiled": ("formula, torch.compile",),
    "x PR 18810": ("pr18810", "pr_18810"),
    "x vLLM plug-in": ("vllm_plugin",),
    "x SGLang": ("sglang_low_confidence",),
}
STRONGEST = {"x strongest peer": "call_us", "x strongest peer, replayed": "replay_us"}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _published(page: str, table: int) -> list[tuple[list[str], list[str]]]:
    """The heads and the cells of every row of one of the kernel's tables."""
    lines = (ROOT / page).read_text().replace("\N{MULTIPLICATION SIGN}", "x").splitlines()
    start = [n for n, line in enumerate(lines) if line.startswith(f"| {FIRST_HEAD} |")][table]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append((_cells(lines[start]), _cells(line)))
    return rows


def _workload(title: str) -> str:
    """The name of the workload that a row's first cell describes."""
    shape, _, rest = title.partition(", ")
    dtype, *more = rest.split(", ")
    percent = next((part.split()[0] for part in more if "masked" in part), "100").replace("nothing", "0")
    return f"{shape.replace(' x ', 'x')}-{dtype}-{percent}" + ("-warm" if "warm" in more else "")


def _speedup(sheet: Sheet, head: str, clock: str) -> float | None:
    names = [name for name in sheet.table.implementations if {name, name.rpartition(".")[2]} & set(PEERS[head])]
    return sheet.speedup("fused", names[0], clock) if names else None


def _measured(sheet: Sheet, heads: list[str], column: int) -> float | None:
    head = heads[column]
    if head in TIMES:
        return sheet.median_us(*TIMES[head])
    if head in STRONGEST:
        found = [_speedup(sheet, peer, STRONGEST[head]) for peer in PEERS]
        return min(factor for factor in found if factor is not None)
    if head == "x `add_`, host":
        return sheet.speedup("x.add_(1)", "fused", "host_us")
    # Beside the formula once more, behind the time from call to result, on that clock.
    clock = "call_us" if "fused, call to result" in heads[:column] else "device_us"
    return _speedup(sheet, head, clock)


@pytest.mark.parametrize(("page", "table", "record"), TABLES)
def test_every_cell_is_what_the_record_holds(page: str, table: int, record: str) -> None:
    measured_on = results.load(results.KernelTable, EVIDENCE / record)
    rows = _published(page, table)
    assert len(rows) >= 15
    for heads, cells in rows:
        assert len(cells) == len(heads)
        sheet = Sheet(measured_on, _workload(cells[0]))
        for column in range(1, len(heads)):
            shown, measured = cells[column].rstrip("x").replace(",", ""), _measured(sheet, heads, column)
            where = f"{page}: {cells[0]}, {heads[column]}: {cells[column]!r}, measured {measured}"
            if not shown:
                assert measured is None, where
                continue
            assert measured is not None, where
            assert re.fullmatch(r"\d+(\.\d+)?", shown), where
            decimals = len(shown.partition(".")[2])
            # A time is shown with three figures, of which those at the end may be zeros that are left out.
            unit = 10.0**-decimals if decimals or heads[column] not in TIMES else 1.0
            assert abs(float(shown) - measured) <= 0.5001 * unit, where
