"""What the compiler makes of the kernel, per architecture, without a GPU: the memory model and the wide loads."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import codegen

SCRIPT = Path(__file__).with_name("compile_kernel.py")
ARCHITECTURES = [80, 90, 100, 120]


@functools.cache
def compiled(*arguments: str) -> dict:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(SCRIPT.parent.parent)
    command = [sys.executable, str(SCRIPT), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def barrier_orders_the_ticket(code: dict) -> bool:
    """Whether a barrier of all threads stands between the last store of partial results and the ticket.

    It must be the kernel's own, in Triton's IR: in PTX there may be another, which Triton puts there for its shared
    memory and which goes away with the reductions that need it.
    """
    return _barrier_between(
        code["ttir"],
        ticket=r"tt\.atomic_rmw add, acq_rel, gpu",
        store=r"tt\.store",
        barrier=r"gpu\.barrier|ttg\.barrier",
    ) and _barrier_between(
        code["ptx"], ticket=r"atom\.global\.gpu\.acq_rel\.add", store=r"st\.global", barrier=r"bar\.sync|barrier\.sync"
    )


def _barrier_between(text: str, *, ticket: str, store: str, barrier: str) -> bool:
    lines = text.splitlines()
    (place,) = [n for n, line in enumerate(lines) if re.search(ticket, line)]
    stores = [n for n in range(place) if re.search(store, lines[n])]
    assert len(stores) >= 4, "the four partial results are stored before the ticket"
    return any(re.search(barrier, line) for line in lines[stores[-1] : place])


@pytest.mark.parametrize("options", [(), ("--options",)], ids=["plain", "all options"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_barrier_stands_before_the_ticket(arch, options):
    assert barrier_orders_the_ticket(compiled("--arch", str(arch), *options))


def test_its_absence_is_seen():
    assert not barrier_orders_the_ticket(compiled("--arch", "90", "--without-barrier"))


def test_machine_code_fences_the_ticket():
    """On Hopper: stores, barrier of the block, membar at GPU scope, atomic, invalidation of L1 before the loads."""
    sass = compiled("--arch", "90")["sass"]
    (ticket,) = [n for n, line in enumerate(sass) if "ATOMG" in line or "ATOM.E" in line]
    before = sass[:ticket]
    last_store = max(n for n, line in enumerate(before) if "STG" in line)
    between = " ".join(before[last_store:])
    assert re.search(r"BAR\.SYNC.*MEMBAR", between), between
    assert "STRONG.GPU" in sass[ticket]
    after = sass[ticket:]
    first_partial = next(n for n, line in enumerate(after) if "LDG" in line)
    assert any("CCTL.IVALL" in line for line in after[:first_partial])


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_are_read_by_16_bytes(arch, dtype):
    sass = compiled("--arch", str(arch), "--dtype", dtype)["sass"]
    wide = [line for line in sass if re.search(r"LDG\.E\S*\.128", line)]
    narrow = [line for line in sass if re.search(r"LDG\.E(\.\S+)?\.(U16|U8|S16)\b", line)]
    assert len(wide) >= 4
    assert not narrow


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("arch", [80, 90, 100])  # on sm_120 ptxas spills two registers of the 16-bit kernels
def test_nothing_spills(arch, dtype):
    sass = compiled("--arch", str(arch), "--dtype", dtype)["sass"]
    spilled = [line for line in sass if re.match(r"(@!?U?P\d+ )?(STL|LDL)\b", line)]
    assert not spilled, spilled[:3]


@pytest.mark.parametrize("arch", [80, 90])
def test_copies_of_a_row_are_rounded_alike(arch):
    """Where several threads hold a row, a product merged into a sum between them would differ by thread."""
    sass = compiled("--arch", str(arch), "--options")["sass"]
    (ticket,) = [n for n, line in enumerate(sass) if "ATOMG" in line]
    assert any("SHFL" in line for line in sass[ticket:])
    assert [line for line in sass[ticket:] if "FFMA" in line] == []


def test_absent_options_are_compiled_out():
    plain, full = (compiled("--arch", "90", *options)["ptx"] for options in ((), ("--options",)))
    assert "st.global.b8" in full
    assert "st.global.b8" not in plain
    assert len(plain) < 0.9 * len(full)


def test_the_figures_are_those_of_the_machine_code():
    """16 bytes a load, one ticket, no stack; with rows taken for unaligned, two bytes a load and many more of them."""
    aligned, unaligned = (compiled("--arch", "90", "--dtype", "bf16", *more) for more in ((), ("--unaligned",)))
    code = aligned["code"]
    assert code["widest_load_bytes"] == 16
    assert code["atomics"] == 1
    assert code["stack_bytes"] == 0
    assert 32 <= code["registers"] <= 128
    assert code["instructions"] == len(aligned["sass"])
    assert code["barriers"] == sum(" BAR." in f" {line}" for line in aligned["sass"])
    assert unaligned["code"]["global_loads"] > 2 * code["global_loads"]


def test_of_several_kernels_the_largest_and_the_sum():
    small, large = codegen.Code(32, 0, 100, 4, 16, 2, 0), codegen.Code(64, 8, 50, 2, 4, 1, 1)
    assert codegen.together([small, large]) == codegen.Code(64, 8, 150, 6, 16, 3, 1)


def test_what_is_no_machine_code_is_an_error(tmp_path):
    (tmp_path / "no.cubin").write_text("no")
    with pytest.raises(RuntimeError, match="no.cubin: cuobjdump failed"):
        codegen.read(tmp_path / "no.cubin")
