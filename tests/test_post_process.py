"""The contract of the operation, on every backend, against the float64 oracle."""

from __future__ import annotations

import itertools
import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_kernels import checks, cpu, dllm_post_process_fused, dllm_post_process_reference, gpu
from dllm_kernels.gpu import share
from tests.calls import ALL_OUTPUTS, BACKENDS, DEVICE, HAS_GPU, Case, call, check, make_case

INF, NAN = math.inf, math.nan
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
VOCABS = [1, 2, 3, 1000, 1025, 30522, 50257, 126464, 128000, 157184]


@pytest.fixture(autouse=True, scope="module")
def _cpu_backend_for_every_size():
    """The CPU backend leaves small calls to the reference; here its own code is tested on them."""
    with mock.patch.object(cpu, "is_faster", return_value=True):
        yield


each_backend = pytest.mark.parametrize(("backend", "device"), BACKENDS, ids=lambda value: str(value))
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def _rows_that_fit(backend: str, device: str, vocab: int) -> int:
    """The interpreter takes seconds for a dozen long rows."""
    return 4 if backend == "triton" and device == "cpu" and vocab > 30000 else 64


@each_backend
@each_dtype
@pytest.mark.parametrize("vocab", VOCABS)
def test_vocabularies(backend, device, dtype, vocab):
    block_length = 3 if _rows_that_fit(backend, device, vocab) < 9 else 4
    check(make_case(1, block_length, vocab, dtype=dtype, threshold=0.6, masked_share=0.7, seed=vocab), backend, device)


@each_backend
@pytest.mark.parametrize(
    ("batch", "block_length"),
    # The interpreter takes half a minute for 1792 positions, and sees there what it sees in 512.
    [
        (blocks, length)
        for blocks in (1, 2, 7)
        for length in (1, 3, 4, 32, 33, 256)
        if HAS_GPU or blocks * length <= 512
    ],
)
def test_shapes(backend, device, batch, block_length):
    share = 0.6 if batch * block_length <= 256 else 0.1
    check(make_case(batch, block_length, 300, threshold=0.5, masked_share=share, seed=batch), backend, device)


@each_backend
def test_many_short_blocks(backend, device):
    """On a GPU, more blocks than programs run at a time, each with a program that waits for others."""
    check(make_case(1500 if HAS_GPU else 40, 2, 1500, threshold=0.5, masked_share=0.9, seed=2), backend, device)


def test_more_blocks_than_a_launch_holds(monkeypatch):
    monkeypatch.setattr(gpu, "MAX_GRID", 3)
    checks.check_layout.cache_clear()
    check(make_case(8, 3, 900, threshold=0.5, seed=9), "triton", DEVICE)
    checks.check_layout.cache_clear()


