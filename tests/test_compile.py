"""`torch.compile` on the CPU: the operation enters the graph as one call, errors and all."""

from __future__ import annotations

import pytest
import torch

from dllm_kernels import dllm_post_process_fused
from tests.calls import call, make_case


def test_fullgraph_on_the_cpu():
    case = make_case(2, 5, 300, threshold=0.5)
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def step(logits, ids, confidence):
        dllm_post_process_fused(logits + 0.0, ids, case.mask_id, 0.5, confidence=confidence, exclude_ids=(1, 2))
        return confidence * 2

    ids, confidence = case.input_ids.clone(), torch.empty(2, 5)
    doubled = step(case.logits, ids, confidence)
    case.exclude_ids = (1, 2)
    expected = call(case, "cpu", "cpu")
    assert ids.equal(expected.input_ids)
    assert confidence.equal(expected.confidence)
    assert doubled.equal(expected.confidence * 2)
    calls = [node for node in graphs[0].graph.nodes if "post_process" in str(node.target)]
    assert len(calls) == 1


def test_the_operator_is_registered_rightly():
    """Schema, mutation and the fake kernel, checked by PyTorch."""
    case = make_case(2, 5, 300, threshold=0.5)
    thresholds = torch.tensor([0.2, 0.9])
    for threshold, edit_threshold in ((None, None), (thresholds, None), (None, 0.1)):
        torch.library.opcheck(
            torch.ops.dllm_kernels.post_process.default,
            (
                case.logits, case.input_ids.clone(), case.mask_id, 0.5, threshold, None, [3], edit_threshold,
                torch.empty(2, 5), None, None, torch.empty(2, dtype=torch.int32), None, "auto",
            ),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )  # fmt: skip


def test_errors_come_through():
    @torch.compile(fullgraph=True, backend="eager")
    def step(logits, ids):
        dllm_post_process_fused(logits, ids, 3, float("nan"))

    with pytest.raises(ValueError, match="threshold: expected a number"):
        step(torch.zeros(4, 10), torch.full((4,), 3))


def test_a_mask_id_of_true_is_refused():
    """The operator's schema would take it for 1."""

    @torch.compile(backend="eager")
    def step(logits, ids):
        dllm_post_process_fused(logits, ids, True, 0.5)

    with pytest.raises(TypeError, match="mask_id: expected an integer; got True"):
        step(torch.zeros(4, 10), torch.full((4,), 3))
