"""What the compiler makes of the kernel, per architecture, without a GPU: the memory model and the wide loads."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import triton

from benchmarks import __main__ as cli
from benchmarks import codegen, machine_code, results, session
from benchmarks.measure import sides
from tests.compile_kernel import ROOT, compiler

ARCHITECTURES = ["sm_80", "sm_90", "sm_100", "sm_120"]


PLAIN, FULL = (f"float16, rows on 16 bytes, {options} options" for options in ("no", "all"))
LONG = "bfloat16, blocks of 300, many rows, all options"
IN_PIECES = "bfloat16, blocks of 256, few rows, all options"  # of 64 positions, which are combined one after the other
MANY_16, MANY_32 = (f"{dtype}, many rows, no options" for dtype in ("bfloat16", "float32"))


_opened = ExitStack()


@functools.cache
def _compiler_of_the_package() -> Callable[[str, str], dict]:
    return _opened.enter_context(compiler(ROOT))


def teardown_module() -> None:
    _opened.close()


@functools.cache
def compiled(arch: str, variant: str = PLAIN, package: Path = ROOT) -> dict:
    if package == ROOT:
        return _compiler_of_the_package()(arch, variant)
    with compiler(package) as compile_:
        return compile_(arch, variant)


def faults_of_publishing(code: dict, shares_a_thread: int = 1, parts_a_thread: int = 0) -> list[str]:
    """What the last program's waiting relies on and the machine code does not have.

    Results are 64-bit words that are stored at once, and polled past the L1 cache; so is the number of programs that
    had nothing to do. So is what the parts of a long block have come to.
    """
    words = 4 if parts_a_thread else 2
    waited_for = shares_a_thread + parts_a_thread
    ptx = code["ptx"].splitlines()
    faults = []
    published = [n for n, line in enumerate(ptx) if re.search(r"atom\.\S*relaxed\.\S*exch\.b64", line)]
    if len(published) != words:
        faults.append(f"{len(published)} atomic stores of 64 bits, not {words}")
    polled = [n for n, line in enumerate(ptx) if "ld.relaxed.gpu.global.b64" in line]
    heard = [sum(n < poll for n in published) for poll in polled]  # of stores before each poll
    if heard != [2] * 2 * shares_a_thread + [4] * 2 * parts_a_thread:
        faults.append("results are not polled by relaxed loads of 64 bits, after all is published")
    if sum("ld.relaxed.gpu.global.u32 counted" in line for line in ptx) != waited_for:
        faults.append("the count of idle programs is not polled by relaxed loads")
    return faults


def faults_of_depending(sass: list[str], words_of_parts: int = 0) -> list[str]:
    """What a dependent launch relies on and the machine code does not have: nothing is touched before the launch before
    has ended, and the one after begins when all is published, but for what parts have come to: by then every program
    runs."""
    waits, starts, touches, publishes = (
        [n for n, line in enumerate(sass) if re.search(rf"\b({names})\b", line)]
        for names in ("ACQBULK", "PREEXIT", r"(LDG|LDGSTS|LD|STG|ST|ATOMG|ATOM|RED)\.E", r"(ATOMG|ATOM|RED)\.E")
    )
    faults = []
    if len(waits) != 1 or waits[0] > touches[0]:
        faults.append("memory is touched before the launch before has ended")
    if len(starts) != 1 or sum(start < publish for start in starts for publish in publishes) != words_of_parts:
        faults.append("the launch after may begin before all is published")
    return faults


@pytest.mark.parametrize(
    ("variant", "shares_a_thread", "parts_a_thread"),
    [(PLAIN, 1, 0), (FULL, 1, 0), (LONG, 32 * 8 // 128, 2), (IN_PIECES, 256 * 8 // 256, 0)],
)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_results_are_published_and_polled_as_whole_words(arch, variant, shares_a_thread, parts_a_thread):
    assert faults_of_publishing(compiled(arch, variant), shares_a_thread, parts_a_thread) == []


@pytest.fixture
def changed(tmp_path):
    """The package with some text of the Triton backend's replaced, which stands in it once."""

    def change(old, new):
        sides.copy_package(tmp_path)
        sources = sorted((tmp_path / "dllm_kernels" / "gpu").glob("*.py"))
        assert sum(source.read_text().count(old) for source in sources) == 1
        for source in sources:
            source.write_text(source.read_text().replace(old, new))
        return tmp_path

    return change


