"""Block decoding with scripted models: each position's token and logit are known beforehand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dllm_kernels import decode, iter_decode

VOCAB, MASK, EOS = 50, 49, 48
each_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])


class Script:
    """A model whose logits depend on the position alone; it keeps the ids that it was shown."""

    def __init__(self, tokens: list[int], probabilities: list[float] | None = None) -> None:
        probabilities = [0.99] * len(tokens) if probabilities is None else probabilities
        self.logits = torch.zeros(len(tokens), VOCAB)
        for position, (token, p) in enumerate(zip(tokens, probabilities, strict=True)):
            self.logits[position, token] = math.log(p / (1 - p) * (VOCAB - 1))
        self.seen: list[Tensor] = []

    def __call__(self, input_ids: Tensor) -> Tensor:
        self.seen.append(input_ids.clone())
        return self.logits[: input_ids.shape[1]].expand(len(input_ids), -1, -1)


def _mixing_model(input_ids: Tensor) -> Tensor:
    """Logits that depend on all ids that are shown, row by row."""
    positions = torch.arange(1, input_ids.shape[1] + 1)
    state = (input_ids * positions).sum(dim=-1, keepdim=True) + input_ids * 7 + positions * 13
    tokens = torch.arange(VOCAB)
    return 9 * torch.sin(state.unsqueeze(-1) * 0.37 + tokens * tokens * 0.11)


def _prompt(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1)


@each_backend
def test_confident_blocks_take_one_pass_each(backend):
    model = Script(list(range(16)))
    result = decode(model, _prompt([0, 1, 2, 3]), mask_id=MASK, generation_length=12, block_length=4, backend=backend)
    assert result.tokens.tolist() == [list(range(4, 16))]
    assert result.forward_passes == 3
    assert result.lengths.tolist() == [12]
    assert result.finished.tolist() == [True]
    assert [ids.shape[1] for ids in model.seen] == [8, 12, 16]
    assert model.seen[1].tolist() == [[*range(8), *[MASK] * 4]]


@each_backend
def test_unsure_blocks_take_one_pass_per_token_best_first(backend):
    model = Script(list(range(8)), [0.5, 0.6, 0.8, 0.7, 0.4, 0.3, 0.2, 0.9])
    steps = iter_decode(
        model, _prompt([]), mask_id=MASK, generation_length=8, block_length=4, threshold=0.95, backend=backend
    )
    order, before = [], torch.full((1, 8), MASK)
    for step in steps:
        now = before.clone()
        now[:, : step.input_ids.shape[1]] = step.input_ids
        order += (now != before).nonzero()[:, 1].tolist()
        before = now
    assert order == [2, 3, 1, 0, 7, 4, 5, 6]


@pytest.mark.parametrize(("threshold", "passes"), [(0.95, 4), (0.75, 3), (0.65, 2), (0.0, 1)])
def test_threshold_sets_the_number_of_passes(threshold, passes):
    model = Script([1, 2, 3, 4], [0.6, 0.7, 0.8, 0.9])
    result = decode(model, _prompt([]), mask_id=MASK, generation_length=4, block_length=4, threshold=threshold)
    assert result.tokens.tolist() == [[1, 2, 3, 4]]
    assert result.forward_passes == passes


def test_threshold_per_sequence():
    model = Script([1, 2, 3, 4], [0.6, 0.7, 0.8, 0.9])
    steps = iter_decode(
        model, torch.empty(2, 0, dtype=torch.int64), mask_id=MASK, generation_length=4, block_length=4,
        threshold=torch.tensor([0.0, 1.0]),
    )  # fmt: skip
    assert next(steps).input_ids.tolist() == [[1, 2, 3, 4], [MASK, MASK, MASK, 4]]


@each_backend
def test_mask_is_never_chosen(backend):
    options = {"mask_id": MASK, "generation_length": 7, "block_length": 4, "max_forward_passes": 9}
    model = Script([MASK] * 8, [0.9] * 8)
    model.logits[:, 5] = 1.0
    result = decode(model, _prompt([1]), **options, backend=backend)
    assert result.tokens.tolist() == [[5] * 7]
    assert result.forward_passes == 7
    result = decode(model, _prompt([1]), **options, exclude_ids=(5, 0))
    assert result.tokens.tolist() == [[1] * 7]


def test_stops_at_eos():
    model = Script([1, 2, 3, 4, 5, EOS, 7, 8, 9, 10, 11, 12])
    result = decode(model, _prompt([1, 2]), mask_id=MASK, generation_length=10, block_length=4, eos_id=EOS)
    assert result.tokens.tolist() == [[3, 4, 5, *[EOS] * 7]]
    assert result.lengths.tolist() == [4]
    assert result.finished.tolist() == [True]
    assert result.forward_passes == 2


def test_eos_behind_a_mask_does_not_end_the_sequence():
    """EOS at position 2 is committed first; the sequence ends only when 0 and 1 are there, and 3 stays open."""
    model = Script([1, 2, EOS, 4, 5, 6, 7, 8], [0.6, 0.7, 0.9, 0.5, 0.9, 0.9, 0.9, 0.9])
    steps = iter_decode(model, _prompt([]), mask_id=MASK, generation_length=8, block_length=4, eos_id=EOS)
    seen = [(step.input_ids.tolist()[0], step.masks_left) for step in steps]
    assert seen == [([MASK, MASK, EOS, MASK], 3), ([MASK, 2, EOS, MASK], 2), ([1, 2, EOS, MASK], 0)]


def test_eos_in_the_prompt_is_text():
    prompt = _prompt([EOS, 1])
    result = decode(Script(list(range(8))), prompt, mask_id=MASK, generation_length=6, block_length=4, eos_id=EOS)
    assert result.tokens.tolist() == [[2, 3, 4, 5, 6, 7]]


def test_finished_sequence_waits_unchanged_for_the_others():
    def model(input_ids: Tensor) -> Tensor:
        logits = Script([3] * input_ids.shape[1], [0.6] * input_ids.shape[1])(input_ids).clone()
        logits[0, 1, EOS] = 30.0
        return logits

    options = {"mask_id": MASK, "generation_length": 7, "block_length": 4, "eos_id": EOS}
    seen = [step.input_ids.tolist() for step in iter_decode(model, _prompt([1], [2]), **options)]
    assert len(seen) == 7
    assert all(ids[0][:4] == [1, EOS, MASK, MASK] for ids in seen)
    assert seen[2][1] == [2, 3, 3, 3]
    assert seen[6] == [[1, EOS, *[MASK] * 6], [2, *[3] * 7]]
    result = decode(model, _prompt([1], [2]), **options)
    assert result.tokens.tolist() == [[EOS] * 7, [3] * 7]
    assert result.lengths.tolist() == [1, 7]
    assert result.finished.tolist() == [True, True]


@each_backend
@pytest.mark.parametrize("eos_id", [None, EOS])
def test_batch_equals_sequences_decoded_one_by_one(backend, eos_id):
    lengths = [3, 9, 0, 4]
    prompts = torch.randint(0, 40, (4, 9), generator=torch.Generator().manual_seed(1))
    options = {"mask_id": MASK, "generation_length": 13, "block_length": 4, "threshold": 0.4, "backend": backend}
    batch = decode(_mixing_model, prompts, prompt_lengths=lengths, eos_id=eos_id, **options)
    for row, length in enumerate(lengths):
        alone = decode(_mixing_model, prompts[row : row + 1, :length], eos_id=eos_id, **options)
        assert batch.tokens[row].equal(alone.tokens[0])
        assert batch.lengths[row] == alone.lengths[0]
        assert alone.forward_passes <= batch.forward_passes


def test_ragged_prompts_keep_their_text_and_ignore_the_rest():
    prompts = _prompt([10, 11, 12, 13, 14], [20, 21, MASK, 7, 7])
    model = Script([1] * 12)
    result = decode(
        model, prompts, prompt_lengths=[5, 3], mask_id=MASK, generation_length=6, block_length=4, max_forward_passes=9
    )
    assert result.tokens.tolist() == [[1] * 6] * 2
    assert model.seen[0].tolist() == [[10, 11, 12, 13], [20, 21, MASK, MASK]]
    assert model.seen[-1].tolist() == [
        [10, 11, 12, 13, 14, 1, 1, 1, MASK, MASK, MASK, MASK],
        [20, 21, MASK, 1, 1, 1, 1, 1, MASK, MASK, MASK, MASK],
    ]
    assert prompts.tolist() == [[10, 11, 12, 13, 14], [20, 21, MASK, 7, 7]]


def test_nothing_is_generated_beyond_the_length():
    model = Script([1] * 8)
    (step,) = iter_decode(model, _prompt([5]), mask_id=MASK, generation_length=4, block_length=8)
    assert step.input_ids.tolist() == [[5, 1, 1, 1, 1, MASK, MASK, MASK]]


@pytest.mark.parametrize("bound", [0, 1, 3, 100])
def test_bound_on_forward_passes(bound):
    model = Script([1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6])
    result = decode(model, _prompt([]), mask_id=MASK, generation_length=4, block_length=4, max_forward_passes=bound)
    done = min(bound, 4)
    assert len(model.seen) == result.forward_passes == done
    assert result.tokens.tolist() == [[1, 2, 3, 4][:done] + [MASK] * (4 - done)]
    assert result.lengths.tolist() == [done]
    assert result.finished.tolist() == [done == 4]


def test_generator_shows_what_the_function_does():
    prompts = torch.randint(0, 40, (3, 5), generator=torch.Generator().manual_seed(2))
    options = {"mask_id": MASK, "generation_length": 14, "block_length": 8, "threshold": 0.5, "eos_id": EOS}
    result = decode(_mixing_model, prompts, **options)
    steps = [
        (step.forward_passes, step.block, step.masks_left) for step in iter_decode(_mixing_model, prompts, **options)
    ]
    assert [step[0] for step in steps] == list(range(1, result.forward_passes + 1))
    assert [step[1] for step in steps] == sorted(step[1] for step in steps)
    assert steps[-1][2] == 0
    *_, last = iter_decode(_mixing_model, prompts, **options)
    generated = last.input_ids[:, 5:19]
    for row, length in enumerate(result.lengths.tolist()):
        assert generated[row, :length].equal(result.tokens[row, :length])


@pytest.mark.parametrize(("shape", "generation_length"), [((0, 3), 5), ((2, 3), 0), ((2, 0), 0), ((0, 0), 0)])
def test_nothing_to_do(shape, generation_length):
    model = Script([1] * 40)
    prompts = torch.ones(shape, dtype=torch.int64)
    result = decode(model, prompts, mask_id=MASK, generation_length=generation_length)
    assert result.tokens.shape == (shape[0], generation_length)
    assert result.forward_passes == 0
    assert model.seen == []


def test_gradients_are_not_recorded():
    weight = torch.ones(1, requires_grad=True)
    recorded = []

    def model(input_ids: Tensor) -> Tensor:
        recorded.append((Script([1] * 4)(input_ids) * weight).requires_grad)
        return Script([1] * 4)(input_ids)

    decode(model, _prompt([]), mask_id=MASK, generation_length=4, block_length=4)
    assert recorded == [False]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompt_ids": torch.ones(1, 3)}, TypeError, "prompt_ids: expected an int64 tensor; got torch.float32"),
        ({"prompt_ids": [1, 2]}, TypeError, "prompt_ids: expected an int64 tensor; got list"),
        ({"prompt_ids": torch.ones(3, dtype=torch.int64)}, ValueError, r"prompt_ids: expected shape \(B, P\)"),
        ({"prompt_lengths": [4]}, ValueError, r"prompt_lengths: expected 1 values from 0 to 3; got \[4\]"),
        ({"prompt_lengths": [1, 1]}, ValueError, "prompt_lengths"),
        ({"prompt_lengths": [1.5]}, TypeError, "prompt_lengths: expected an integer; got 1.5"),
        ({"generation_length": -1}, ValueError, "generation_length: expected at least 0; got -1"),
        ({"generation_length": 2.5}, TypeError, "generation_length: expected an integer; got 2.5"),
        ({"block_length": 0}, ValueError, "block_length: expected at least 1; got 0"),
        ({"max_forward_passes": -1}, ValueError, "max_forward_passes"),
        ({"eos_id": MASK}, ValueError, "eos_id: expected another token than mask_id"),
        ({"eos_id": 1.5}, TypeError, "eos_id: expected an integer; got 1.5"),
        ({"eos_id": -1}, ValueError, "eos_id: expected a token id"),
        ({"eos_id": 2**63}, ValueError, "eos_id: expected a token id"),
        ({"exclude_ids": (1, 2, 3, 4)}, ValueError, "exclude_ids: expected at most 3"),
        ({"exclude_ids": None}, TypeError, "exclude_ids: expected a sequence of integers"),
        ({"prompt_lengths": 3}, TypeError, "prompt_lengths: expected a sequence of integers"),
        ({"mask_id": 0.5}, TypeError, "mask_id"),
        ({"threshold": math.nan}, ValueError, "threshold"),
        ({"threshold": torch.ones(2)}, ValueError, "threshold"),
        ({"backend": "cuda"}, ValueError, "backend"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("function", [decode, iter_decode])
def test_bad_arguments_are_refused_before_the_model_runs(function, changes, error, message):
    model = Script([1] * 40)
    arguments = {"prompt_ids": torch.ones(1, 3, dtype=torch.int64), "mask_id": MASK, "generation_length": 4, **changes}
    with pytest.raises(error, match=message):
        function(model, **arguments)
    assert model.seen == []


def test_a_model_that_cannot_be_called():
    with pytest.raises(TypeError, match="model: expected a callable"):
        decode(None, _prompt([1]), mask_id=MASK, generation_length=4)


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_caller_that_stops_early_has_the_result_so_far(passes):
    """As `decode` with that bound on forward passes."""
    model = Script([1, 2, 3, 4], [0.6, 0.7, 0.8, 0.9])
    options = {"mask_id": MASK, "generation_length": 4, "block_length": 4}
    for step in iter_decode(model, _prompt([]), **options):
        if step.forward_passes == passes:
            break
    result = step.result()
    expected = decode(model, _prompt([]), **options, max_forward_passes=passes)
    assert result.tokens.equal(expected.tokens)
    assert result.lengths.equal(expected.lengths)
    assert (result.finished.item(), result.forward_passes) == (False, passes)


@pytest.mark.parametrize(
    "logits", [torch.zeros(1, 3, VOCAB), torch.zeros(8, VOCAB), torch.zeros(2, 8, VOCAB), None, (torch.zeros(1, 8, 5),)]
)
def test_model_of_wrong_shape(logits):
    with pytest.raises(ValueError, match=r"model: expected logits of shape \(1, 8, 'V'\); got"):
        decode(lambda _: logits, _prompt([1]), mask_id=MASK, generation_length=4, block_length=8)
