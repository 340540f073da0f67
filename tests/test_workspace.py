"""The size of workspaces, and that one serves calls of every shape that fits, in any order."""

from __future__ import annotations

import pytest
import torch

from dllm_kernels import dllm_post_process_fused, gpu, workspace_size
from tests.calls import DEVICE, call, make_case


def test_one_workspace_serves_every_smaller_call_in_any_order():
    """Every call clears what it published, so partial results of one never become another's."""
    largest = make_case(6, 8, 6000, threshold=0.5, masked_share=0.9)
    workspace = torch.zeros(workspace_size(largest.logits), dtype=torch.int32, device=DEVICE)
    for batch, length, seed in [(6, 8, 0), (1, 8, 1), (6, 1, 2), (48, 1, 3), (2, 3, 4), (1, 48, 5), (6, 8, 6)]:
        case = make_case(batch, length, 6000, threshold=0.5, masked_share=0.9, seed=seed)
        ids = case.input_ids.to(DEVICE, copy=True)
        dllm_post_process_fused(case.logits.to(DEVICE), ids, case.mask_id, 0.5, workspace=workspace, backend="triton")
        assert ids.cpu().equal(call(case, "reference", "cpu").input_ids)
        assert not workspace.any()


@pytest.mark.parametrize("blocks", [1, 40, 3000])  # of few rows and of many
@pytest.mark.parametrize("vocab", [40, 5000, 200_000])
def test_size_is_enough_for_blocks_of_any_length(blocks, vocab):
    """In parts, which may have a position more than there is."""
    for length in (*range(1, 300), *range(300, 5000, 101)):
        logits = torch.empty(1).expand(blocks, length, vocab)
        ids = torch.empty(1, dtype=torch.int64).expand(blocks, length)
        assert gpu._Plan(logits, ids, True, None, None, False).workspace_elements <= workspace_size(logits)


def test_size_grows_with_rows_only():
    one, two = (workspace_size(torch.empty(rows, 32, 5000)) for rows in (1, 2))
    assert two == 2 * one
    assert workspace_size(torch.empty(1, 32, 5000)) == workspace_size(torch.empty(32, 5000))