def test_other_ways_to_publish_are_seen(changed):
    word = 'tl.atomic_xchg(results_ptr + program, _word(share_maximum, share_sum), sem="relaxed")'
    stored = changed(word, word.replace("atomic_xchg", "store").replace(', sem="relaxed"', ""))
    assert faults_of_publishing(compiled("sm_90", package=stored)) == [
        "1 atomic stores of 64 bits, not 2",
        "results are not polled by relaxed loads of 64 bits, after all is published",
    ]


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("b64 $1", "results are not polled by relaxed loads of 64 bits, after all is published"),
        ("u32 counted", "the count of idle programs is not polled by relaxed loads"),
    ],
)
def test_a_poll_that_the_cache_may_answer_is_seen(changed, word, fault):
    cached = changed(f"ld.relaxed.gpu.global.{word}", f"ld.global.{word}")
    assert faults_of_publishing(compiled("sm_90", package=cached)) == [fault]


@pytest.mark.parametrize("variant", [PLAIN, FULL, LONG, MANY_16])
@pytest.mark.parametrize("arch", ARCHITECTURES[1:])
def test_a_launch_that_depends_on_the_one_before_touches_nothing_of_it(arch, variant):
    assert faults_of_depending(compiled(arch, variant)["sass"], words_of_parts=2 if variant == LONG else 0) == []


WAIT = "whose results are read from here on\n        tl.extra.cuda.gdc_wait()"


@pytest.mark.parametrize(
    ("instead", "fault"),
    [
        ("pass", "memory is touched before the launch before has ended"),
        ("tl.extra.cuda.gdc_launch_dependents()", "the launch after may begin before all is published"),
    ],
)
def test_a_launch_that_does_not_wait_or_starts_the_next_early_is_seen(changed, instead, fault):
    package = changed(WAIT, WAIT.replace("tl.extra.cuda.gdc_wait()", instead))
    code = compiled("sm_90", package=package)
    assert fault in faults_of_depending(code["sass"])
    before, now = (_codegen({PLAIN: machine_code.Code(**one["code"])}) for one in (compiled("sm_90"), code))
    assert any("memory is touched before the launch before has ended" in told for told in codegen.faults(before, now))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_are_read_by_16_bytes(arch, dtype):
    sass = compiled(arch, f"{dtype}, rows on 16 bytes, no options")["sass"]
    wide = [line for line in sass if re.search(r"LDG\.E\S*\.128", line)]
    narrow = [line for line in sass if re.search(r"LDG\.E(\.\S+)?\.(U16|U8|S16)\b", line)]
    assert len(wide) >= 4
    assert len(narrow) <= 1  # one vector is looked at again, a logit a thread