@pytest.mark.parametrize("splits", [1, 2, 8])
def test_many_rows_in_shares(splits):
    """Rows that fill the GPU, cut all the same: blocks with nothing masked, one mask, some, and all."""
    length = 8
    batch = -(-gpu.programs_at_once(torch.device(DEVICE)) // length)
    case = make_case(batch, length, 9_000, threshold=0.7, masked_share=0.4)
    case.input_ids[0] = 5
    case.input_ids[1] = case.mask_id
    case.input_ids[2, 1:] = 5
    config = gpu.MANY_ROWS[4]._replace(max_splits=splits, least_tiles=1)
    checks.check_layout.cache_clear()
    with mock.patch.dict(gpu.MANY_ROWS, {4: config}):
        outcome = check(case, "triton", DEVICE)
    checks.check_layout.cache_clear()
    assert int(outcome.remaining[1]) < length


@each_dtype
def test_many_rows_of_a_vocabulary_that_is_split(dtype, plans):
    """As they are split where nobody asks for it: 17 tiles are two shares of eight and more."""
    length = 8
    case = make_case(-(-gpu.programs_at_once(torch.device(DEVICE)) // length), length, 33_003, threshold=0.7)
    case.logits = case.logits.to(dtype)
    case.input_ids[:, 2:] = 5
    case.input_ids[0] = case.mask_id
    check(case, "triton", DEVICE)
    assert {plan.launches[0][0] for plan in plans} == {2 * length}


@each_backend
def test_long_block(backend, device):
    """One block of many parts."""
    rows, share = (4200, 1.0) if HAS_GPU else (600, 0.03)  # the interpreter takes a second for 30 rows
    case = make_case(1, rows, 40, threshold=0.99, masked_share=share, seed=4096)
    check(case, backend, device)
    case.threshold = 2.0
    assert call(case, backend, device).accepted.sum() == 1


@each_backend
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_do(backend, device, shape):
    case = Case(torch.empty(*shape, 5), torch.empty(shape, dtype=torch.int64), 0)
    outcome = call(case, backend, device)
    assert outcome.input_ids.shape == shape
    assert outcome.remaining.tolist() == [0] * shape[0]


@each_backend
@pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("mask_id", [-1, 0, 500, 999, 1000, 2**31 - 1, 2**40, -(2**63)])
def test_mask_ids(backend, device, ids_dtype, mask_id):
    if ids_dtype == torch.int32 and not -(2**31) <= mask_id < 2**31:
        pytest.skip(f"int32 ids cannot hold {mask_id}; test_errors holds the error")
    check(make_case(2, 5, 1000, ids_dtype=ids_dtype, mask_id=mask_id, threshold=0.5), backend, device)


@each_backend
@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.5, -0.5, 0.5, INF, -INF, [0.2, NAN, 2.0, -1.0]], ids=str)
def test_thresholds(backend, device, threshold):
    if isinstance(threshold, list):
        threshold = torch.tensor(threshold)
    check(make_case(4, 6, 200, threshold=threshold, masked_share=0.8, seed=3), backend, device)


@each_backend
def test_threshold_tensor_of_any_stride(backend, device):
    thresholds = torch.tensor([0.1, 9.0, 0.95, 9.0])[::2]
    case = make_case(2, 6, 200, masked_share=0.8, seed=4)
    case.threshold = thresholds
    outcome = call(case, backend, device)
    case.threshold = thresholds.clone()
    assert outcome.input_ids.equal(call(case, backend, device).input_ids)


@each_backend
def test_masks_anywhere(backend, device):
    """Nothing masked, one mask at each position, everything masked, as blocks of one call."""
    length = 9
    case = make_case(length + 2, length, 100, threshold=0.7, masked_share=0.0)
    for position in range(length):
        case.input_ids[position, position] = case.mask_id
    case.input_ids[length + 1] = case.mask_id
    outcome = check(case, backend, device)
    assert outcome.input_ids[length].equal(case.input_ids[length])
    assert outcome.remaining[: length + 1].tolist() == [0] * (length + 1)


@each_backend
@each_dtype
@pytest.mark.parametrize("where", [(0, 1), (1, 2047), (5, 2048), (2047, 4099), (0, 9999), (8191, 8192), (4096, 9998)])
def test_ties_take_the_lowest_token(backend, device, dtype, where):
    """Within a thread, across tiles, across splits."""
    logits = torch.zeros(1, 2, 10_000, dtype=dtype)
    logits[0, :, list(where)] = 4.0
    outcome = check(Case(logits, torch.full((1, 2), -1), -1, threshold=-1.0), backend, device)
    assert outcome.tokens.tolist() == [[where[0]] * 2]


@each_backend
@each_dtype
def test_rows_of_equal_bits_tie(backend, device, dtype):
    """Bit-equal rows of a block have bit-equal confidence, so the fallback takes the lowest position."""
    row = torch.randn(20_011, generator=torch.Generator().manual_seed(5)).to(dtype)
    case = Case(row.repeat(3, 7, 1), torch.full((3, 7), -1), -1, threshold=2.0)
    case.input_ids[1, :3] = 5
    outcome = check(case, backend, device)
    for confidence, ids in zip(outcome.confidence, case.input_ids, strict=True):
        assert len(confidence[ids == -1].unique()) == 1
    assert outcome.accepted.nonzero().tolist() == [[0, 0], [1, 3], [2, 0]]


@each_backend
@each_dtype
def test_signed_zeros_tie(backend, device, dtype):
    logits = torch.full((1, 1, 3000), -1.0, dtype=dtype)
    logits[..., 7], logits[..., 2999] = -0.0, 0.0
    assert check(Case(logits, torch.tensor([[-1]]), -1), backend, device).tokens.item() == 7


ODD_ROWS = {
    "nan first": {3: NAN, 2500: 9.0},
    "nan last": {5: INF, 9: 30.0, 4999: NAN},
    "two nans": {2100: NAN, 4100: NAN},
    "negative nan": {17: -NAN},
    "+inf": {40: INF, 2: 80.0},
    "two +inf": {4400: INF, 4000: INF},
    "+inf and -inf": {0: -INF, 4000: INF},
    "a few -inf": {0: -INF, 1: -INF, 4999: -INF},
}


@each_backend
@each_dtype
@pytest.mark.parametrize("name", ODD_ROWS)
@pytest.mark.parametrize("exclude_ids", [(), (3, 4999), (40,)], ids=str)
def test_odd_values(backend, device, dtype, name, exclude_ids):
    case = make_case(2, 2, 5000, dtype=dtype, masked_share=1.0, threshold=-1.0, exclude_ids=exclude_ids, seed=8)
    for column, value in ODD_ROWS[name].items():
        case.logits[0, 1, column] = value
        case.logits[1, :, column] = value
    check(case, backend, device)
    case.threshold = 2.0
    check(case, backend, device)


@each_backend
@each_dtype
@pytest.mark.parametrize("exclude_ids", [(), (0,), (0, 1, 2, 3)], ids=str)
def test_rows_of_minus_infinity(backend, device, dtype, exclude_ids):
    case = make_case(1, 3, 5000, dtype=dtype, masked_share=1.0, threshold=-1.0, exclude_ids=exclude_ids)
    case.logits[0, 1] = -INF
    outcome = check(case, backend, device)
    assert outcome.confidence[0, 1].isnan()
    assert outcome.tokens[0, 1] == len(exclude_ids)
    assert not outcome.accepted[0, 1]
    case.logits[:] = -INF
    assert check(case, backend, device).accepted.tolist() == [[True, False, False]]


@each_backend
def test_all_candidates_minus_infinity(backend, device):
    """The excluded id alone is finite: its probability counts, so the candidate's is 0."""
    logits = torch.full((1, 2, 5000), -INF)
    logits[..., 0] = 5.0
    case = Case(logits, torch.full((1, 2), -1), -1, threshold=-0.5, exclude_ids=(0,))
    outcome = check(case, backend, device)
    assert outcome.confidence.tolist() == [[0.0, 0.0]]
    assert outcome.tokens.tolist() == [[1, 1]]


@each_backend
@pytest.mark.parametrize("scale", [1e4, 1e30, 2.3e38, 3.4e38])
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_logits(backend, device, scale, sign):
    """Up to the largest float32, where a product with log2(e) overflows."""
    logits = torch.rand(1, 4, 5000, generator=torch.Generator().manual_seed(9)) * 0.5 + 0.5
    logits = logits * scale * sign
    logits[0, 1, [3, 4000]] = scale
    logits[0, 2] = scale * sign
    check(Case(logits, torch.full((1, 4), -1), -1, threshold=0.4), backend, device)


@each_backend
@each_dtype
def test_subnormal_logits_are_told_apart(backend, device, dtype):
    """Where hardware flushes them to zero, all of these tie."""
    if (backend, device, dtype) == ("triton", "cpu", torch.bfloat16):
        pytest.skip("Triton's interpreter converts subnormals of bfloat16 to other numbers")
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    order = torch.stack([torch.randperm(100, generator=torch.Generator().manual_seed(row)) for row in range(4)])
    logits = (order.double() * smallest).to(dtype).repeat(1, 1, 20)[None].roll(7, -1).reshape(1, 4, 2000)
    outcome = check(Case(logits, torch.full((1, 4), -1), -1, threshold=2.0), backend, device)
    assert len(set(outcome.tokens[0].tolist())) > 1


@each_backend
@each_dtype
def test_confidence_is_exact_far_from_zero(backend, device, dtype):
    """A shift of all logits changes no probability, also where base-2 arithmetic rounds the shift."""
    generator = torch.Generator().manual_seed(10)
    logits = torch.randint(-8, 8, (1, 8, 3000), generator=generator).float()
    logits[..., 11] = 16.0
    logits += torch.tensor([0.0, 16.0, 64.0, 80.0, 96.0, -96.0, -112.0, 100.0])[None, :, None]
    check(Case(logits.to(dtype), torch.full((1, 8), -1), -1, threshold=0.5), backend, device)


@each_dtype
def test_a_long_share_adds_up_exactly(dtype):
    """One program for a whole row, a peak beside equal logits: every addition to the peak's sum rounds the same way."""
    vocab, unit = 157_184, 2**-23
    height = math.log((round(0.05 / 0.95 / vocab * 4 / unit) + 0.45) * unit / 4)
    logits = torch.full((1, 1, vocab), height if dtype == torch.float32 else -15.0)
    logits[0, 0, 5] = 0.0
    case = Case(logits.to(dtype), torch.tensor([[-1]]), -1, threshold=0.5)
    config = gpu.CONFIGS[-1]._replace(max_splits=1)
    checks.check_layout.cache_clear()
    with mock.patch.object(gpu, "CONFIGS", (config,)):
        check(case, "triton", DEVICE)
    checks.check_layout.cache_clear()


@each_dtype
def test_candidates_of_minus_infinity_beside_excluded_numbers(dtype):
    """The ids that a vector holds are all excluded, and what is left has no finite logit."""
    logits = torch.full((1, 2, 3000), -torch.inf)
    logits[0, :, :4] = 1.0
    case = Case(logits.to(dtype), torch.tensor([[-1, -1]]), -1, threshold=0.5, exclude_ids=(0, 1, 2, 3))
    check(case, "triton", DEVICE)


@each_dtype
@pytest.mark.parametrize(("more", "length", "masked"), [(7, 3, 3), (0, 16, 9)], ids=["nine tiles", "eight, rows dealt"])
def test_shares_beyond_the_row_with_ids_excluded(dtype, monkeypatch, more, length, masked):
    """Nine tiles in eight shares of two leave three empty, and so do eight tiles in seven, where one begins at the end
    of the row. They are not taken for such as hold nothing but excluded ids, which are read again."""
    monkeypatch.setattr(gpu, "programs_at_once", lambda device: 64)
    vocab = 8 * 65_536 // torch.finfo(dtype).bits + more  # a tile is of 8 KiB
    logits = torch.randn(1, length, vocab, generator=torch.Generator().manual_seed(5)) * 2
    ids = torch.full((1, length), 7)
    ids[:, :masked] = -1
    case = Case(logits.to(dtype), ids, -1, threshold=0.5, exclude_ids=(0, 1, 2, vocab - 1))
    if not HAS_GPU:  # where it can be seen
        with monkeypatch.context() as patched:
            patched.setattr(share, "_reread_share", lambda *_: pytest.fail("a share was read again"))
            check(case, "triton", DEVICE)
    case.logits[0, 1:] = -torch.inf
    case.logits[0, 2, [0, 1, 2, vocab - 1]] = 1.0
    check(case, "triton", DEVICE)


@each_dtype
@pytest.mark.parametrize("rest", [0.0, -torch.inf], ids=["numbers", "minus infinity"])
def test_nan_is_not_forgotten(dtype, rest):
    """A thread that has read nothing but NaN and -inf so far goes on to other tiles, where the row's maximum is not its
    own; and NaNs of two shares: the first counts."""
    logits = torch.full((1, 3, 100_000), rest)
    logits[0, :, 5000] = 20.0
    logits[0, 0, :8] = torch.nan
    logits[0, 1, 3] = torch.nan
    logits[0, 2, [60_000, 90_000]] = torch.nan
    case = Case(logits.to(dtype), torch.tensor([[-1, -1, -1]]), -1, threshold=0.5)
    check(case, "triton", DEVICE)


def _combinations():
    options = {
        "prompt_mask": torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) < 0.4,
        "exclude_ids": (7, 3, 10**6, -5),
        "threshold": torch.tensor([0.1, 0.5, 2.0]),
        "edit_threshold": 0.3,
    }
    chosen = itertools.chain.from_iterable(itertools.combinations(options, n) for n in range(5))
    return [pytest.param({name: options[name] for name in names}, id="+".join(names) or "none") for names in chosen]


