"""Continuous batches: every sequence comes out as if it were decoded alone, whatever shares the batch with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dllm_kernels import BatchDecoder, Decoded, decode, dllm_post_process_reference
from dllm_kernels.decode.slots import Slots

VOCAB, MASK, EOS = 50, 49, 48
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def mixing(input_ids: Tensor) -> Tensor:
    """Logits that depend on all ids that are shown, row by row; some confident, some not."""
    positions = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    state = (input_ids * positions).sum(dim=-1, keepdim=True) + input_ids * 7 + positions * 13
    tokens = torch.arange(VOCAB, device=input_ids.device)
    return 9 * torch.sin(state.unsqueeze(-1) * 0.37 + tokens * tokens * 0.11)


class Remembering:
    """A block model made of one of whole sequences: what it was shown stands for keys and values.

    As a real cache does, it takes a block's tokens as they were at its last pass.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], slots: int, length: int = 96) -> None:
        self.model = model
        self.seen = torch.full((slots, length), -1, device=DEVICE)
        self.max_length = length
        self.prefilled: list[tuple[int, list[int]]] = []
        self.passes = 0

    def prefill(self, slot: int, input_ids: Tensor) -> None:
        self.seen[slot, : len(input_ids)] = input_ids
        self.prefilled.append((slot, input_ids.tolist()))

    def __call__(self, input_ids: Tensor, starts: Tensor) -> Tensor:
        self.passes += 1
        block = input_ids.shape[1]
        logits = []
        for slot, start in enumerate(starts.tolist()):
            self.seen[slot, start : start + block] = input_ids[slot]
            logits.append(self.model(self.seen[slot : slot + 1, : start + block])[0, start:])
        return torch.stack(logits)


def decode_batches(model, prompts, **options) -> Iterator[Decoded]:
    return BatchDecoder(model, device=options.pop("device", DEVICE), **options).decode(prompts)


def alone(prompt: list[int], options: dict) -> list[int]:
    ids = torch.tensor([prompt], dtype=torch.int64, device=DEVICE).view(1, -1)
    result = decode(mixing, ids, **options)
    return result.tokens[0, : int(result.lengths[0])].tolist()


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCAB - 3), max_size=11), max_size=7),
    slots=st.integers(1, 4),
    block_length=st.sampled_from([1, 3, 4, 8]),
    generation_length=st.integers(1, 13),
    eos_id=st.sampled_from([None, 7, EOS]),
    threshold=st.sampled_from([0.0, 0.4, 0.95]),
)
def test_each_sequence_is_decoded_as_if_alone(prompts, slots, block_length, generation_length, eos_id, threshold):
    options = {
        "mask_id": MASK, "generation_length": generation_length, "block_length": block_length, "eos_id": eos_id,
        "threshold": threshold,
    }  # fmt: skip
    model = Remembering(mixing, slots)
    found = list(decode_batches(model, iter(prompts), slots=slots, **options))
    assert sorted(one.index for one in found) == list(range(len(prompts)))
    for one in found:
        assert one.tokens.tolist() == alone(prompts[one.index], options)


def test_slots_are_filled_as_they_become_free() -> None:
    taken: list[int] = []

    def prompts():
        for number in range(6):
            taken.append(number)
            yield [number] * (4 * number)

    model = Remembering(mixing, 2)
    options = {"mask_id": MASK, "generation_length": 4, "block_length": 4}
    waiting = decode_batches(model, prompts(), slots=2, **options)
    assert taken == []  # nothing is done before the first sequence is asked for
    next(waiting)
    assert len(taken) == 2
    rest = list(waiting)
    assert len(rest) == 5
    assert len(taken) == 6
    assert {tuple(ids) for _, ids in model.prefilled} == {(number,) * (4 * number) for number in range(6)}


def test_a_block_takes_one_pass_more_than_steps_but_for_the_last() -> None:
    def sure(input_ids: Tensor) -> Tensor:
        logits = torch.zeros(*input_ids.shape, VOCAB, device=input_ids.device)
        logits[..., 5] = 20
        return logits

    model = Remembering(sure, 1)
    (one,) = decode_batches(model, [[1, 2, 3, 4, 5]], slots=1, mask_id=MASK, generation_length=11, block_length=4)
    assert one.tokens.tolist() == [5] * 11
    assert one.forward_passes == 5  # three blocks of one step, and two passes that cache the first two
    assert model.passes == 5 + (DEVICE == "cuda")  # on a GPU the next step starts before the last is looked at
    assert model.prefilled == [(0, [1, 2, 3, 4])]


