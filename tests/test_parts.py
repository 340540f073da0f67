"""Long blocks, which the Triton backend cuts into parts: they decide together, as a block does."""

from __future__ import annotations

import pytest
import torch

from dllm_kernels import gpu
from tests.calls import DEVICE, Case, call, check, make_case


@pytest.fixture
def in_parts(plans, monkeypatch):
    """Have blocks of more positions than so many, three or more, cut into parts; then it is asserted that they were.

    Of shorter parts a workspace of `workspace_size` would be too small.
    """

    def cut(longest, config=0):
        monkeypatch.setattr(gpu, "MAX_PART_L", longest)
        monkeypatch.setattr(gpu, "CONFIGS", (gpu.CONFIGS[config]._replace(whole=longest),))

    yield cut
    assert plans
    assert all(parts > 1 for plan in plans for _, parts, *_ in plan.launches)


# Which positions of a block of 36, in three parts, are masked, and which row stands out.
TOGETHER = {
    "all alike": (range(36), None),
    "the best in the first part": (range(36), 3),
    "the best in the last part": (range(36), 35),
    "the last positions": (range(30, 36), 31),
    "one part alone": (range(1, 36, 3), 22),
    "one position": ([25], None),
    "none": ([], None),
}


@pytest.mark.parametrize("confident", [False, True], ids=["falls back", "accepts"])
@pytest.mark.parametrize("name", TOGETHER)
def test_parts_of_a_block_decide_together(in_parts, name, confident):
    """One position falls back in all of them, the lowest of equals; none where another part accepts."""
    in_parts(12)
    masked, outstanding = TOGETHER[name]
    logits = torch.linspace(2, 0, 40).repeat(1, 36, 1)
    if outstanding is not None:
        logits[:, outstanding] *= 3 if confident else 1.5
    mask_id = 0 if confident else 39  # of the candidates, which then stay masked, or of none
    ids = torch.full((1, 36), 7)
    ids[:, list(masked)] = mask_id
    outcome = check(Case(logits, ids, mask_id, threshold=0.12), "triton", DEVICE)
    assert int(outcome.accepted.sum()) == bool(masked)
    assert bool((outcome.confidence > 0.12).any()) == (confident and outstanding is not None)
    if masked and outstanding is None:
        assert outcome.accepted[0, min(masked)]
    logits[:, min(masked, default=0)] = torch.nan  # is fallen back to only where all are
    check(Case(logits, ids, mask_id, threshold=2.0, edit_threshold=0.05), "triton", DEVICE)


@pytest.mark.parametrize("masked", [(0, 1, 4, 8, 12), (0, 1, 5, 9, 13), (3, 4, 8, 12)], ids=str)
def test_rows_of_equal_bits_tie_across_parts(in_parts, masked):
    """Though one part has more masked rows to deal than another."""
    in_parts(4, config=1)
    row = torch.randn(16_384, generator=torch.Generator().manual_seed(1)) * 2
    blocks = -(-gpu.programs_at_once(torch.device(DEVICE)) // 36)  # so that a row has two shares
    case = Case(row.repeat(blocks, 16, 1), torch.full((blocks, 16), 7), -1, threshold=2.0)
    case.input_ids[:, list(masked)] = -1
    outcome = check(case, "triton", DEVICE)
    assert len(outcome.confidence[case.input_ids == -1].unique()) == 1
    assert outcome.accepted.nonzero().tolist() == [[block, masked[0]] for block in range(blocks)]


# Positions, in as many parts, of 130 that are heard of 128 at a time; the height of each row; and which is accepted.
IN_TWO_GOES = {
    "the first go's best": ({5: 3, 128: 2, 129: 1}, 2.0, 5),
    "the second go's best": ({5: 1, 128: 2, 129: 3}, 2.0, 129),
    "a tie": ({5: 2, 128: 2}, 2.0, 5),
    "the first go accepts": ({5: 3, 128: 1, 129: 1}, 0.5, 5),
    "the second go accepts": ({5: 1, 6: 1, 129: 3}, 0.5, 129),
}


@pytest.mark.parametrize("name", IN_TWO_GOES)
def test_more_parts_than_threads(in_parts, name):
    in_parts(3)
    heights, threshold, accepted = IN_TWO_GOES[name]
    case = Case(torch.zeros(1, 390, 40), torch.full((1, 390), 7), -1, threshold=threshold)
    for position, height in heights.items():
        case.input_ids[0, position] = -1
        case.logits[0, position, 11] = 1.5 * height
    assert check(case, "triton", DEVICE).accepted[0].nonzero().tolist() == [[accepted]]


def test_more_blocks_in_parts_than_a_launch_holds(in_parts, monkeypatch):
    in_parts(3)
    monkeypatch.setattr(gpu, "MAX_GRID", 3)
    check(make_case(5, 9, 900, threshold=2.0, seed=9), "triton", DEVICE)
    with pytest.raises(ValueError, match="logits: expected blocks of at most 9 positions on 'triton'; got 10"):
        call(make_case(1, 10, 900), "triton", DEVICE)


def test_a_long_block_of_few_rows_stays_whole(plans, monkeypatch):
    """Its masked rows are dealt among all its programs, and 64 positions at a time combined."""
    monkeypatch.setattr(gpu, "INTERPRETED_PROCESSORS", 132)
    case = make_case(1, 200, 3_000, threshold=0.5, masked_share=0.1, seed=200)
    check(case, "triton", DEVICE)
    case.threshold = 2.0
    check(case, "triton", DEVICE)
    assert {plan.launches[0][1] for plan in plans} == {1}


@pytest.mark.parametrize(("length", "edited"), [(129, False), (130, True)], ids=["all masked", "edits beside a prompt"])
def test_positions_that_are_combined_one_after_the_other_decide_together(plans, monkeypatch, length, edited):
    """Rows tie wherever they stand, though each is the sum of several shares, and the lowest is fallen back to."""
    monkeypatch.setattr(gpu, "programs_at_once", lambda device: 528)
    case = make_case(1, length, 6_200, threshold=2.0, masked_share=1.0, seed=length)
    case.logits /= 10  # so that no other row is as sure
    tied = [77, 78, 81, 128]
    case.logits[0, tied] = torch.randn(6_200, generator=torch.Generator().manual_seed(1)) * 2
    if edited:
        case.edit_threshold = 1.0  # never passed
        case.prompt_mask = torch.arange(length)[None] < 64
        case.input_ids[0, 100:] = 7
    outcome = check(case, "triton", DEVICE)
    assert len(outcome.confidence[0, tied].unique()) == 1
    assert outcome.accepted[0].nonzero().tolist() == [[77]]
    ((programs, parts, *_),) = plans[0].launches
    assert (programs, parts) == (4 * length, 1)