@each_backend
@pytest.mark.parametrize("options", _combinations())
def test_options_together(backend, device, options):
    case = make_case(3, 6, 50, masked_share=0.8, seed=12, **options)
    case.logits[:, ::2, 7] = 40.0
    check(case, backend, device)


@each_backend
@pytest.mark.parametrize("outputs", [(), *((name,) for name in ALL_OUTPUTS), ALL_OUTPUTS], ids="+".join)
@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_outputs_alone_and_together(backend, device, outputs, threshold):
    check(make_case(4, 5, 80, threshold=threshold, masked_share=0.5, seed=13), backend, device, outputs)


@each_backend
def test_prompt_that_holds_the_mask_is_not_touched(backend, device):
    case = make_case(2, 5, 80, threshold=-1.0, masked_share=1.0)
    case.prompt_mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    outcome = check(case, backend, device)
    assert (outcome.input_ids[case.prompt_mask] == case.mask_id).all()
    assert outcome.remaining.tolist() == [0, 0]


@each_backend
def test_candidate_that_is_the_mask(backend, device):
    """Committed, but still masked: the caller sees it in `remaining`; excluding the mask makes progress."""
    case = make_case(1, 4, 80, mask_id=5, masked_share=1.0, threshold=0.5)
    case.logits[..., 5] = 50.0
    outcome = check(case, backend, device)
    assert outcome.accepted.all()
    assert outcome.remaining.tolist() == [4]
    case.exclude_ids = (5,)
    assert check(case, backend, device).remaining.tolist() == [3]