def test_a_mask_in_a_prompt_is_text() -> None:
    options = {"mask_id": MASK, "generation_length": 6, "block_length": 4}
    prompt = [1, MASK, 2, 3, MASK]
    model = Remembering(mixing, 1)
    (one,) = decode_batches(model, [prompt], slots=1, **options)
    assert one.tokens.tolist() == alone(prompt, options)
    assert MASK not in one.tokens.tolist()


def test_another_operation_of_the_contract_does_the_step() -> None:
    calls = []

    def counted(*arguments, **options):
        calls.append(options.keys())
        dllm_post_process_reference(*arguments, **options)

    options = {"mask_id": MASK, "generation_length": 9, "block_length": 4}
    found = decode_batches(Remembering(mixing, 2), [[3], [4]], slots=2, post_process=counted, **options)
    assert {one.index: one.tokens.tolist() for one in found} == {0: alone([3], options), 1: alone([4], options)}
    assert len(calls) > 3
    assert all(keys == {"prompt_mask", "exclude_ids", "remaining"} for keys in calls)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": 0}, "slots: expected at least 1; got 0"),
        ({"generation_length": 0}, "generation_length: expected at least 1; got 0"),
        ({"block_length": 0}, "block_length: expected at least 1; got 0"),
        ({"eos_id": MASK}, "eos_id: expected another token than mask_id"),
        ({"exclude_ids": (1, 2, 3, 4)}, "exclude_ids: expected at most 3 ids beside the mask"),
        ({"threshold": float("nan")}, "threshold: expected"),
        ({"slots": 1.5}, "slots: expected an integer"),
    ],
)
def test_wrong_arguments_are_named_at_the_call(change, message: str) -> None:
    options = {"slots": 1, "mask_id": MASK, "generation_length": 4, "block_length": 4} | change
    with pytest.raises((TypeError, ValueError), match=message):
        decode_batches(Remembering(mixing, 1), [], **options)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU can capture")
def test_capture_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="capture: expected a CUDA device for a CUDA graph; got cpu"):
        decode_batches(
            Remembering(mixing, 1), [], slots=1, device="cpu", mask_id=MASK, generation_length=4, capture=True
        )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1, -2], r"prompts\[1\]: expected token ids, int64 from 0 on; got -2"),
        ([1, 2**63], r"prompts\[1\]: expected token ids, int64 from 0 on; got 9223372036854775808"),
        ([1.5], r"prompts\[1\]: expected an integer; got 1.5"),
    ],
)
def test_a_wrong_prompt_is_named_as_it_is_taken(prompt, message: str) -> None:
    found = decode_batches(Remembering(mixing, 1), [[1], prompt], slots=1, mask_id=MASK, generation_length=4)
    next(found)
    with pytest.raises((TypeError, ValueError), match=message):
        next(found)


@pytest.mark.parametrize(
    ("following", "expected", "message"),
    [
        ([[1] * 93, [2]], ValueError, r"prompts\[3\]: expected at most 96 positions"),
        (None, OSError, "the queue is gone"),
    ],
    ids=["a prompt that is too long", "an error of the iterable"],
)
def test_what_is_at_work_ends_before_an_error_of_the_prompts(following, expected, message: str) -> None:
    prompts = [[1], [2, 3], [4] * 9]

    def queue():
        yield from prompts
        if following is None:
            raise OSError("the queue is gone")
        yield from following

    options = {"mask_id": MASK, "generation_length": 9, "block_length": 4}
    given: list[Decoded] = []
    with pytest.raises(expected, match=message):
        given.extend(decode_batches(Remembering(mixing, 2), queue(), slots=2, **options))
    assert {one.index: one.tokens.tolist() for one in given} == {
        index: alone(prompt, options) for index, prompt in enumerate(prompts)
    }


