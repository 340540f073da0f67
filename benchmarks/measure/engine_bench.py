"""In a measuring process: the step of an engine's plug-in, and the one that the engine ships."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from typing import TYPE_CHECKING, Any

from benchmarks import engines, workloads
from benchmarks.measure.bench import Bench, undecidable, wrong_ids

if TYPE_CHECKING:
    from torch import Tensor

PLUG_INS = "dllm_kernels.integrations"


class EngineBench(Bench):
    """`Bench`, with steps in the place of calls: see `workloads.EngineStep`."""

    def __init__(self, workload: str, seed: int, draws: int | None = None) -> None:
        kind = workloads.WORKLOADS[workload]
        assert isinstance(kind, workloads.EngineStep)
        super().__init__(kind.call.name, seed, draws)
        self.specification = functools.partial(
            self.implementations["reference"],
            exclude_ids=(kind.mask_id,),
            edit_threshold=workloads.THRESHOLD if kind.edits else None,
        )
        self.implementations = {}
        self.is_absent = importlib.util.find_spec(PLUG_INS) is None
        if not self.is_absent:
            if kind.engine.startswith("sglang"):
                engines.load_sglang()
                # The plug-in of the package that this process measures, whatever is installed.
                importlib.import_module(f"{PLUG_INS}.sglang").register()
            self.implementations = dict(zip(("fused", "reference"), engines.STEPS[kind.engine], strict=True))

    def check(self) -> dict[str, Any]:
        """Whether both steps leave the ids of the specification, outside the undecidable band, and tell the engine the
        same; and which those ids are."""
        if self.is_absent:
            return {"passed": False, "detail": f"the package has no {PLUG_INS}", "digest": "", "absent": True}
        digest, found = hashlib.sha256(), ""
        for logits in self.draws:
            difference, expected_ids = self._difference(logits, self.prepared)
            found = found or difference
            digest.update(expected_ids.cpu().numpy().tobytes())
        # Every other block holds no mask, and nothing to edit: the engine has to be told that it is done.
        first, partly_done = self.draws[0], self.prepared.clone()
        partly_done[::2] = first.argmax(dim=-1)[::2]
        found = found or self._difference(first, partly_done)[0]
        detail = found or f"the ids of both steps are as specified, and flags the same, on {len(self.draws)} draws"
        return {"passed": not found, "detail": detail, "digest": digest.hexdigest()}

    def _difference(self, logits: Tensor, before: Tensor) -> tuple[str, Tensor]:
        """Of the steps from the specification or from each other, in words; and the ids as specified."""
        expected_ids, p = before.clone(), self.torch.empty(before.shape, device=self.device)
        self.specification(logits, expected_ids, self.workload.mask_id, workloads.THRESHOLD, confidence=p)
        told = {}
        for name, step in self.implementations.items():
            self.ids.copy_(before)
            told[name] = step(logits, self.ids, self.workload.mask_id, workloads.THRESHOLD)
            if wrong := int(wrong_ids(self.ids, expected_ids, p)):
                return f"{name}: {wrong} ids are not as specified", expected_ids
        for ours, theirs in zip(told["fused"], told["reference"], strict=True):
            one, other = (self.torch.as_tensor(part, device=self.device) for part in (ours, theirs))
            if (one.shape, one.dtype) != (other.shape, other.dtype):
                return "fused: the engine is told of other blocks than by its own step", expected_ids
            differs = (one != other).view(len(p), -1).any(dim=-1) & ~undecidable(p).any(dim=-1)
            if differs.any():
                blocks = int(differs.sum())
                return f"fused: of {blocks} blocks the engine is told something else than by its own step", expected_ids
        return "", expected_ids