def _spilled(sass: list[str]) -> list[str]:
    return [line for line in sass if re.match(r"(@!?U?P\d+ )?(STL|LDL)\b", line)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_spills_without_options(arch, dtype):
    assert _spilled(compiled(arch, f"{dtype}, rows on 16 bytes, no options")["sass"]) == []


ANY_BYTE = tuple(
    f"{variant}, all options"
    for variant in ("float16, rows on any byte", "bfloat16, rows on any byte", "bfloat16, edits, rows on any byte")
)
LONG_ANY_BYTE = "float16, blocks of 256, few rows on any byte, all options"
SPILLING = {
    # One register is put aside before the loop over tiles and taken back after it: two instructions a program.
    **{
        (arch, f"float32, {variant}"): 2
        for arch in ("sm_80", "sm_90", "sm_100")
        for variant in ("rows on 16 bytes, all options", "edits, all options", "as SGLang")
    },
    ("sm_80", "float32, blocks of 256, few rows, all options"): 2,
    **{(arch, "bfloat16, edits, blocks of 256, no other options"): 2 for arch in ("sm_90", "sm_100")},
    # Few rows with ids excluded, which are held to 64 registers.
    **{(arch, variant): 4 for arch in ("sm_80", "sm_90", "sm_100") for variant in ANY_BYTE},
    **dict(zip((("sm_120", variant) for variant in ANY_BYTE), (33, 33, 19), strict=True)),
    **{(arch, LONG_ANY_BYTE): spills for arch, spills in (("sm_80", 8), ("sm_90", 16), ("sm_100", 16), ("sm_120", 58))},
    ("sm_120", "float32, rows on any byte, all options"): 14,
    ("sm_120", "bfloat16, edits, blocks of 300, all options"): 5,
    # Where ptxas spills by itself.
    ("sm_120", "bfloat16, blocks of 300, many rows on any byte, all options"): 4,
}


def test_nothing_else_spills():
    """In what was reviewed, which `make codegen` holds kernels against: no spill is accepted among other changes."""
    reviewed = results.load(codegen.Codegen, session.BASELINES / "codegen" / "triton-3-6-0.json")
    spilling = {
        (arch, name): code.spills
        for arch, kernels in reviewed.kernels.items()
        for name, code in kernels.items()
        if code.spills or code.stack_bytes
    }
    assert spilling == SPILLING


# Held to 64 registers they are 13 to 17 % faster on an H200 all the same (docs/kernel.md); on sm_120 nothing was
# measured.
SPILLING_IN_LOOPS = {
    ("sm_90", LONG_ANY_BYTE): 2,
    ("sm_100", LONG_ANY_BYTE): 2,
    ("sm_120", LONG_ANY_BYTE): 6,
    ("sm_120", "bfloat16, edits, blocks of 300, all options"): 3,
}


@pytest.mark.parametrize(("arch", "variant"), SPILLING)
def test_loops_over_tiles_do_not_spill(arch, variant):
    sass = compiled(arch, variant)["sass"]
    assert _spilled(sass)
    over_tiles = [loop for loop in _loops(sass) if _wide_loads(loop)]
    assert over_tiles
    assert sum(len(_spilled(loop)) for loop in over_tiles) == SPILLING_IN_LOOPS.get((arch, variant), 0)


@pytest.mark.parametrize(
    "variant",
    [PLAIN, "float32, rows on 16 bytes, no options", MANY_16],
)
def test_the_next_tile_is_asked_for_early_in_the_loop(variant):
    """Where ptxas leaves it to itself, at 70 to 80 % of the loop: 1.7 % more time at 128 blocks on an H200."""
    loop = next(loop for loop in _loops(compiled("sm_90", variant)["sass"]) if _wide_loads(loop))
    assert _wide_loads(loop)[0] < 0.4 * len(loop)


def _wide_loads(sass: list[str]) -> list[int]:
    """Into registers, or into shared memory."""
    return [n for n, line in enumerate(sass) if re.search(r"LDG(STS)?\.E\S*\.128", line)]


def _layouts(ttgir: str, asm: str) -> set[str]:
    """Which thread has which elements of the results of inline assembly with this text."""
    names = {re.findall(r"#[\w.]+", line.split("loc(")[0])[-1] for line in ttgir.splitlines() if asm in line}
    return {re.search(rf"^{name} = (.*)$", ttgir, re.MULTILINE)[1] for name in names}


def faults_of_copying(code: dict, in_one: int) -> list[str]:
    """What reading tiles through shared memory relies on and the code does not have: before a tile is read, three more
    were asked for, a group each, and all but those three were waited for. The loop is there `in_one` tiles a turn and,
    if that is more than one, again for what is left. Threads read what they have copied themselves, and no read
    overtakes a wait in the machine code."""
    names = ("cp.async.cg.shared.global", "cp.async.commit_group", "cp.async.wait_group 3", "ld.shared.v4.b32")
    lines = code["ptx"].splitlines()
    done = "".join(str(n) for line in lines for n, name in enumerate(names) if name in line)
    expected = rf"(001){{3}}(001233+){{{in_one + (in_one > 1)}}}"  # a read may be there twice
    faults = [] if re.fullmatch(expected, done) else [f"copies, ends of groups, waits and reads come as {done}"]
    warps = code["code"]["warps"]
    layout = "#ttg.blocked<{{sizePerThread = [{}], threadsPerWarp = [{}], warpsPerCTA = [{}], order = [{}]}}>"
    if _layouts(code["ttgir"], "cp.async.cg") != {layout.format(1, 32, warps, 0)}:
        faults.append("threads copy to places that are not their own")
    if _layouts(code["ttgir"], "ld.shared") != {layout.format("1, 4", "32, 1", f"{warps}, 1", "1, 0")}:
        faults.append("threads read what others have copied")
    order = re.findall(r"\bDEPBAR\.LE SB0, 0x3|\bLDS\.128", "\n".join(code["sass"]))
    if order[:3] != ["DEPBAR.LE SB0, 0x3", "LDS.128", "LDS.128"]:
        faults.append("a tile is read before it was waited for")
    return faults


@pytest.mark.parametrize(
    ("variant", "in_one"), [(MANY_16, 2), (MANY_32, 2), ("float32, many rows, all options", 1), (LONG, 1)]
)
@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
def test_copied_tiles_are_waited_for(arch, variant, in_one):
    assert faults_of_copying(compiled(arch, variant), in_one) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cp.async.wait_group {STAGES.value - 1};", "cp.async.wait_group {STAGES.value};"),
        ("    _run(_WAIT)\n", ""),
        ("    _run(_END_GROUP)\n", ""),
        ("for tile in tl.static_range(STAGES - 1)", "for tile in tl.static_range(STAGES - 2)"),
        (
            "anchor = _load_vector(row_ptr + first, V < 0, ALIGNED, THREADS)",
            "anchor = tl.full((THREADS, 4), 0, tl.int32)",
        ),
    ],
)
def test_copies_that_are_not_waited_for_are_seen(changed, old, new):
    assert faults_of_copying(compiled("sm_90", MANY_32, package=changed(old, new)), in_one=2)


