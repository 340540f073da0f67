"""In a measuring process: the step of an engine's plug-in, and the one that the engine ships."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from typing import Any

from benchmarks import engines, workloads
from benchmarks.measure.bench import Bench, wrong_ids

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
        """Whether both steps leave the ids of the specification, outside the undecidable band; and which those are."""
        if self.is_absent:
            return {"passed": False, "detail": f"the package has no {PLUG_INS}", "digest": "", "absent": True}
        digest, found = hashlib.sha256(), ""
        for logits in self.draws:
            expected_ids, p = self.prepared.clone(), self.torch.empty(self.prepared.shape, device=self.device)
            self.specification(logits, expected_ids, self.workload.mask_id, workloads.THRESHOLD, confidence=p)
            for name in self.implementations:
                self.ids.copy_(self.prepared)
                self._call(name, logits)
                if wrong := wrong_ids(self.ids, expected_ids, p):
                    found = found or f"{name}: {wrong} ids are not as specified"
            digest.update(expected_ids.cpu().numpy().tobytes())
        detail = found or f"the ids of both steps are as specified on {len(self.draws)} draws"
        return {"passed": not found, "detail": detail, "digest": digest.hexdigest()}
