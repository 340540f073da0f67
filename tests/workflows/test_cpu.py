"""gpu-perf.yml with nothing made up but Docker: this machine's CPU is the only model of the list, and is measured."""

from __future__ import annotations

import dataclasses
import json

from benchmarks import results, workloads
from benchmarks.measure import machine
from benchmarks.results import Baseline, BaselineEntry
from tests.workflows.api import REPOSITORY, Api
from tests.workflows.forge import Forge, edit

SLOW = """

_once = row_statistics


def row_statistics(logits, masked, exclude_ids=()):
    for _ in range(4):
        _once(logits, masked, exclude_ids)
    return _once(logits, masked, exclude_ids)
"""


def baseline_of(device: str) -> str:
    """So low that it decides nothing."""
    entry = BaselineEntry(0.01, 1e9, 1e9, 0.5)
    names = [one.name for one in workloads.select(None, gpu=False)[0]]
    entries = {name: {"call_us": {"base reference": entry}} for name in names}
    made = Baseline(device, "2026-11-01", "c" * 40, "for a test", "2.13.0", None, None, entries)
    return json.dumps({"version": made.VERSION, "kind": made.KIND, **dataclasses.asdict(made)})


def test_a_slow_pull_request_is_measured_to_be_slow(forge: Forge, api: Api) -> None:
    device = machine.describe_environment().device
    listed = json.dumps([{"name": "cpu", "device": device, "runner": "cpu"}])
    edit(forge.main / ".github" / "gpus.json", lambda _: listed)
    name = f"benchmarks/baselines/{results.device_slug(device)}.json"
    edit(forge.main / name, lambda _: baseline_of(device))
    # One look decides a slowdown of this size; a busy machine takes minutes for each.
    edit(forge.main / "benchmarks" / "policy.py", lambda text: text.replace("looks: int = 3", "looks: int = 1"))
    forge.commit_to_main("This machine's CPU")
    event = forge.pull_request({"dllm_kernels/cpu.py": lambda text: text + SLOW})
    done = forge.act(
        "gpu-perf.yml", "pull_request", event, TEST_GPU="none", GITHUB_API_URL=api.url, GITHUB_REPOSITORY=REPOSITORY
    )
    assert done.jobs == {"Plan": True, "Approval": True, "GPU cpu": False, "perf-verdict": False}, done.output[-3000:]
    summary = done.summary("perf-verdict")
    assert "cpu: REGRESSION: " in summary
    assert "on call_us, slowdown: slower than base by more than" in summary
    assert f"### REGRESSION on {device} (CPU backend, no GPU here)" in summary
