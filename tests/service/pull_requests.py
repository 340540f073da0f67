"""Made-up records of pull requests, and what GitHub says of overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import gate, results, verification
from benchmarks.service import gpus, verdict
from tests.records import GPU, NAME, make_baseline, make_noise

HEAD, BASE = "a" * 40, "d" * 40
MODEL = gpus.Gpu("test", GPU.device, "gpu-test")
ASKED = verdict.Asked(HEAD, BASE, (MODEL,))
SUCCESS = {"plan": "success", "gpu": "success"}
CASE = gate.Case(baseline=make_baseline(), noise=make_noise(), expected=(NAME,))


def judged(run: results.Run, case: gate.Case = CASE) -> results.Run:
    return verification.with_verdicts(run, case, gate.judge(run, case))


def decide(
    *records: results.Run, jobs: dict[str, str] = SUCCESS, changed: tuple[str, ...] = (), asked: verdict.Asked = ASKED
) -> verdict.Outcome:
    return verdict.decide(asked, jobs, records, changed, lambda run: CASE)


def content_of(run: results.Run, tmp_path: Path) -> bytes:
    results.save(run, tmp_path / "run.json")
    return (tmp_path / "run.json").read_bytes()


def run_of_override(**changes: Any) -> dict[str, Any]:
    return {
        "id": 5, "path": ".github/workflows/perf-override.yml", "event": "workflow_dispatch", "head_branch": "main",
        "conclusion": "success", "display_title": f"Override {HEAD}: for a reason", "html_url": "https://x/5",
        **changes,
    }  # fmt: skip


def approval(**changes: Any) -> dict[str, Any]:
    return {
        "state": "approved",
        "user": {"login": "maintainer"},
        "environments": [{"name": "perf-override"}],
        **changes,
    }
