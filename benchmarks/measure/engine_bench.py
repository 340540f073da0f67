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

    def __init__(self, workload: str, seed: int) -> None:
        kind = workloads.WORKLOADS[workload]
        assert isinstance(kind, workloads.EngineStep)
        super().__init__(kind.call.name, seed)
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
            expected_ids, p = self.prepared.clone(), self.torch.empty(self.prepared.shape, device=self.device)
            self.specification(logits, expected_ids, self.workload.mask_id, workloads.THRESHOLD, confidence=p)
            told = {}
            for name, step in self.implementations.items():
                self.ids.copy_(self.prepared)
                told[name] = step(logits, self.ids, self.workload.mask_id, workloads.THRESHOLD)
                if wrong := wrong_ids(self.ids, expected_ids, p):
                    found = found or f"{name}: {wrong} ids are not as specified"
            if blocks := self._blocks_told_otherwise(told["fused"], told["reference"], p):
                found = found or f"fused: of {blocks} blocks the engine is told something else than by its own step"
            digest.update(expected_ids.cpu().numpy().tobytes())
        detail = found or f"the ids of both steps are as specified, and flags the same, on {len(self.draws)} draws"
        return {"passed": not found, "detail": detail, "digest": digest.hexdigest()}

    def _blocks_told_otherwise(self, told: engines.Told, by_the_shipped: engines.Told, p: Tensor) -> int:
        """Of how many blocks, outside the undecidable band."""
        differs = self.torch.zeros(len(p), dtype=self.torch.bool, device=self.device)
        for ours, theirs in zip(told, by_the_shipped, strict=True):
            one, other = (self.torch.as_tensor(part, device=self.device) for part in (ours, theirs))
            differs |= (one != other).view(len(p), -1).any(dim=-1)
        return int((differs & ~undecidable(p).any(dim=-1)).sum())
