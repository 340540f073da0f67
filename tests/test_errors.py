"""Bad input: an error that names the argument, what was expected and what came; nothing is touched."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from dllm_kernels import dllm_post_process_fused, warmup, workspace_size
from tests.calls import BACKENDS, DEVICE

V, L, B = 10, 4, 2


def _arguments():
    return {
        "logits": torch.zeros(B, L, V),
        "input_ids": torch.full((B, L), 3),
        "mask_id": 3,
        "threshold": 0.5,
        "prompt_mask": None,
        "exclude_ids": (),
    }


def _overlapping(*strides):
    return torch.zeros(100, dtype=torch.int64).as_strided((B, L), strides)


SHARED = torch.zeros(B * L, dtype=torch.int64)

# name: (changed arguments, error, words of the message)
BAD = {
    "logits no tensor": ({"logits": [[1.0]]}, TypeError, "logits: expected a tensor; got list"),
    "logits float64": ({"logits": torch.zeros(B, L, V).double()}, TypeError, "logits: .*float64"),
    "logits integers": ({"logits": torch.zeros(B, L, V).long()}, TypeError, "logits: .*int64"),
    "logits 1-d": ({"logits": torch.zeros(V)}, ValueError, r"logits: expected shape .*\(10,\)"),
    "logits 4-d": ({"logits": torch.zeros(1, B, L, V)}, ValueError, "logits: expected shape"),
    "no vocabulary": ({"logits": torch.zeros(B, L, 0)}, ValueError, "logits: expected a vocabulary"),
    "strided vocabulary": ({"logits": torch.zeros(B, L, V, 2)[..., 0]}, ValueError, "logits: expected a contiguous"),
    "ids no tensor": ({"input_ids": [3]}, TypeError, "input_ids: expected a tensor"),
    "ids int16": ({"input_ids": torch.zeros(B, L).short()}, TypeError, "input_ids: .*int16"),
    "ids float": ({"input_ids": torch.zeros(B, L)}, TypeError, "input_ids: .*float32"),
    "ids of another length": ({"input_ids": torch.zeros(B, L + 1).long()}, ValueError, r"input_ids: .*\(2, 5\)"),
    "ids without batch": ({"input_ids": torch.zeros(L).long()}, ValueError, "input_ids: expected shape"),
    "ids elsewhere": ({"input_ids": torch.zeros(B, L, device="meta").long()}, ValueError, "input_ids: expected device"),
    "ids expanded": ({"input_ids": torch.zeros(B, 1).long().expand(B, L)}, ValueError, "input_ids: .*overlap"),
    "ids expanded blocks": ({"input_ids": torch.zeros(L).long().expand(B, L)}, ValueError, "input_ids: .*overlap"),
    "ids in windows": ({"input_ids": _overlapping(1, 1)}, ValueError, "input_ids: .*overlap"),
    "ids that meet": ({"input_ids": _overlapping(3, 1)}, ValueError, "input_ids: .*overlap"),
    "ids that meet once": ({"input_ids": _overlapping(6, 2)}, ValueError, "input_ids: .*overlap"),
    "mask id float": ({"mask_id": 3.0}, TypeError, "mask_id: expected an integer; got 3.0"),
    "mask id bool": ({"mask_id": True}, TypeError, "mask_id"),
    "mask id tensor": ({"mask_id": torch.tensor(3)}, TypeError, "mask_id"),
    "mask id array": ({"mask_id": np.array([3])}, TypeError, "mask_id: expected an integer"),
    "mask id beyond int64": ({"mask_id": 2**63}, ValueError, "mask_id: .*int64.*9223372036854775808"),
    "mask id beyond int32": (
        {"mask_id": 2**31, "input_ids": torch.zeros(B, L).int()}, ValueError, "mask_id: .*int32.*2147483648",
    ),
    "threshold nan": ({"threshold": float("nan")}, ValueError, "threshold: .*nan"),
    "threshold beyond floats": ({"threshold": 10**400}, ValueError, "threshold: expected a number that a float"),
    "threshold string": ({"threshold": "high"}, TypeError, "threshold: .*'high'"),
    "threshold none": ({"threshold": None}, TypeError, "threshold: .*None"),
    "threshold bool": ({"threshold": True}, TypeError, "threshold"),
    "threshold scalar tensor": ({"threshold": torch.tensor(0.5)}, ValueError, r"threshold: expected shape \(2,\)"),
    "threshold too long": ({"threshold": torch.zeros(3)}, ValueError, r"threshold: .*\(2,\); got \(3,\)"),
    "threshold float64": ({"threshold": torch.zeros(B).double()}, TypeError, "threshold: .*float64"),
    "threshold elsewhere": ({"threshold": torch.zeros(B, device="meta")}, ValueError, "threshold: .*meta"),
    "edit threshold nan": ({"edit_threshold": float("nan")}, ValueError, "edit_threshold: .*nan"),
    "edit threshold bool": ({"edit_threshold": False}, TypeError, "edit_threshold: expected a number or None; .*False"),
    "edit threshold tensor": ({"edit_threshold": torch.zeros(B)}, TypeError, "edit_threshold: expected a number or"),
    "edit threshold beyond floats": ({"edit_threshold": 10**400}, ValueError, "edit_threshold: .*a float can hold"),
    "prompt ints": ({"prompt_mask": torch.zeros(B, L).long()}, TypeError, "prompt_mask: .*bool.*int64"),
    "prompt shape": ({"prompt_mask": torch.zeros(L).bool()}, ValueError, "prompt_mask: expected shape"),
    "prompt elsewhere": ({"prompt_mask": torch.zeros(B, L, device="meta").bool()}, ValueError, "prompt_mask: .*device"),
    "five exclude ids": ({"exclude_ids": [1, 2, 3, 4, 5]}, ValueError, "exclude_ids: expected at most 4 ids; got 5"),
    "exclude none": ({"exclude_ids": None}, TypeError, "exclude_ids: expected a sequence of integers.*None"),
    "exclude one id": ({"exclude_ids": 7}, TypeError, "exclude_ids: expected a sequence of integers.*7"),
    "exclude tensor": ({"exclude_ids": torch.tensor([7])}, TypeError, "exclude_ids: expected a sequence of integers"),
    "exclude array": ({"exclude_ids": np.array([7])}, TypeError, "exclude_ids: expected a sequence of integers"),
    "exclude text": ({"exclude_ids": "7"}, TypeError, "exclude_ids: expected a sequence of integers"),
    "exclude floats": ({"exclude_ids": [1.5]}, TypeError, "exclude_ids: expected an integer; got 1.5"),
    "exclude all": (
        {"exclude_ids": [0, 1], "logits": torch.zeros(B, L, 2)}, ValueError, "exclude_ids: expected to leave a token",
    ),
    "confidence float16": ({"confidence": torch.zeros(B, L).half()}, TypeError, "confidence: .*float32.*float16"),
    "confidence shape": ({"confidence": torch.zeros(L)}, ValueError, "confidence: expected shape"),
    "confidence strided": ({"confidence": torch.zeros(L, B).t()}, ValueError, "confidence: expected a contiguous"),
    "confidence elsewhere": ({"confidence": torch.zeros(B, L, device="meta")}, ValueError, "confidence: .*device"),
    "confidence no tensor": ({"confidence": []}, TypeError, "confidence: expected a tensor"),
    "tokens int32": ({"tokens": torch.zeros(B, L, dtype=torch.int32)}, TypeError, "tokens: .*int64.*int32"),
    "tokens shape": ({"tokens": torch.zeros(B, L + 1).long()}, ValueError, "tokens: expected shape"),
    "accepted bytes": ({"accepted": torch.zeros(B, L, dtype=torch.uint8)}, TypeError, "accepted: .*bool"),
    "remaining int64": ({"remaining": torch.zeros(B).long()}, TypeError, "remaining: .*int32"),
    "remaining shape": ({"remaining": torch.zeros(B, L, dtype=torch.int32)}, ValueError, "remaining: expected shape"),
    "tokens are the ids": (
        {"input_ids": SHARED.view(B, L), "tokens": SHARED.view(B, L)}, ValueError, "tokens: .*overlaps input_ids",
    ),
    "accepted is the prompt": (
        {"prompt_mask": (flags := torch.zeros(B, L).bool()), "accepted": flags}, ValueError, "accepted: .*prompt_mask",
    ),
    "confidence in the logits": (
        {"logits": (wide := torch.zeros(B, L, V)), "confidence": wide.view(-1)[: B * L].view(B, L)}, ValueError,
        "confidence: .*overlaps logits",
    ),
    "remaining in the workspace": (
        {"workspace": (words := torch.zeros(999).int()), "remaining": words[:B]}, ValueError, "remaining: .*workspace",
    ),
    "workspace float": ({"workspace": torch.zeros(9999)}, TypeError, "workspace: .*int32.*float32"),
    "workspace strided": ({"workspace": torch.zeros(9, 2).int()[:, 0]}, ValueError, "workspace: .*contiguous"),
    "backend unknown": ({"backend": "cuda"}, ValueError, "backend: expected one of .*; got 'cuda'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changes, error, message = BAD[name]
    arguments = {**_arguments(), **changes}
    tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor) and not value.is_meta}
    before = {key: value.clone() for key, value in tensors.items()}
    with pytest.raises(error, match=message):
        dllm_post_process_fused(**arguments)
    assert all(value.equal(before[key]) for key, value in tensors.items())


@pytest.mark.parametrize("changes", [{"backend": "cuda"}, {"mask_id": 2**63}, {"threshold": None}], ids=str)
def test_an_empty_call_is_checked_too(changes):
    empty = {"logits": torch.zeros(0, L, V), "input_ids": torch.zeros(0, L).long()}
    with pytest.raises((TypeError, ValueError), match=next(iter(changes))):
        dllm_post_process_fused(**{**_arguments(), **empty, **changes})


@pytest.mark.parametrize("strides", [(4, 1), (1, 2), (5, 2), (2, 3), (8, 2), (10, 3)])
def test_strides_that_do_not_overlap_are_accepted(strides):
    """(2, 3) interleaves without meeting: i*2 + j*3 repeats only from i = 3 on."""
    buffer = torch.full((100,), 3)
    ids = buffer.as_strided((B, L), strides)
    assert len({i * strides[0] + j * strides[1] for i in range(B) for j in range(L)}) == B * L
    dllm_post_process_fused(torch.zeros(B, L, V), ids, 3, -1.0, backend="reference")
    assert (ids == 0).all()


def test_cpu_backend_refuses_other_devices():
    with pytest.raises(ValueError, match="backend: 'cpu' takes tensors on the CPU; logits are on meta"):
        dllm_post_process_fused(
            torch.zeros(B, L, V, device="meta"), torch.zeros(B, L, device="meta").long(), 3, 0.5, backend="cpu"
        )


def test_workspace_too_small():
    logits = torch.zeros(B, L, V, device=DEVICE)
    ids = torch.full((B, L), 3, device=DEVICE)
    workspace = torch.zeros(8, dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="workspace: expected at least .* elements .* got 8"):
        dllm_post_process_fused(logits, ids, 3, 0.5, workspace=workspace, backend="triton")
    assert (ids == 3).all()


def test_warmup_refuses_unknown_outputs():
    with pytest.raises(ValueError, match="outputs: expected names among .* got probability"):
        warmup(100, outputs=["probability"])


def test_warmup_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="device: expected a CUDA device .* no CUDA device"):
        warmup(100)


@pytest.mark.parametrize(("count", "error"), [(5, ValueError), (-1, ValueError), ((1, 2), TypeError)])
def test_warmup_takes_a_number_of_exclude_ids(count, error):
    with pytest.raises(error, match="exclude_ids: expected"):
        warmup(100, exclude_ids=count)


def test_workspace_for_a_vocabulary_too_large():
    with pytest.raises(ValueError, match="logits: expected a vocabulary of at most 1073741824"):
        workspace_size(torch.empty(1, 1, 2**30 + 1, device="meta"))


@pytest.mark.parametrize(("backend", "device"), BACKENDS, ids=str)
def test_tensors_made_in_inference_mode(backend, device):
    """They may be updated outside of it, which PyTorch's own operations refuse."""
    with torch.inference_mode():
        logits = torch.zeros(B, L, V, device=device)
        ids = torch.full((B, L), 3, device=device)
        confidence = torch.empty(B, L, device=device)
    dllm_post_process_fused(logits, ids, 3, -1.0, confidence=confidence, backend=backend)
    assert (ids == 0).all()
    assert torch.allclose(confidence, torch.tensor(0.1, device=device))


