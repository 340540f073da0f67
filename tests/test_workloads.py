"""Workloads: names, selection, and inputs that are seeded, as masked as they say, and realistic."""

from __future__ import annotations

import pytest
import torch

from benchmarks import workloads
from benchmarks.workloads import QUICK, WORKLOADS, Workload, make_inputs, parse

SMALL = Workload(3, 32, 2000, "bf16", 50)


def test_the_names_that_others_refer_to():
    assert {
        "1x32x128000-fp16-100", "1x32x157184-bf16-50", "4x32x157184-bf16-6", "32x32x157184-bf16-100",
        "128x32x157184-bf16-100", "1x32x157184-fp32-100", "1x32x126464-bf16-100", "8x4x151936-bf16-100",
        "1x32x50257-fp16-100", "1x32x128000-fp16-100-warm",
    } <= set(WORKLOADS)  # fmt: skip
    assert len(QUICK) == 4
    assert set(QUICK) <= set(WORKLOADS)


def test_selection():
    here, left_out = workloads.select(None, gpu=False)
    cold = [w for w in left_out if isinstance(w, Workload) and not w.warm]
    assert {w.batch for w in cold} == {32, 128}
    assert not any(w.warm or w.batch >= 32 for w in here)
    assert [w.name for w in here + left_out if w not in here] == [w.name for w in left_out]
    assert workloads.select(None, gpu=True)[1] == []
    assert [w.name for w in workloads.select(None, gpu=False, quick=True)[0]] == list(QUICK)
    assert workloads.select(["32x32x157184-bf16-100"], gpu=False)[0][0].batch == 32
    assert len(workloads.select([QUICK[0], QUICK[0]], gpu=False)[0]) == 1  # or its samples would be there twice
    with pytest.raises(ValueError, match="workload: unknown 1x1x1; known are 1x32x128000"):
        workloads.select(["1x1x1"], gpu=False)


def test_workloads_of_the_same_kernels():
    kinds = {}
    for workload in WORKLOADS.values():
        kinds.setdefault(workloads.kernels_of(workload), []).append(workload.name)
    assert ["1x32x157184-fp32-100"] in kinds.values()
    assert ["1x32x50257-fp16-100"] in kinds.values(), "rows that start anywhere"
    assert ["8x4x151936-bf16-100"] in kinds.values(), "blocks of four"
    together = next(names for names in kinds.values() if "1x32x157184-bf16-50" in names)
    assert {"4x32x157184-bf16-6", "1x32x126464-bf16-100", "1x32x157184-bf16-100-warm"} <= set(together)
    assert not any(name.startswith(("128x", "32x", "sglang", "decode")) for name in together)


def test_the_overview_has_every_number_of_blocks_dtype_and_share():
    shown = [workloads.parse(name) for name in workloads.OVERVIEW]
    assert len(set(shown)) == len(shown)
    assert {w.batch for w in shown if w.dtype == "bf16" and w.masked_percent == 100} == {2**n for n in range(8)}
    assert {w.dtype for w in shown if w.batch == 1} == set(workloads.BYTES)
    assert {w.masked_percent for w in shown} == {100, 50, 6, 0}
    assert any(w.vocab * workloads.BYTES[w.dtype] % 16 for w in shown), "rows that start anywhere"


def test_inputs_are_seeded_masked_and_realistic():
    (logits, other), ids = make_inputs(SMALL, "cpu", seed=1, copies=2)
    (again, _), ids_again = make_inputs(SMALL, "cpu", seed=1, copies=2)
    assert logits.equal(again)
    assert ids.equal(ids_again)
    assert not logits.equal(other)
    assert not logits.equal(make_inputs(SMALL, "cpu", seed=2)[0][0])
    assert logits.shape == (3, 32, 2000)
    assert logits.dtype == torch.bfloat16
    assert (ids == SMALL.mask_id).sum(dim=-1).tolist() == [16, 16, 16]
    top = torch.softmax(logits.float(), -1).amax(-1)
    confident = (top > workloads.THRESHOLD).float().mean()
    assert 0.2 < confident < 0.6
    assert ((top > 0.05) & (top < 0.9)).float().mean() > 0.3


def test_at_least_one_position_is_masked_unless_none_is_asked_for():
    assert WORKLOADS["1x32x157184-bf16-6"].masked_rows == 2
    assert Workload(1, 4, 100, "fp16", 6).masked_rows == 1
    none = parse("1x4x100-fp16-0")
    assert (none.masked_rows, none.bytes_read) == (0, 0)
    assert not (make_inputs(none, "cpu", seed=1)[1] == none.mask_id).any()


def test_bytes_are_those_of_the_masked_rows():
    assert SMALL.bytes_read == 3 * 16 * 2000 * 2
    assert WORKLOADS["1x32x157184-fp32-100"].bytes_read == 32 * 157184 * 4


@pytest.mark.parametrize(
    "name",
    [
        "2x16x32000-bf16-50",
        "1x32x128000-fp16-0-warm",
        "1x1x1-fp32-1-warm",
        "128x32x157184-fp16-100",
        *workloads.operations(),
    ],
)
def test_a_name_is_read_as_it_is_written(name):
    assert parse(name).name == name
    assert parse(name) == WORKLOADS.get(name, parse(name))


def test_a_name_says_what_it_is_of():
    assert parse("2x16x32000-bf16-50-warm") == Workload(2, 16, 32000, "bf16", 50, warm=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "expected blocks x positions x vocabulary"),
        ("2x16x32000", "got '2x16x32000'"),
        ("2x16-bf16-50", "expected blocks x positions x vocabulary"),
        ("0x16x32000-bf16-50", "expected blocks x positions x vocabulary"),
        ("02x16x32000-bf16-50", "expected blocks x positions x vocabulary"),
        ("2x16x32000-bf16-50-cold", "expected blocks x positions x vocabulary"),
        ("2x16x32000-bf16--5", "expected blocks x positions x vocabulary"),
        ("2x16x32000-int8-50", "expected logits of fp16, bf16, fp32; got 'int8'"),
        ("2x16x32000-bf16-101", "expected 0 to 100 percent of positions masked; got 101"),
    ],
)
def test_a_name_that_is_none_is_refused_with_the_reason(name, message):
    with pytest.raises(ValueError, match=message):
        parse(name)


def test_warm_twins_are_of_what_fits_the_cache_and_there_once():
    small, large = parse("2x4x1500-fp32-50"), parse("1x32x157184-bf16-100")
    warm = parse(f"{small.name}-warm")
    assert workloads.with_warm([small, large, warm], small.logits_bytes) == [small, warm, large]
    assert workloads.with_warm([small, large], 0) == [small, large]