@each_backend
@pytest.mark.parametrize("edit_threshold", [-INF, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("block_length", [1, 5, 33])
def test_edits(backend, device, edit_threshold, block_length):
    """Beside masked positions, in blocks without any, and where the candidate is the token that is there already."""
    case = make_case(3, block_length, 60, threshold=0.7, masked_share=0.5, edit_threshold=edit_threshold, seed=17)
    case.input_ids[1] = case.logits[1].argmax(dim=-1)
    case.input_ids[2, 0] = 3
    outcome = check(case, backend, device)
    assert outcome.input_ids[1].equal(case.input_ids[1])
    assert not outcome.accepted[1].any()
    if edit_threshold <= 0.0:
        assert outcome.input_ids[2, 0] == case.logits[2, 0].argmax()
    if edit_threshold >= 1.0:
        case.edit_threshold = None
        assert call(case, backend, device).input_ids.equal(outcome.input_ids)


@each_backend
@pytest.mark.parametrize("outputs", [(), *((name,) for name in ALL_OUTPUTS), ALL_OUTPUTS], ids="+".join)
def test_outputs_with_edits(backend, device, outputs):
    check(make_case(4, 5, 80, threshold=2.0, edit_threshold=0.3, masked_share=0.4, seed=18), backend, device, outputs)


@each_backend
def test_edits_of_a_long_block(backend, device):
    """Several parts, and the one fallback among them."""
    case = make_case(1, 300, 40, threshold=2.0, masked_share=0.3, edit_threshold=0.6, seed=19)
    outcome = check(case, backend, device)
    assert (outcome.accepted & (case.input_ids == case.mask_id)).sum() == 1
    case.prompt_mask = torch.rand(1, 300, generator=torch.Generator().manual_seed(3)) < 0.5
    check(case, backend, device)
    case.input_ids[case.input_ids == case.mask_id] = 1
    assert check(case, backend, device).remaining.tolist() == [0]


@each_backend
def test_edits_leave_the_prompt_alone(backend, device):
    case = make_case(3, 6, 80, threshold=0.5, edit_threshold=-1.0, masked_share=0.5, seed=20)
    case.prompt_mask = torch.tensor([[True, True, False, False, True, False], [True] * 6, [False] * 6])
    outcome = check(case, backend, device)
    assert outcome.input_ids[case.prompt_mask].equal(case.input_ids[case.prompt_mask])
    assert (outcome.confidence[1] == -INF).all()
    assert outcome.remaining[1] == 0


@each_backend
@pytest.mark.parametrize("name", ODD_ROWS)
def test_edits_of_odd_rows(backend, device, name):
    """A row whose confidence is NaN is never edited, whatever the threshold."""
    case = make_case(2, 3, 5000, masked_share=0.0, edit_threshold=-INF, seed=21)
    for column, value in ODD_ROWS[name].items():
        case.logits[0, 1, column] = value
        case.logits[1, :, column] = value
    outcome = check(case, backend, device)
    assert outcome.accepted.equal(~outcome.confidence.isnan())


@each_backend
def test_edits_may_bring_back_the_mask(backend, device):
    """Counted in `remaining`; excluding the mask prevents it."""
    case = make_case(1, 4, 80, mask_id=5, masked_share=0.0, edit_threshold=0.5)
    case.logits[0, :2, 5] = 50.0
    outcome = check(case, backend, device)
    assert (outcome.input_ids == 5).tolist() == [[True, True, False, False]]
    assert outcome.remaining.tolist() == [2]
    case.exclude_ids = (5,)
    assert check(case, backend, device).remaining.tolist() == [0]


@each_backend
def test_edits_of_ties_take_the_lowest_token(backend, device):
    logits = torch.zeros(1, 3, 10_000)
    logits[..., [4099, 9999]] = 4.0
    case = Case(logits, torch.tensor([[9999, 4099, 3]]), -1, edit_threshold=0.0)
    assert check(case, backend, device).input_ids.tolist() == [[4099] * 3]


@each_backend
def test_one_block_without_a_batch(backend, device):
    case = make_case(1, 6, 90, threshold=0.5, masked_share=0.8, seed=14)
    expected = call(case, backend, device)
    ids = case.input_ids[0].to(device, copy=True)
    confidence = torch.empty(6, device=device)
    remaining = torch.empty(1, dtype=torch.int32, device=device)
    threshold = torch.tensor([0.5], device=device)
    prompt_mask = torch.zeros(6, dtype=torch.bool, device=device)
    dllm_post_process_fused(
        case.logits[0].to(device), ids, case.mask_id, threshold, prompt_mask=prompt_mask,
        confidence=confidence, remaining=remaining, backend=backend,
    )  # fmt: skip
    assert ids.tolist() == expected.input_ids[0].tolist()
    assert confidence.tolist() == expected.confidence[0].tolist()
    assert remaining.tolist() == expected.remaining.tolist()


STRIDED_IDS = {
    "every second": lambda ids: torch.full((*ids.shape, 2), -9, device=ids.device)[..., 0],
    "transposed": lambda ids: torch.full(ids.shape[::-1], -9, device=ids.device).t(),
    "window": lambda ids: torch.full((ids.shape[0], 50), -9, device=ids.device)[:, 10 : 10 + ids.shape[1]],
}


@each_backend
@pytest.mark.parametrize("layout", STRIDED_IDS)
def test_ids_of_any_stride(backend, device, layout):
    case = make_case(3, 5, 120, threshold=0.5, masked_share=0.8, seed=15)
    case.prompt_mask = torch.rand(5, 3, generator=torch.Generator().manual_seed(2)).t() < 0.2
    expected = call(case, backend, device)
    ids = STRIDED_IDS[layout](case.input_ids.to(device)).copy_(case.input_ids)
    around = ids._base.clone()
    inside = torch.zeros_like(around, dtype=torch.bool)
    torch.as_strided(inside, ids.shape, ids.stride(), ids.storage_offset()).fill_(True)
    dllm_post_process_fused(
        case.logits.to(device), ids, case.mask_id, 0.5, prompt_mask=case.prompt_mask.to(device), backend=backend
    )
    assert ids.cpu().equal(expected.input_ids)
    assert ids._base[~inside].equal(around[~inside])


STRIDED_LOGITS = {
    "wide rows": lambda logits: logits.new_full((3, 5, 160), NAN)[..., 8:136],
    "odd rows": lambda logits: logits.new_full((3, 5, 133), NAN)[..., 3:131],
    "transposed": lambda logits: logits.new_full((5, 3, 128), NAN).transpose(0, 1),
    "batch window": lambda logits: logits.new_full((3, 9, 128), NAN)[:, 2:7],
    "every second row": lambda logits: logits.new_full((3, 10, 128), NAN)[:, ::2],
    "one block for all": lambda logits: logits[:1].expand(3, -1, -1),
}


@each_backend
@each_dtype
@pytest.mark.parametrize("layout", STRIDED_LOGITS)
def test_logits_of_any_stride(backend, device, dtype, layout):
    case = make_case(3, 5, 128, dtype=dtype, threshold=0.5, masked_share=0.8, seed=16)
    view = STRIDED_LOGITS[layout](case.logits.to(device))
    if layout == "one block for all":
        case.logits = view.cpu().contiguous()
    else:
        view.copy_(case.logits)
    ids = case.input_ids.to(device, copy=True)
    dllm_post_process_fused(view, ids, case.mask_id, 0.5, backend=backend)
    assert ids.cpu().equal(call(case, backend, device).input_ids)


@each_backend
def test_logits_that_require_grad(backend, device):
    """A model in training mode: the call neither fails nor builds a graph."""
    case = make_case(1, 4, 60, threshold=0.5)
    confidence = torch.empty(1, 4, device=device)
    ids = case.input_ids.to(device, copy=True)
    logits = case.logits.to(device).requires_grad_()
    dllm_post_process_fused(logits, ids, case.mask_id, 0.5, confidence=confidence, backend=backend)
    assert not confidence.requires_grad
    assert ids.cpu().equal(call(case, backend, device).input_ids)


def test_reference_is_the_same_operation():
    case = make_case(2, 5, 70, threshold=0.5)
    ids, remaining = case.input_ids.clone(), torch.empty(2, dtype=torch.int32)
    dllm_post_process_reference(case.logits, ids, case.mask_id, 0.5, remaining=remaining)
    expected = call(case, "reference", "cpu")
    assert ids.equal(expected.input_ids)
    assert remaining.equal(expected.remaining)


# Few distinct values make ties; special values make odd rows.
_values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0, -3.0, 20.0, 88.0, -1e30, 3e38, INF, -INF, NAN]),
    st.floats(-30, 30, width=16),
)


