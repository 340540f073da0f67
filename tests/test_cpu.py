"""What the CPU backend promises beyond the contract: equal rows tie, precision, threads, its choice of path."""

from __future__ import annotations

import threading

import pytest
import torch

from dllm_kernels import cpu, dllm_post_process_fused, reference

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def _logits(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


@each_dtype
@pytest.mark.parametrize("vocab", [1, 127, 128, 129, 20_011, 157_184])
def test_equal_rows_tie_whatever_is_computed_beside_them(dtype, vocab):
    row = _logits(vocab, dtype=dtype)
    confidences = set()
    for length, masked_positions in [(1, [0]), (3, [0, 2]), (33, range(33)), (33, [5]), (40, range(0, 40, 3))]:
        logits = row.repeat(2, length, 1)
        masked = torch.zeros(2, length, dtype=torch.bool)
        masked[:, list(masked_positions)] = True
        confidences |= set(cpu.row_statistics(logits, masked)[0][masked].tolist())
    assert len(confidences) == 1


def _confidence_error(logits: torch.Tensor) -> float:
    confidence, candidates = cpu.row_statistics(logits, torch.ones(logits.shape[:2], dtype=torch.bool))
    assert candidates.equal(logits.argmax(dim=-1))
    truth = torch.softmax(logits.double(), dim=-1).gather(-1, candidates.unsqueeze(-1))[..., 0]
    return float((confidence - truth).abs().max())


@each_dtype
@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 4.0])
def test_precision(dtype, spread):
    logits = _logits(1, 16, 50_257, dtype=dtype) * spread
    logits[0, ::2, 40_000] += 12
    assert _confidence_error(logits) < 1e-6


@pytest.mark.parametrize("vocab", [128, 256, 4096, 50_257])
@pytest.mark.parametrize("peak", [0, 67, 127])
def test_precision_where_every_addition_rounds_the_same_way(vocab, peak):
    """One peak of weight 1 beside equal weights from 1e-9 to 0.9: the worst rows for short running sums."""
    logits = torch.linspace(-20.7, -0.1, 200).view(1, -1, 1).repeat(1, 1, vocab)
    logits[..., peak] = 0.0
    assert _confidence_error(logits) < 1e-6


@each_dtype
def test_rows_beyond_one_piece(dtype, monkeypatch):
    """Pieces of two rows, of one row, and of less than a row give the same bits."""
    logits, masked = (
        _logits(3, 5, 1300, dtype=dtype),
        torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) < 0.7,
    )
    whole = cpu.row_statistics(logits, masked, (7,))
    for elements in (2600, 1300, 100):
        monkeypatch.setattr(cpu, "PIECE_ELEMENTS", elements)
        pieces = cpu.row_statistics(logits, masked, (7,))
        assert pieces[0].equal(whole[0])
        assert pieces[1].equal(whole[1])


@pytest.mark.parametrize("excluded", [(600,), (0, 127, 128, 255), (1299,), (610, 612)])
def test_excluded_winners(excluded):
    """The best logits are excluded: the candidate lies in another span, or in the same one."""
    logits, masked = _logits(2, 3, 1300), torch.ones(2, 3, dtype=torch.bool)
    logits[..., list(excluded)] = 50.0
    logits[0, :, 611] = 40.0
    expected = reference.row_statistics(logits, excluded)
    confidence, candidates = cpu.row_statistics(logits, masked, excluded)
    assert candidates.equal(expected[1])
    assert candidates[0].tolist() == [611] * 3
    torch.testing.assert_close(confidence, expected[0], rtol=1e-5, atol=0)


def test_spans_of_minus_infinity_weigh_nothing():
    """A padded or grammar-constrained vocabulary: whole spans at -inf beside finite ones."""
    logits, masked = _logits(1, 4, 1300), torch.ones(1, 4, dtype=torch.bool)
    logits[0, 0, 100:] = -torch.inf
    logits[0, 1, :1290] = -torch.inf
    logits[0, 2, 128:1024] = -torch.inf
    expected = reference.row_statistics(logits)
    confidence, candidates = cpu.row_statistics(logits, masked)
    assert candidates.equal(expected[1])
    torch.testing.assert_close(confidence, expected[0], rtol=0, atol=1e-6)


def test_only_masked_rows_are_read():
    logits, masked = _logits(1, 4, 2000), torch.tensor([[False, True, False, True]])
    expected = cpu.row_statistics(logits, masked)
    logits[~masked] = torch.nan
    confidence, candidates = cpu.row_statistics(logits, masked)
    assert confidence.equal(expected[0])
    assert candidates.equal(expected[1])
    assert confidence[~masked].tolist() == [0.0, 0.0]


def test_threads_do_not_disturb_each_other(monkeypatch):
    monkeypatch.setattr(cpu, "is_faster", lambda logits: True)
    cases = [(_logits(1, 8, 9000, seed=seed), torch.full((1, 8), -1)) for seed in range(4)]
    expected = [_commit(logits, ids.clone()) for logits, ids in cases]
    wrong: list[int] = []

    def work(index: int) -> None:
        logits, ids = cases[index]
        for _ in range(20):
            if not _commit(logits, ids.clone()).equal(expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _commit(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    confidence = torch.empty(ids.shape)
    dllm_post_process_fused(logits, ids, -1, 0.01, confidence=confidence, backend="cpu")
    return torch.cat([confidence, ids.float()])


def test_small_calls_are_left_to_the_reference():
    assert not cpu.is_faster(torch.empty(1, 32, 1000, dtype=torch.bfloat16))
    assert not cpu.is_faster(torch.empty(1, 4, 50_257))
    assert not cpu.is_faster(torch.empty(1, 32, 33_000))
    assert not cpu.is_faster(torch.empty(128, 32, 2000))  # many rows, each soon done
    assert not cpu.is_faster(torch.empty(8, 32, 2048, dtype=torch.bfloat16))
    assert cpu.is_faster(torch.empty(1, 32, 50_257, dtype=torch.float16))
    assert cpu.is_faster(torch.empty(1, 32, 157_184))