@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
def test_nothing_is_copied_where_shared_memory_is_short_or_nobody_measured(arch):
    assert "cp.async" not in compiled(arch, MANY_16)["ptx"]


@pytest.mark.parametrize(("dtype", "tiles"), [("float16", 1), ("bfloat16", 1), ("float32", 2)])
def test_few_rows_have_tiles_on_their_way_before_the_loop(dtype, tiles):
    """Two vectors a thread each; of the first of them another, should the share be another than was thought."""
    sass = compiled("sm_90", f"{dtype}, rows on 16 bytes, no options")["sass"]
    loop = next(n for n, line in enumerate(sass) if "MUFU.EX2" in line)
    starts = [
        int(re.search(r"0x([0-9a-f]+)", line)[1], 16) // 16 for line in sass[loop:] if re.search(r"\bBRA\b", line)
    ]
    begin = max(start for start in starts if start <= loop)
    assert len([n for n in _wide_loads(sass) if n < begin]) == 2 * (tiles + 1)


@pytest.mark.parametrize("variant", [PLAIN, "bfloat16, rows on any byte, no options", MANY_16])
def test_maxima_of_16_bits_are_taken_in_pairs(variant):
    """Of the 16 logits that a thread has of a tile one by one they were an eighth of the loop's instructions."""
    loop = next(loop for loop in _loops(compiled("sm_90", variant)["sass"]) if _wide_loads(loop))
    tiles = sum("MUFU.EX2" in line for line in loop) / 17  # sixteen logits, and what rescales the sum
    assert tiles in (1, 2, 4)
    assert sum("FMNMX" in line for line in loop) <= 6 * tiles
    assert sum("HMNMX" in line for line in loop) >= 4 * tiles