@st.composite
def cases(draw):
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    vocab = draw(st.sampled_from([1, 2, 5, 17, 64]))
    numbers = draw(st.lists(_values, min_size=4, max_size=12))
    seed = draw(st.integers(0, 2**16))
    pick = torch.randint(len(numbers), (batch, length, vocab), generator=torch.Generator().manual_seed(seed))
    logits = torch.tensor(numbers)[pick].to(draw(st.sampled_from(DTYPES)))
    mask_id = draw(st.integers(-2, vocab + 1))
    holds_mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < draw(st.floats(0, 1))
    input_ids = torch.full((batch, length), vocab + 5).masked_fill(holds_mask, mask_id)
    exclude_ids = draw(st.lists(st.integers(-1, vocab), max_size=min(4, vocab - 1), unique=True))
    prompt_mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed + 1)) < 0.3
    thresholds = torch.rand(batch, generator=torch.Generator().manual_seed(3))
    threshold = draw(st.one_of(st.floats(-1, 2), st.just(thresholds)))
    edit_threshold = draw(st.one_of(st.none(), st.floats(-1, 2)))
    prompt_mask = draw(st.sampled_from([None, prompt_mask]))
    return Case(logits, input_ids, mask_id, threshold, prompt_mask, exclude_ids, edit_threshold)


@pytest.mark.parametrize(("backend", "device"), BACKENDS, ids=str)
@settings(max_examples=300 if HAS_GPU else 60, deadline=None, derandomize=True)
@given(case=cases(), names=st.sets(st.sampled_from(ALL_OUTPUTS)))
def test_any_small_case(backend, device, case, names):
    check(case, backend, device, sorted(names))