def test_logits_of_another_shape_are_refused() -> None:
    class Wrong(Remembering):
        def __call__(self, input_ids: Tensor, starts: Tensor) -> Tensor:
            return super().__call__(input_ids, starts)[:, 1:]

    found = decode_batches(Wrong(mixing, 1), [[1]], slots=1, mask_id=MASK, generation_length=4, block_length=4)
    with pytest.raises(ValueError, match=r"model: expected logits of shape \(1, 4, 'V'\); got \(1, 3, 50\)"):
        next(found)


def random_slots(seed: int, slots: int, block_length: int, generation_length: int) -> Slots:
    """States that a loop can be in, ended and empty slots among them."""
    generator = torch.Generator().manual_seed(seed)

    def below(bound: int, *shape: int) -> Tensor:
        return torch.randint(bound, shape, generator=generator)

    state = Slots.empty(slots, block_length, generation_length, torch.device("cpu"))
    for slot in range(slots):
        prompt = int(below(3 * block_length))
        state.fill(slot, below(MASK, prompt % block_length), prompt, prompt + generation_length, MASK)
        done = int(below(-(-(prompt % block_length + generation_length) // block_length))) * block_length
        state.starts[slot] += done
        if done:
            state.fixed[slot] = int(state.starts[slot]) + torch.arange(block_length) >= prompt + generation_length
    filled = torch.where(below(3, slots, block_length) > 0, below(EOS + 1, slots, block_length), MASK)
    filled[: slots // 2] = below(EOS + 1, slots // 2, block_length)  # blocks without a mask
    state.blocks.copy_(torch.where(state.fixed, state.blocks, filled))
    state.remaining.copy_(((state.blocks == MASK) & ~state.fixed).sum(dim=-1))
    state.complete.copy_((below(2, slots) > 0) & (state.remaining == 0))
    state.running.copy_(below(4, slots) > 0)
    state.passes.copy_(below(50, slots))
    state.ended.copy_(state.passes * ~state.running * below(2, slots))
    state.tokens.copy_(below(EOS, *state.tokens.shape))
    return state


@pytest.mark.parametrize("eos_id", [None, EOS, 3])
@pytest.mark.parametrize(("block_length", "generation_length"), [(32, 64), (5, 12), (1, 1), (4, 3)])
def test_the_kernel_advances_as_specified(block_length: int, generation_length: int, eos_id: int | None) -> None:
    from dllm_kernels.gpu.advance import advance

    met = torch.zeros(3, dtype=torch.int64)  # sequences that end, that go on to their next block, that do neither
    for seed in range(3):
        before = random_slots(seed, 16, block_length, generation_length)
        expected = dataclasses.replace(before, **{name: tensor.clone() for name, tensor in vars(before).items()})
        expected.advance_eager(MASK, eos_id)
        ours = dataclasses.replace(before, **{name: tensor.to(DEVICE) for name, tensor in vars(before).items()})
        ended = expected.ended != before.ended
        onward = expected.starts != before.starts
        met += torch.stack((ended.sum(), onward.sum(), (~ended & ~onward).sum()))
        advance(ours, MASK, eos_id)
        for name, tensor in vars(expected).items():
            assert torch.equal(getattr(ours, name).cpu(), tensor), name
    assert (met[[0, 2]] > 0).all()
    assert met[1] > 0 or generation_length <= block_length


class Table:
    """Logits by position, left in the same memory every time, without a wait for a GPU."""

    max_length = 64

    def __init__(self, slots: int, device: str) -> None:
        self.device = device
        self.logits = torch.zeros(slots, 8, VOCAB, device=device)
        self.by_position = mixing(torch.arange(64)[None] % 40)[0].to(device)

    def prefill(self, slot: int, input_ids: Tensor) -> None:
        pass

    def __call__(self, input_ids: Tensor, starts: Tensor) -> Tensor:
        positions = starts.unsqueeze(-1) + torch.arange(8, device=self.device)
        self.logits.copy_(self.by_position[positions])
        return self.logits


PROMPTS = [[1] * n for n in (0, 3, 8, 17, 5, 9, 30)]
TABLE = {"mask_id": MASK, "generation_length": 20, "block_length": 8, "eos_id": 7}


def outcomes(decoder: BatchDecoder) -> list[tuple[int, list[int], int]]:
    return [(one.index, one.tokens.tolist(), one.forward_passes) for one in decoder.decode(PROMPTS)]


class Lagging(BatchDecoder):
    """On the CPU as on a GPU: of the step before the last, or of the last one already, as it happens."""

    early = 0

    def _known(self) -> tuple[int, list[int]]:
        now = self._slots.told.tolist()
        before, self.before = getattr(self, "before", [0] * len(now)), now
        Lagging.early += 1
        return self._started - 2, now if Lagging.early % 3 else before


def test_what_the_host_sees_early_or_late_changes_nothing() -> None:
    expected = sorted(outcomes(BatchDecoder(Table(3, "cpu"), slots=3, device="cpu", **TABLE)))
    assert [index for index, *_ in expected] == list(range(len(PROMPTS)))
    lagging = Lagging(Table(3, "cpu"), slots=3, device="cpu", **TABLE)
    first = outcomes(lagging)
    assert sorted(first) == expected
    for _ in range(3):  # in another phase
        Lagging.early += 1
        assert outcomes(lagging) == first  # in the same order, too


def test_other_prompts_end_the_iterator_before() -> None:
    decoder = BatchDecoder(Table(2, DEVICE), slots=2, device=DEVICE, **TABLE)
    stale = decoder.decode(PROMPTS)
    next(stale)
    fresh = {one.index: one.tokens.tolist() for one in decoder.decode(PROMPTS[:3])}
    again = {one.index: one.tokens.tolist() for one in decoder.decode(PROMPTS[:3])}
    assert fresh == again
    with pytest.raises(RuntimeError, match="this decoder was given other prompts since"):
        next(stale)


def test_what_does_not_fit_into_the_cache_is_refused() -> None:
    decoder = BatchDecoder(Table(1, DEVICE), slots=1, device=DEVICE, **TABLE)
    assert len(list(decoder.decode([[1] * 44]))) == 1
    with pytest.raises(
        ValueError, match=r"prompts\[0\]: expected at most 64 positions.*45 ids and 20 to generate take 72"
    ):
        list(decoder.decode([[1] * 45]))


def test_a_step_that_commits_nothing_is_an_error_and_no_endless_loop() -> None:
    def idle(logits, input_ids, mask_id, threshold, *, prompt_mask, exclude_ids, remaining) -> None:
        remaining.copy_(((input_ids == mask_id) & ~prompt_mask).sum(dim=-1))

    decoder = BatchDecoder(Table(1, DEVICE), slots=1, device=DEVICE, post_process=idle, **TABLE)
    with pytest.raises(RuntimeError, match=r"prompts\[0\]: no end after 37 passes, where 36 suffice"):
        list(decoder.decode([[1]]))


@pytest.mark.gpu
@pytest.mark.parametrize("capture", [False, True])
def test_on_a_gpu_all_goes_as_on_the_cpu(capture: bool) -> None:
    expected = sorted(outcomes(BatchDecoder(Table(3, "cpu"), slots=3, device="cpu", **TABLE)))
    decoder = BatchDecoder(Table(3, "cuda"), slots=3, device="cuda", capture=capture, **TABLE)
    for _ in range(5):
        assert sorted(outcomes(decoder)) == expected


@pytest.mark.two_gpus
@pytest.mark.parametrize("capture", [False, True])
def test_on_another_gpu_than_the_current(capture: bool) -> None:
    expected = sorted(outcomes(BatchDecoder(Table(3, "cpu"), slots=3, device="cpu", **TABLE)))
    decoder = BatchDecoder(Table(3, "cuda:1"), slots=3, device="cuda:1", capture=capture, **TABLE)
    assert sorted(outcomes(decoder)) == expected


@pytest.mark.gpu
def test_logits_that_move_cannot_be_captured() -> None:
    class Moving(Table):
        def __init__(self) -> None:
            super().__init__(1, "cuda")
            self.kept: list[Tensor] = []

        def __call__(self, input_ids: Tensor, starts: Tensor) -> Tensor:
            self.kept.append(super().__call__(input_ids, starts).clone())
            return self.kept[-1]

    decoder = BatchDecoder(Moving(), slots=1, device="cuda", capture=True, **TABLE)
    with pytest.raises(ValueError, match="model: expected logits in the same memory at every call"):
        list(decoder.decode([[1]]))