def _loops(sass: list[str]) -> Iterator[list[str]]:
    """From the target of every branch that goes back; an instruction takes 16 bytes."""
    for n, line in enumerate(sass):
        branch = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", line)
        if branch and int(branch[1], 16) <= 16 * n:
            yield sass[int(branch[1], 16) // 16 : n + 1]


@pytest.mark.parametrize("variant", [FULL, IN_PIECES])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_copies_of_a_row_are_rounded_alike(arch, variant):
    """Where several threads hold a row, a product merged into a sum between them would differ by thread."""
    sass = compiled(arch, variant)["sass"]
    published = max(n for n, line in enumerate(sass) if "ATOMG" in line)
    assert any("SHFL" in line for line in sass[published:])
    assert [line for line in sass[published:] if "FFMA" in line] == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_slots_go_on_in_one_small_kernel(arch):
    code = compiled(arch, codegen.SLOTS)["code"]
    assert (code["spills"], code["warps"], code["shared_bytes"]) == (0, 1, 0)


def test_absent_options_are_compiled_out():
    plain, full = (compiled("sm_90", variant)["ptx"] for variant in (PLAIN, FULL))
    assert "st.global.b8" in full
    assert "st.global.b8" not in plain
    assert len(plain) < 0.9 * len(full)


def test_the_figures_are_those_of_the_machine_code():
    """16 bytes a load, also of rows that start on any byte but for their last tile; two words published."""
    aligned, unaligned = (
        compiled("sm_90", f"bfloat16, rows on {where}, no options") for where in ("16 bytes", "any byte")
    )
    code = aligned["code"]
    assert code["loads_16_bytes"] == sum("LDG.E.128" in line for line in aligned["sass"]) >= 4
    assert code["loads_narrow"] <= 1
    assert code["atomics"] == 2
    assert (code["stack_bytes"], code["spills"]) == (0, 0)
    assert 32 <= code["registers"] <= 128
    assert code["warps"] == 8
    assert code["instructions"] == len(aligned["sass"])
    assert code["barriers"] == sum(" BAR." in f" {line}" for line in aligned["sass"])
    assert unaligned["code"]["loads_16_bytes"] >= code["loads_16_bytes"] - 2  # of one tile: two in the other's loop
    assert unaligned["code"]["loads_narrow"] >= 32


def _code(**changes):
    return machine_code.Code(**{**dict.fromkeys(machine_code.WHAT, 4), "registers": 48, "warps": 8, **changes})


def test_of_several_kernels_the_largest_and_the_sum():
    both = machine_code.together([_code(registers=32, barriers=2), _code(registers=64, barriers=3)])
    assert (both.registers, both.warps, both.shared_bytes) == (64, 8, 4)
    assert (both.barriers, both.instructions, both.loads_8_bytes) == (5, 8, 8)


def test_what_is_no_machine_code_is_an_error(tmp_path):
    (tmp_path / "no.cubin").write_text("no")
    with pytest.raises(RuntimeError, match="no.cubin: cuobjdump failed"):
        machine_code.read(tmp_path / "no.cubin")


@pytest.mark.parametrize(
    ("registers", "warps", "blocks"),
    # As CUDA's occupancy calculator has it for sm_90: 256 registers at a time a warp, 64 warps and 32 blocks at most.
    [(32, 8, 8), (33, 8, 6), (48, 8, 5), (49, 8, 4), (128, 8, 2), (255, 8, 1), (32, 1, 32), (16, 32, 2)],
)
def test_blocks_that_fit_on_a_processor(registers, warps, blocks):
    assert codegen.resident_blocks("sm_90", _code(registers=registers, warps=warps)) == blocks


@pytest.mark.parametrize(("arch", "shared_bytes", "blocks"), [("sm_90", 75 * 1024, 3), ("sm_120", 49 * 1024, 2)])
def test_shared_memory_keeps_blocks_from_a_processor(arch, shared_bytes, blocks):
    assert codegen.resident_blocks(arch, _code(registers=32, shared_bytes=shared_bytes)) == blocks


# What is planted, in which variant it shows, and what the fault says.
SHORT = "bfloat16, rows on 16 bytes, no options"
PLANTED = {
    "a spill": ("num_warps=plan.warps,", "num_warps=plan.warps, maxnreg=32,", SHORT, "registers spill"),
    "a lost vector load": ("alignment = width if", "alignment = 2 if", SHORT, "a vector load was lost"),
    "a lost barrier": (
        "tl.debug_barrier()  # several threads may hold", "#", SHORT, "a barrier is gone: barriers of its own 3 to 2",
    ),
    "a lost barrier before words are cleared": (
        "tl.debug_barrier()  # several threads may wait", "#", IN_PIECES,
        "a barrier is gone: barriers of its own 6 to 2",
    ),
    "a lost barrier of long blocks": (
        "tl.debug_barrier()  # another thread may have", "#", LONG, "a barrier is gone: barriers of its own 5 to 4",
    ),
    "a lost barrier of parts": (
        "tl.debug_barrier()  # as for the shares", "#", LONG, "a barrier is gone: barriers of its own 5 to 4",
    ),
    "registers across a step": (
        "loop_unroll_factor=2 if BY_TWO", "loop_unroll_factor=8 if BY_TWO", SHORT,
        "registers 48 to 52, so 32 warps fit on a processor instead of 40",
    ),
    "registers that nothing holds down": (
        'options["maxnreg"] = plan.max_registers', "pass", "float16, rows on any byte, all options",
        "so 16 warps fit on a processor instead of 32",
    ),
    "fewer warps": (
        "=4, vectors=2, early=False", "=16, vectors=2, early=False", "float16, many rows on any byte, all options",
        "so 16 warps fit on a processor instead of 24",
    ),
}  # fmt: skip


def _codegen(kernels):
    return codegen.Codegen("3.6.0", "2026-11-23", "", {"sm_90": kernels})


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_fault_is_seen(planted, changed):
    old, new, variant, message = PLANTED[planted]
    package = changed(old, new)
    before, now = (
        _codegen({variant: machine_code.Code(**compiled("sm_90", variant, **more)["code"])})
        for more in ({}, {"package": package})
    )
    assert codegen.faults(before, before) == []
    told = codegen.faults(before, now)
    assert any(message in fault for fault in told), told
    assert all(fault.startswith(f"sm_90, {variant}: ") for fault in told)


def test_a_kernel_that_is_missing_or_new_is_a_fault():
    one, both = _codegen({"a": _code()}), _codegen({"a": _code(), "b": _code()})
    assert codegen.faults(both, one) == ["sm_90, b: reviewed, and no longer there"]
    assert codegen.faults(one, both) == ["sm_90, b: new, and not reviewed"]
    assert codegen.faults(dataclasses.replace(one, kernels={}), one) == ["sm_90, a: new, and not reviewed"]


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        # Registers and warps a block.
        ((48, 8), (49, 8), ["registers 48 to 49, so 32 warps fit on a processor instead of 40"]),
        ((55, 4), (52, 8), ["registers 55 to 52, warps a block 4 to 8, so 32 warps fit on a processor instead of 36"]),
        ((55, 4), (55, 8), ["warps a block 4 to 8, so 32 warps fit on a processor instead of 36"]),
        ((55, 4), (48, 8), []),
        ((48, 8), (55, 4), ["registers 48 to 55, warps a block 8 to 4, so 36 warps fit on a processor instead of 40"]),
    ],
)
def test_fewer_warps_on_a_processor_are_a_fault_and_fewer_blocks_are_none(before, now, told):
    before, now = (_codegen({"a": _code(registers=registers, warps=warps)}) for registers, warps in (before, now))
    assert codegen.faults(before, now) == [f"sm_90, a: {fault}" for fault in told]