def _python(code: str, **environment: str) -> str:
    """Run `code` in a fresh interpreter and return what it printed."""
    environ = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | environment
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


CALL = """
import torch
{before}
from dllm_kernels import dllm_post_process_fused
ids = torch.full((2, 4), 3)
try:
    dllm_post_process_fused(torch.zeros(2, 4, 10), ids, 3, -1.0, backend="triton")
except (RuntimeError, ValueError) as error:
    print(type(error).__name__, error)
assert (ids == 3).all()
dllm_post_process_fused(torch.zeros(2, 4, 10), ids, 3, -1.0)
print(ids.unique().tolist())
"""


def test_triton_missing():
    """Without Triton the package imports, the CPU works, and the backend says what to install."""
    block = (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'triton':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    output = _python(CALL.format(before=block))
    assert "RuntimeError backend: 'triton' needs Triton, which is not installed" in output
    assert output.endswith("[0]\n")


def test_triton_without_cuda_tensors():
    output = _python(CALL.format(before="torch.cuda.is_available = lambda: False"))
    assert "ValueError backend: 'triton' takes CUDA tensors" in output
    assert "this machine has no CUDA device" in output
    assert output.endswith("[0]\n")


@pytest.mark.parametrize(("backend", "device"), BACKENDS, ids=str)
def test_every_backend_shares_the_door(backend, device):
    with pytest.raises(ValueError, match="mask_id"):
        dllm_post_process_fused(
            torch.zeros(B, L, V, device=device), torch.zeros(B, L, device=device).int(), 2**40, 0.5, backend=backend
        )