@pytest.mark.parametrize(
    ("figure", "before", "now", "told"),
    [
        ("atomics", 3, 2, "an atomic is gone: atomics 3 to 2"),
        ("launch_waits", 1, 0, "memory is touched before the launch before has ended: "
         "waits for the launch before 1 to 0"),
        ("launch_starts", 1, 0, "the launch after does not begin before this one has ended: "
         "starts of the launch after 1 to 0"),
        ("shared_bytes", 256, 200_000, "bytes of shared memory 256 to 200000, "
         "so 8 warps fit on a processor instead of 40"),
    ],
)  # fmt: skip
def test_what_became_worse_is_told(figure, before, now, told):
    before, now = (_codegen({"a": _code(**{figure: value})}) for value in (before, now))
    assert codegen.faults(before, now) == [f"sm_90, a: {told}"]


def test_better_figures_are_no_fault():
    better = _code(registers=40, spills=0, stack_bytes=0, loads_16_bytes=8, loads_narrow=0, instructions=1)
    assert codegen.faults(_codegen({"a": _code()}), _codegen({"a": better})) == []


def test_what_is_reviewed_is_what_is_compiled(monkeypatch, tmp_path, capsys):
    """The command, over the one architecture that takes seconds: accepted, held against itself, then against worse."""
    monkeypatch.setattr(session, "BASELINES", tmp_path)
    monkeypatch.setattr(codegen, "_compile_everywhere", lambda: {"sm_90": {"a": _code()}})
    assert cli.main(["codegen"]) == 2
    assert "nothing reviewed for Triton" in capsys.readouterr().err
    assert cli.main(["codegen", "--accept"]) == 2
    assert cli.main(["codegen", "--accept", "--reason", "first"]) == 0
    assert cli.main(["codegen"]) == 0
    monkeypatch.setattr(codegen, "_compile_everywhere", lambda: {"sm_90": {"a": _code(spills=9)}})
    capsys.readouterr()
    assert cli.main(["codegen", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"] == ["sm_90, a: registers spill: spills 4 to 9"]


def test_under_the_interpreter_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET: expected it to be off"):
        codegen.compiled("sm_90", lambda: None)
